"""Page tokens of lists of studies: the sort key of the last study shown, sealed, so that it says nothing to its bearer.

A row number would tell how many studies were ever stored, whoever may see them. The key is encrypted under the secret
of the corpus, with its own keyed hash as the nonce (as in SIV, RFC 5297, with BLAKE2b for both parts), and bound to its
list. The same page always has the same token; a token from before a restart is good after it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any

from mmecg.errors import QueryError

_SEAL_BYTES = 16
_MAX_CHARS = 4096
"""Of a token; one with the longest ids is shorter, and a longer one is not worth the work of looking at it."""

_PADDED = 32
"""Bytes of which a key is a multiple, so that its length tells nothing of a number."""


def render_token(secret: bytes, subject_id: str | None, key: Sequence[Any]) -> str:
    """Return the token of the page that follows the study with this sort key."""
    plain = json.dumps(key).encode()
    plain = plain.ljust(-(-len(plain) // _PADDED) * _PADDED)
    seal = _seal(secret, subject_id, plain)
    return base64.urlsafe_b64encode(seal + _crypted(secret, seal, plain)).decode()


def parse_token(secret: bytes, token: str, subject_id: str | None) -> list[Any]:
    """Return the sort key of the last study of the page before; empty for the first page.

    Raises
    ------
    QueryError
        The token is damaged, or of another list or corpus.
    """
    if not token:
        return []
    try:
        raw = b"" if len(token) > _MAX_CHARS else base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    seal, crypted = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
    plain = _crypted(secret, seal, crypted)
    if not hmac.compare_digest(seal, _seal(secret, subject_id, plain)):
        raise QueryError("page_token is damaged or belongs to another list; start without one", field="page_token")
    key: list[Any] = json.loads(plain)
    return key


def _seal(secret: bytes, subject_id: str | None, plain: bytes) -> bytes:
    """Return a keyed hash of a key and its list."""
    listed = repr(subject_id).encode()
    body = len(listed).to_bytes(4, "big") + listed + plain
    return hashlib.blake2b(body, key=secret, digest_size=_SEAL_BYTES, person=b"page seal").digest()


def _crypted(secret: bytes, nonce: bytes, data: bytes) -> bytes:
    """Return data with a key stream laid over it; doing it again takes it off."""
    blocks = range(-(-len(data) // hashlib.blake2b.MAX_DIGEST_SIZE))
    stream = b"".join(
        hashlib.blake2b(nonce + number.to_bytes(4, "big"), key=secret, person=b"page stream").digest()
        for number in blocks
    )
    return bytes(one ^ other for one, other in zip(data, stream, strict=False))
