"""Who may do what: principals, their roles, and the file that lists those with a token or a certificate.

A token is ``mmecg_<id>_<secret>``. The secret is 256 random bits, so the file holds its SHA-256 and nothing slower:
scrypt and its like make *guessable* passwords expensive to try, and would make every call (and every wrong token that
anybody sends) cost tens of milliseconds; nobody guesses 256 bits. The id is public and finds the entry; digests are
compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from mmecg.errors import ConfigError, InvalidInputError, UnauthenticatedError
from mmecg.search import Scope
from mmecg.study import check_id

Role = Literal["reader", "ingester", "predictor", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

TOKEN_PREFIX = "mmecg_"  # noqa: S105
_ID_CHARS = 12
_TOKEN = re.compile(r"mmecg_(?P<id>[0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NOBODY = bytes(32)
_KEYS = ("name", "roles", "token_id", "token_sha256", "certificate", "expires", "sites", "subjects")


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who calls.

    Attributes
    ----------
    name : str
        As the audit trail shows it.
    roles : frozenset of {"reader", "ingester", "predictor", "admin"}
        None implies another.
    scope : Scope
        Which studies it may see and change.
    expires_at : float
        Moment of :func:`time.time` from which on it is no longer accepted.
    """

    name: str
    roles: frozenset[Role]
    scope: Scope = field(default_factory=Scope)
    expires_at: float = float("inf")

    def check(self) -> None:
        """Raise ``UnauthenticatedError`` once expired."""
        if time.time() >= self.expires_at:
            raise UnauthenticatedError("the token or entry has expired; get a new one from the operator")


ANONYMOUS = Principal(name="anonymous", roles=frozenset(ROLES))


class Principals:
    """The principals of a file, found by token or by the names in a client certificate.

    Parameters
    ----------
    content : bytes
        TOML: a ``[[principal]]`` table each; see ``server/README.md``.

    Attributes
    ----------
    names : frozenset of str

    Raises
    ------
    ConfigError
        Not TOML, an unknown key, an entry without a name, a role, or a way to show who it is; an id or a certificate
        that two entries claim.
    """

    def __init__(self, content: bytes) -> None:
        try:
            entries = tomllib.loads(content.decode()).get("principal", [])
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"auth.principals is not TOML: {error}") from None
        if not isinstance(entries, list):
            raise ConfigError("auth.principals: principal is no list of tables; write [[principal]]")
        self._by_token: dict[str, tuple[bytes, Principal]] = {}
        self._by_certificate: dict[str, Principal] = {}
        for number, entry in enumerate(entries, 1):
            self._add(entry, f"auth.principals, entry {number}")
        found = (principal for _, principal in self._by_token.values())
        self.names = frozenset(each.name for each in (*found, *self._by_certificate.values()))

    def by_token(self, token: str) -> Principal:
        """Return whose token it is. Raises ``UnauthenticatedError`` if it is nobody's, or has expired."""
        found = _TOKEN.fullmatch(token)
        digest, principal = self._by_token.get(found["id"] if found else "", (_NOBODY, ANONYMOUS))
        if not hmac.compare_digest(hashlib.sha256(token.encode()).digest(), digest):
            raise UnauthenticatedError("the token is not accepted; check it, or get a new one from the operator")
        principal.check()
        return principal

    def by_certificate(self, names: Sequence[str]) -> Principal | None:
        """Return whose certificate it is, None if nobody claims one of its names. Raises ``UnauthenticatedError``."""
        for name in names:
            if (principal := self._by_certificate.get(name)) is not None:
                principal.check()
                return principal
        return None

    def _add(self, entry: Mapping[str, Any], where: str) -> None:
        if not isinstance(entry, Mapping) or (unknown := sorted(set(entry) - set(_KEYS))):
            got = unknown[0] if isinstance(entry, Mapping) else "a value that is no table"
            raise ConfigError(f"{where} has {got}, expected some of {', '.join(_KEYS)}")
        principal = _parse_principal(entry, where)
        token_id, digest, certificate = (entry.get(key) for key in ("token_id", "token_sha256", "certificate"))
        if (token_id is None) != (digest is None) or (token_id is None and certificate is None):
            raise ConfigError(
                f"{where} has no way to show who it is, expected token_id and token_sha256 (of `mmecg token`), or "
                "certificate"
            )
        if token_id is not None:
            if not re.fullmatch(rf"[0-9a-f]{{{_ID_CHARS}}}", str(token_id)) or token_id in self._by_token:
                raise ConfigError(f"{where}: token_id is not one of `mmecg token`, or there twice; make a new token")
            if not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
                raise ConfigError(f"{where}: token_sha256 is no SHA-256 in hexadecimal; make a new token")
            self._by_token[token_id] = (bytes.fromhex(str(digest)), principal)
        if certificate is not None:
            if not isinstance(certificate, str) or not certificate or certificate in self._by_certificate:
                raise ConfigError(f"{where}: certificate is not a name (CN or SAN), or there twice")
            self._by_certificate[certificate] = principal


def new_token(
    name: str,
    roles: Sequence[str],
    *,
    expires: datetime | None = None,
    sites: Sequence[str] | None = None,
    subjects: Sequence[str] | None = None,
) -> tuple[str, str]:
    """Make a token.

    Returns
    -------
    str
        The token: shown once, kept nowhere.
    str
        Its ``[[principal]]`` entry for the file.

    Raises
    ------
    InvalidInputError
        A name that cannot be one, no role, or an unknown one.
    """
    unknown = sorted(set(roles) - set(ROLES))
    if unknown or not roles:
        got = repr(unknown[0][:40]) if unknown else "no role"
        raise InvalidInputError(f"got {got}, expected one or more of {', '.join(ROLES)}", field="role")
    token_id = secrets.token_hex(_ID_CHARS // 2)
    token = f"{TOKEN_PREFIX}{token_id}_{secrets.token_urlsafe(32)}"
    lines = [
        "[[principal]]",
        f"name = {json.dumps(check_id(name, 'name'))}",
        f"roles = {json.dumps(sorted(set(roles)))}",
        f'token_id = "{token_id}"',
        f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"',
    ]
    if expires is not None:
        moment = expires.replace(tzinfo=UTC) if expires.tzinfo is None else expires.astimezone(UTC)
        lines.append(f"expires = {moment.isoformat(timespec='seconds')}")
    lines += [
        f"{key} = {json.dumps(sorted(set(values)))}"
        for key, values in (("sites", sites), ("subjects", subjects))
        if values is not None
    ]
    return token, "\n".join(lines) + "\n"


def parse_names(value: object) -> frozenset[str] | None:
    """Return a list of texts as a set; None for anything else, also for a text, which is a list of letters."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return frozenset(value)
    return None


def _parse_principal(entry: Mapping[str, Any], where: str) -> Principal:
    name, roles = entry.get("name"), parse_names(entry.get("roles"))
    try:
        check_id(name, "name")  # type: ignore[arg-type]  # it checks the type
    except InvalidInputError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not roles or not roles <= set(ROLES):
        raise ConfigError(f"{where}: roles is not a list of {', '.join(ROLES)}; give it one or more")
    limits: dict[str, frozenset[str] | None] = {}
    for key in ("sites", "subjects"):
        limits[key] = parse_names(entry.get(key))
        if key in entry and limits[key] is None:
            raise ConfigError(f"{where}: {key} is not a list of texts; leave it out for no restriction")
    expires = entry.get("expires")
    if expires is not None and (not isinstance(expires, datetime) or expires.tzinfo is None):
        raise ConfigError(f"{where}: expires is not a time with a zone, such as 2030-01-01T00:00:00Z")
    return Principal(
        name=str(name),
        roles=frozenset(role for role in ROLES if role in roles),
        scope=Scope(sites=limits["sites"], subject_ids=limits["subjects"]),
        expires_at=float("inf") if expires is None else expires.timestamp(),
    )
