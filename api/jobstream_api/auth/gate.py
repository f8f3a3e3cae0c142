"""The gate: who is asking, by key, token or ticket, and whether the route's rule lets them in.

Every route declares its rule by one of the types below (`caller: Reader`), or by `dependencies=[PUBLIC]`. A test walks
all routes and fails for one that has none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container
from functools import lru_cache
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, params
from redis.asyncio import Redis
from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from jobstream import apikeys
from jobstream.caller import ANYBODY, Caller, Scope
from jobstream.errors import Forbidden, Unauthorized
from jobstream_api.auth.keybook import KeyBook
from jobstream_api.auth.settings import AuthSettings, is_loopback
from jobstream_api.auth.tickets import PARAMETER, Tickets
from jobstream_api.auth.tokens import KeySet, TokenBook, TokenRules

Authenticate = Callable[[HTTPConnection], Awaitable[Caller | None]]
"""Says who is asking; None: nobody that is known. Raises Unauthorized for credentials that are not valid."""

UNAUTHORIZED_CLOSE = 4401
FORBIDDEN_CLOSE = 4403
"""What a WebSocket is closed with, since it cannot answer 401 or 403 to a browser."""

_PLACE = "jobstream.gate"


class Gate:
    """One for each router. `open`: everybody may do everything."""

    def __init__(self, authenticate: Authenticate, tickets: Tickets, *, open: bool = False) -> None:
        self._authenticate = authenticate
        self._tickets = tickets
        self.open = open

    async def __call__(self, connection: HTTPConnection) -> None:
        """The router's dependency: tells the routes' rules whom to ask."""
        connection.scope[_PLACE] = self

    async def caller(self, connection: HTTPConnection) -> Caller | None:
        """Who is asking, or None. Raises Unauthorized for credentials that are not valid."""
        return await self._authenticate(connection)

    async def admit(self, connection: HTTPConnection, scope: Scope | None, *, ticket: bool) -> Caller:
        """The caller. Raises Unauthorized, or Forbidden when it lacks `scope` (None: every caller will do).

        `ticket`: one in the query is looked at; it goes before what headers say.
        """
        if ticket and (text := connection.query_params.get(PARAMETER)) is not None:
            caller: Caller | None = await self._tickets.caller(text, connection)
        else:
            caller = await self._authenticate(connection)
        if caller is None:
            raise Unauthorized("Send an API key or a token: `Authorization: Bearer …`")
        if scope is not None and not caller.may(scope):
            raise Forbidden(f"The caller lacks the scope {scope.value!r}", scope=scope.value)
        return caller


class Rule:
    """What a route asks of its callers; a FastAPI dependency that gives the caller."""

    def __init__(self, scope: Scope | None, *, ticket: bool = False) -> None:
        self.scope = scope
        self.ticket = ticket
        """Whether a ticket will do."""

    async def __call__(self, connection: HTTPConnection) -> Caller:
        gate: Gate = connection.scope[_PLACE]
        try:
            return await gate.admit(connection, self.scope, ticket=self.ticket)
        except (Unauthorized, Forbidden) as error:
            if not isinstance(connection, WebSocket):
                raise
            await connection.accept()  # before that, a refusal reaches a browser as nothing but "it failed"
            code = UNAUTHORIZED_CLOSE if isinstance(error, Unauthorized) else FORBIDDEN_CLOSE
            raise WebSocketException(code, error.detail) from None


async def _everybody() -> None:
    """The rule of a route that asks for nothing."""


PUBLIC: params.Depends = Depends(_everybody)
Known = Annotated[Caller, Depends(Rule(None))]
Submitter = Annotated[Caller, Depends(Rule(Scope.SUBMIT))]
Reader = Annotated[Caller, Depends(Rule(Scope.READ))]
Watcher = Annotated[Caller, Depends(Rule(Scope.READ, ticket=True))]
Canceller = Annotated[Caller, Depends(Rule(Scope.CANCEL))]
WebhookKeeper = Annotated[Caller, Depends(Rule(Scope.WEBHOOKS))]
MetricsReader = Annotated[Caller, Depends(Rule(Scope.METRICS))]
Admin = Annotated[Caller, Depends(Rule(Scope.ADMIN))]


def rule_of(dependency: object) -> Rule | None:
    """The rule, if the dependency is one. Raises LookupError if it has nothing to do with rules."""
    if isinstance(dependency, Rule):
        return dependency
    if dependency is _everybody:
        return None
    raise LookupError


def authenticate_by(settings: AuthSettings, client: Redis, *, origins: Container[str] = ()) -> Authenticate:
    """Who is asking, as the settings say. `origins`: of pages on other machines that may use an open service."""
    if settings.asks:
        return _Credentials(KeyBook(client), _token_book(settings))
    return _anybody if settings.auth == "open" else _AnybodyHere(origins)


def _token_book(settings: AuthSettings) -> TokenBook | None:
    if settings.jwt_jwks_url is None:
        return None
    rules = TokenRules(
        issuer=settings.jwt_issuer or "",
        audience=settings.jwt_audience or "",
        algorithms=settings.algorithms,
        leeway=settings.jwt_leeway_seconds,
        tenant_claim=settings.jwt_tenant_claim,
        scope_claim=settings.jwt_scope_claim,
        scope_prefix=settings.jwt_scope_prefix,
    )
    return TokenBook(KeySet.at(settings.jwt_jwks_url), rules)


async def _anybody(connection: HTTPConnection) -> Caller:
    return ANYBODY


class _AnybodyHere:
    """Nobody has decided: development. Who sits at this machine may do everything, and nobody else anything.

    An app that is served in another way than ours may listen anywhere, a proxy may stand in front, and every page that
    is open in the browser here can send requests: by a form, or by a name that it lets point to this machine.
    """

    def __init__(self, origins: Container[str]) -> None:
        self._origins = origins

    async def __call__(self, connection: HTTPConnection) -> Caller:
        server: tuple[str, int | None] | None = connection.scope.get("server")
        headers = connection.headers
        if server is not None and server[1] is not None and _is_address(server[0]):
            if not is_loopback(server[0]):
                raise Unauthorized("The service has no authentication, and only answers on a loopback address")
            if _is_elsewhere(headers.get("host", "")):
                raise Unauthorized("The service has no authentication, and only answers to a loopback host name")
        if "x-forwarded-for" in headers or "forwarded" in headers:
            raise Unauthorized("The service has no authentication, and does not answer through a proxy")
        origin = headers.get("origin")
        changes = connection.scope.get("method") not in _SAFE  # a WebSocket has no method, and may cancel
        known = origin is None or origin in self._origins or "*" in self._origins or _is_here(origin)
        if changes and not known:
            raise Unauthorized("The service has no authentication, and takes no orders from pages of other machines")
        return ANYBODY


_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@lru_cache(maxsize=256)
def _is_here(url: str) -> bool:
    """True for an origin of this machine."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return is_loopback(host) or host.endswith(".localhost")


@lru_cache(maxsize=256)
def _is_elsewhere(host: str) -> bool:
    """True for a domain name that is not this machine's own. One without a dot nobody else can let point here."""
    name = host.rpartition(":")[0] or host
    return "." in name and not _is_here(f"//{host}")


def _is_address(host: str) -> bool:
    return ":" in host or host.rpartition(".")[2].isdecimal()


class _Credentials:
    """`Authorization: Bearer …` or `X-API-Key: …`."""

    def __init__(self, keys: KeyBook, tokens: TokenBook | None) -> None:
        self._keys = keys
        self._tokens = tokens

    async def __call__(self, connection: HTTPConnection) -> Caller | None:
        text = _credentials(connection)
        if text is None:
            return None
        if self._tokens is None or text.startswith(apikeys.PREFIX):
            return await self._keys.caller(text)
        return await self._tokens.caller(text)


def _credentials(connection: HTTPConnection) -> str | None:
    authorization = connection.headers.get("authorization")
    if authorization is None:
        return connection.headers.get("x-api-key")
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("Authorization must be `Bearer` and a key or a token", given=True)
    return text.strip()
