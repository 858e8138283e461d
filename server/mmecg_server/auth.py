"""Who calls, and what that allows: the principal of a call, and the table of methods and roles.

A call shows who it is by a bearer token (``authorization: Bearer …``) or by the client certificate of its connection; a
token wins. Health and reflection are open. What a principal may see and change is its scope, which is enforced inside
the corpus (:meth:`mmecg.search.CorpusStore.within`), not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Generic, TypeVar, cast

import grpc

from mmecg.errors import PermissionDeniedError, UnauthenticatedError
from mmecg.search import Scope
from mmecg_server.config import AuthConfig
from mmecg_server.json_web_tokens import JwtVerifier
from mmecg_server.principals import ANONYMOUS, ROLES, TOKEN_PREFIX, Principal, Principals, Role
from mmecg_server.watched import Watched

T = TypeVar("T")

MAX_TOKEN_CHARS = 8192
MAX_SCOPES = 64

ADMIN_SERVICE = "/mmecg.v1.AdminService/"
_ANY: tuple[Role, ...] = ROLES
_ENCODES: tuple[Role, ...] = ("reader", "ingester", "predictor")

METHOD_ROLES: dict[str, tuple[Role, ...]] = {
    "/mmecg.v1.EmbeddingService/EmbedEcg": _ENCODES,
    "/mmecg.v1.EmbeddingService/EmbedText": _ENCODES,
    "/mmecg.v1.EmbeddingService/EmbedVitals": _ENCODES,
    # These may name a study of the corpus.
    "/mmecg.v1.EmbeddingService/Embed": ("reader",),
    "/mmecg.v1.EmbeddingService/EmbedStream": ("reader",),
    "/mmecg.v1.SearchService/Search": ("reader",),
    "/mmecg.v1.SearchService/SearchStream": ("reader",),
    "/mmecg.v1.CorpusService/GetStudy": ("reader",),
    "/mmecg.v1.CorpusService/ListStudies": ("reader",),
    "/mmecg.v1.CorpusService/CountStudies": ("reader",),
    "/mmecg.v1.CorpusService/GetStats": _ANY,
    "/mmecg.v1.CorpusService/UpsertStudies": ("ingester",),
    "/mmecg.v1.CorpusService/UpdateStudy": ("ingester",),
    "/mmecg.v1.CorpusService/DeleteStudy": ("ingester",),
    "/mmecg.v1.LabelMiningService/MineLabels": ("reader",),
    "/mmecg.v1.LabelMiningService/MineLabelsStream": ("reader",),
    "/mmecg.v1.PredictionService/Predict": ("predictor",),
    "/mmecg.v1.PredictionService/PredictStream": ("predictor",),
    "/mmecg.v1.PredictionService/ExplainPrediction": ("predictor",),
    "/mmecg.v1.InfoService/GetServerInfo": _ANY,
    "/mmecg.v1.AdminService/EraseSubject": ("admin",),
    "/mmecg.v1.AdminService/Backup": ("admin",),
    "/mmecg.v1.AdminService/Verify": ("admin",),
    "/mmecg.v1.AdminService/ListAudit": ("admin",),
    "/mmecg.v1.AdminService/Reindex": ("admin",),
    "/mmecg.v1.AdminService/GetReindex": ("admin",),
}
"""Roles of which one is enough; a method that is not listed is refused to everybody."""

_PRINCIPAL: ContextVar[Principal] = ContextVar("principal", default=ANONYMOUS)


def current_principal() -> Principal:
    """Return on whose behalf this thread works: anonymous, with all roles, unless callers must show who they are."""
    return _PRINCIPAL.get()


@contextmanager
def acting_as(principal: Principal) -> Iterator[None]:
    """Let what this thread does be on behalf of a principal."""
    token = _PRINCIPAL.set(principal)
    try:
        yield
    finally:
        _PRINCIPAL.reset(token)


def check_permission(principal: Principal, method: str) -> None:
    """Refuse a method that none of the principal's roles allows, or that is about more than its scope.

    Raises
    ------
    PermissionDeniedError
        See above. Neither depends on what the corpus holds.
    """
    principal.check()
    wanted = METHOD_ROLES.get(method, ())
    if principal.roles.isdisjoint(wanted):
        expected = f"the role {' or '.join(wanted)}" if wanted else "another method"
        raise PermissionDeniedError(
            f"the caller's roles do not allow this method, expected {expected}; ask the operator"
        )
    if method.startswith(ADMIN_SERVICE) and not principal.scope.is_whole:
        raise PermissionDeniedError(
            "this method is about the whole corpus, and the caller is limited to a part of it; use an account without "
            "sites and subjects"
        )


class Authenticator:
    """Finds out who calls. Safe to use from many threads.

    Parameters
    ----------
    config : AuthConfig

    Raises
    ------
    ConfigError
        The file of principals, or of keys, cannot be used.
    """

    def __init__(self, config: AuthConfig) -> None:
        self._is_on = config.is_on
        self._jwt = JwtVerifier(config.jwt) if config.jwt.is_on else None
        self._principals = (
            None
            if config.principals is None
            else Watched("auth.principals", [config.principals], lambda content: Principals(content))
        )

    def reload(self) -> None:
        """Read the files again, whether they changed or not; what cannot be used is logged and passed over."""
        if self._principals is not None:
            self._principals.reload()
        if self._jwt is not None:
            self._jwt.keys.reload()

    def identify(self, context: grpc.ServicerContext) -> Principal:
        """Return who calls.

        Raises
        ------
        UnauthenticatedError
            Nobody that is known.
        """
        if not self._is_on:
            return ANONYMOUS
        token = _bearer_token(context)
        if token is not None:
            return self._by_token(token)
        names = certificate_names(context)
        if self._principals is not None and names:
            if (principal := self._principals.current().by_certificate(names)) is not None:
                return principal
            raise UnauthenticatedError("nobody is known by this client certificate; ask the operator to enter its name")
        raise UnauthenticatedError("the call shows no token; send metadata `authorization: Bearer …`")

    def _by_token(self, token: str) -> Principal:
        if self._principals is not None and (token.startswith(TOKEN_PREFIX) or self._jwt is None):
            return self._principals.current().by_token(token)
        if self._jwt is None:
            raise UnauthenticatedError("the token is not accepted; check it, or get a new one from the operator")
        principal = self._jwt.verify(token)
        if principal.name in (self._principals.current().names if self._principals is not None else ()):
            # Audit trail, rates and request ids go by the name: nobody shall have another's by way of an issuer.
            raise UnauthenticatedError(
                "the token is of somebody whose name is that of another principal; ask the operator to rename one"
            )
        return principal


def certificate_names(context: grpc.ServicerContext) -> list[str]:
    """Return common name and alternative names of the client certificate; nothing unless gRPC verified one."""
    found = cast(Mapping[str, Sequence[bytes]], context.auth_context())
    if found.get("transport_security_type") != [b"ssl"] or "x509_pem_cert" not in found:
        return []
    names = (*found.get("x509_common_name", ()), *found.get("x509_subject_alternative_name", ()))
    return [name.decode(errors="replace") for name in names]


def _bearer_token(context: grpc.ServicerContext) -> str | None:
    """Return the token of the call; None if it sent none."""
    values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not values:
        return None
    scheme, _, token = str(values[0]).partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not 0 < len(token) <= MAX_TOKEN_CHARS or not token.isascii():
        raise UnauthenticatedError("metadata `authorization` is not one `Bearer` token; send one")
    return token


class PerScope(Generic[T]):
    """Something over the whole corpus, and the same over each scope that asks for it. Safe to use from many threads.

    Parameters
    ----------
    whole : T
    make : callable
        Makes it for a scope.
    """

    def __init__(self, whole: T, make: Callable[[Scope], T]) -> None:
        self._whole = whole
        self._of = lru_cache(MAX_SCOPES)(make)

    def of(self, scope: Scope) -> T:
        """Return what a scope sees."""
        return self._whole if scope.is_whole else self._of(scope)
