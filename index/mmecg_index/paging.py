"""Page tokens of lists of studies: the sort key of the last study shown, bound to its list."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mmecg.errors import QueryError

_MAX_ROW = 2**63


def render_token(subject_id: str | None, key: Sequence[Any]) -> str:
    """Return the token of the page that follows the study with this sort key."""
    return base64.urlsafe_b64encode(json.dumps([_list_name(subject_id), *key]).encode()).decode()


def parse_token(token: str, subject_id: str | None) -> list[Any]:
    """Return the sort key of the last study of the page before; empty for the first page.

    Raises
    ------
    QueryError
        The token is damaged, or belongs to the list of another subject.
    """
    if not token:
        return []
    try:
        name, *key = json.loads(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
        whole = _is_number(key) if subject_id is None else _are_texts(key)
    except (ValueError, TypeError, RecursionError):
        whole = False
    if not whole or name != _list_name(subject_id):
        raise QueryError("page_token is damaged or belongs to another list; start without one", field="page_token")
    return list(key)


def _is_number(key: Sequence[Any]) -> bool:
    return [type(part) for part in key] == [int] and abs(key[0]) < _MAX_ROW


def _are_texts(key: Sequence[Any]) -> bool:
    """Return whether a key is two texts; raise ``ValueError`` for what is no UTF-8."""
    return [type(part) for part in key] == [str, str] and all(part.encode() for part in key)


def _list_name(subject_id: str | None) -> str:
    """Return what binds a token to its list without repeating the id."""
    return hashlib.blake2b(repr(subject_id).encode(), digest_size=8).hexdigest()
