"""JSON Web Tokens: signed elsewhere, checked here, by one algorithm and a public key that the configuration names.

What the token's header says of its algorithm decides nothing: it must be the configured one. ``none`` and the
symmetric algorithms cannot be configured, and a key must be a public one of the algorithm's kind, so that a public key
can never be mistaken for the secret of an HMAC.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mmecg.errors import ConfigError, InvalidInputError, UnauthenticatedError
from mmecg.search import Scope
from mmecg.study import check_id
from mmecg_server.config import JwtConfig
from mmecg_server.principals import ROLES, Principal, parse_names
from mmecg_server.watched import Watched

EVERYTHING = "*"
"""Value of the claim of sites or subjects that restricts nothing; a token without the claim is refused."""

MIN_RSA_BITS = 2048
_REMEMBERED = 1024

Keys = Mapping[str | None, Any]
"""Public key by ``kid``; None for the one key of a PEM file."""


class JwtVerifier:
    """Checks tokens and reads who they are for. Safe to use from many threads.

    Parameters
    ----------
    config : JwtConfig

    Raises
    ------
    ConfigError
        The key file cannot be used.
    """

    def __init__(self, config: JwtConfig) -> None:
        self._config = config
        path = config.key or config.jwks
        if path is None:
            raise ConfigError("auth.jwt has neither key nor jwks; name the file with the public key")
        parse = _parse_pem if config.key is not None else _parse_jwks
        self.keys: Watched[Keys] = Watched("auth.jwt keys", [path], lambda content: parse(content, config.algorithm))
        self._lock = threading.Lock()
        self._checked: OrderedDict[bytes, Principal] = OrderedDict()
        self._checked_with: Keys | None = None

    def verify(self, token: str) -> Principal:
        """Return who a token is for.

        A signature takes up to half a millisecond to check, and a token comes with every call: what was found is
        remembered under the token's SHA-256, until it expires or the keys change.

        Raises
        ------
        UnauthenticatedError
            It is not a token of this issuer for this audience, not signed by its key, expired, or not valid yet.
        """
        keys, digest = self.keys.current(), hashlib.sha256(token.encode()).digest()
        with self._lock:
            if self._checked_with is not keys:
                self._checked_with = keys
                self._checked.clear()
            principal = self._checked.get(digest)
        if principal is None:
            principal = self._check(token, keys)
            with self._lock:
                if self._checked_with is keys:
                    self._checked[digest] = principal
                while len(self._checked) > _REMEMBERED:
                    self._checked.popitem(last=False)
        principal.check()
        return principal

    def _check(self, token: str, keys: Keys) -> Principal:
        config = self._config
        try:
            claims = jwt.decode(
                token,
                _key_of(token, keys),
                algorithms=[config.algorithm],
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway_s,
                options={"require": ["exp", "iss", "aud", config.name_claim]},
            )
            expires_at = float(claims["exp"]) + config.leeway_s
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired; get a new one") from None
        except jwt.ImmatureSignatureError:
            raise UnauthenticatedError("the token is not valid yet; check the clock of its issuer") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            # Which of its parts is wrong helps nobody but a forger.
            raise _refused() from None
        return self._principal(claims, expires_at)

    def _principal(self, claims: Mapping[str, Any], expires_at: float) -> Principal:
        config = self._config
        roles = claims.get(config.roles_claim, [])
        named = frozenset(roles.split()) if isinstance(roles, str) else parse_names(roles) or frozenset()
        try:
            name = check_id(claims[config.name_claim], config.name_claim)
        except InvalidInputError:
            raise _refused() from None
        return Principal(
            name=name,
            roles=frozenset(role for role in ROLES if role in named),
            scope=Scope(
                sites=_restriction(claims, config.sites_claim), subject_ids=_restriction(claims, config.subjects_claim)
            ),
            expires_at=expires_at,
        )


def _key_of(token: str, keys: Keys) -> Any:
    """Return the key that a token names, or the only one."""
    kid = jwt.get_unverified_header(token).get("kid")
    if None in keys:
        return keys[None]
    if kid is None and len(keys) == 1:
        return next(iter(keys.values()))
    if not isinstance(kid, str) or kid not in keys:
        raise _refused()
    return keys[kid]


def _restriction(claims: Mapping[str, Any], name: str) -> frozenset[str] | None:
    """Return what a claim restricts to; None for no restriction, which must be said."""
    if not name:
        return None
    value = claims.get(name)
    if value in (EVERYTHING, [EVERYTHING]):
        return None
    found = parse_names(value)
    if found is None:
        raise UnauthenticatedError(
            f"the token has no list of texts as claim {name}, expected one, or {EVERYTHING!r}; ask its issuer to set it"
        )
    return found


def _refused() -> UnauthenticatedError:
    return UnauthenticatedError("the token is not accepted; check its issuer, audience and key, or get a new one")


def _parse_pem(content: bytes, algorithm: str) -> Keys:
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("auth.jwt.key holds no public key (PEM, -----BEGIN PUBLIC KEY-----)") from None
    return {None: _check_key(key, algorithm)}


def _parse_jwks(content: bytes, algorithm: str) -> Keys:
    keys: dict[str | None, Any] = {}
    try:
        for entry in json.loads(content)["keys"]:
            if entry.get("use", "sig") != "sig" or entry.get("alg", algorithm) != algorithm:
                continue  # for encryption, or for another algorithm
            if "d" in entry or entry.get("kty") == "oct":
                raise ConfigError("auth.jwt.jwks holds a private or symmetric key, expected public ones; remove it")
            kid = entry.get("kid", "")
            if kid in keys:
                raise ConfigError("auth.jwt.jwks has two keys of one kid, expected each once")
            keys[kid] = _check_key(jwt.PyJWK.from_dict(entry, algorithm).key, algorithm)
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError):
        raise ConfigError("auth.jwt.jwks is no JWKS with usable keys (a JSON object with a list `keys`)") from None
    if not keys:
        raise ConfigError(f"auth.jwt.jwks has no key to verify {algorithm} with; put the issuer's keys there")
    return keys


def _check_key(key: Any, algorithm: str) -> Any:
    curves = {"ES256": "secp256r1", "ES384": "secp384r1"}
    if algorithm.startswith(("RS", "PS")):
        fits = isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS
    elif algorithm in curves:
        fits = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == curves[algorithm]
    else:
        fits = isinstance(key, ed25519.Ed25519PublicKey)
    if not fits:
        raise ConfigError(f"auth.jwt: the key is not a public key for {algorithm} (RSA: {MIN_RSA_BITS} bits or more)")
    return key
