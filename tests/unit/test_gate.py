"""The gate, without a service: who is let in when nobody has decided, by an app's own sessions, and by WebSocket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import HTTPConnection
from starlette.types import Message
from starlette.websockets import WebSocket

from jobstream.caller import ANYBODY, Caller, Scope
from jobstream.errors import ConfigurationError, Forbidden, Unauthorized
from jobstream.fake import FakeSource
from jobstream_api.auth.gate import Canceller, Gate, Rule, Watcher, authenticate_by
from jobstream_api.auth.settings import AuthSettings, check_exposure
from jobstream_api.auth.tickets import Tickets
from jobstream_api.main import create_server
from jobstream_api.settings import ApiSettings

READ = frozenset({Scope.READ})


def connection(
    server: tuple[str, int | None] | None = ("127.0.0.1", 80), kind: str = "http", **headers: str
) -> HTTPConnection:
    headers = {"host": "localhost", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection({"type": kind, "server": server, "headers": raw, "query_string": b"", "path_params": {}})


class TestACaller:
    def test_an_admin_may_do_all_and_sees_all(self) -> None:
        admin = Caller("ops", frozenset({Scope.ADMIN}))
        assert all(admin.may(scope) for scope in Scope)
        assert admin.sees is None

    def test_any_other_sees_its_tenants_jobs_and_may_what_its_scopes_say(self) -> None:
        reader = Caller("acme", READ)
        assert [scope for scope in Scope if reader.may(scope)] == [Scope.READ]
        assert reader.sees == "acme"

    @pytest.mark.parametrize("tenant", [None, "", "a b", "a\n", "é", "x" * 129])
    def test_one_that_would_see_everything_by_accident_cannot_be_made(self, tenant: str | None) -> None:
        with pytest.raises(ValueError, match="tenant"):
            Caller(tenant, READ)


class TestWhenNobodyHasDecided:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
    def test_a_service_on_a_loopback_address_starts(self, host: str) -> None:
        check_exposure(AuthSettings(), host)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", ""])
    def test_on_any_other_it_refuses_and_says_what_to_do(self, host: str) -> None:
        with pytest.raises(ConfigurationError, match="JOBSTREAM_AUTH=on"):
            create_server(ApiSettings(host=host), FakeSource())
        for settings in (
            AuthSettings(auth="on"),
            AuthSettings(auth="open"),
            AuthSettings(jwt_jwks_url="https://id.example.org/keys", jwt_issuer="i", jwt_audience="a"),
        ):
            check_exposure(settings, host)

    @pytest.mark.parametrize(
        ("headers", "method", "let_in"),
        [
            ({"host": "localhost:8000"}, "POST", True),
            ({"host": "app.localhost:8000"}, "GET", True),
            ({"host": "[::1]:8000", "origin": "http://localhost:5173"}, "POST", True),
            ({"host": "rebound.example.org:8000"}, "GET", False),
            ({"host": "127.0.0.1.example.org"}, "GET", False),
            ({"host": "10.1.2.3:8000"}, "GET", False),
            ({"host": "rebound.example.org:x"}, "GET", False),
            ({"host": "api:8000"}, "GET", True),
            ({}, "GET", True),
            ({"host": "127.0.0.1:8000", "origin": "https://example.org"}, "GET", True),
            ({"host": "127.0.0.1:8000", "origin": "https://example.org"}, "POST", False),
            ({"host": "127.0.0.1:8000", "origin": "https://example.org"}, None, False),
            ({"host": "127.0.0.1:8000", "origin": "null"}, "DELETE", False),
            ({"host": "127.0.0.1:8000", "origin": "https://allowed.example.org"}, "POST", True),
        ],
    )
    async def test_a_page_of_another_machine_gives_no_orders(
        self, headers: dict[str, str], method: str | None, let_in: bool
    ) -> None:
        who = authenticate_by(AuthSettings(), FakeSource().client(), origins=["https://allowed.example.org"])
        kind = "http" if method else "websocket"
        asking = connection(("127.0.0.1", 8000), kind, **{"host": "", **headers})
        asking.scope["method"] = method
        if let_in:
            assert await who(asking) is ANYBODY
        else:
            with pytest.raises(Unauthorized):
                await who(asking)

    async def test_an_app_that_listens_elsewhere_all_the_same_lets_nobody_in(self) -> None:
        who = authenticate_by(AuthSettings(), FakeSource().client())
        for server in (("127.0.0.1", 80), ("::1", 80), ("testserver", 80), ("/run/api.sock", None), None):
            assert await who(connection(server)) is ANYBODY
        for server in (("10.1.2.3", 80), ("2001:db8::1", 80), ("0.0.0.0", 80)):
            with pytest.raises(Unauthorized):
                await who(connection(server))

    @pytest.mark.parametrize("header", ["forwarded", "x_forwarded_for"])
    async def test_a_proxy_on_the_same_machine_is_not_let_in(self, header: str) -> None:
        client = FakeSource().client()
        through_proxy = connection(("127.0.0.1", 80), "http", **{header: "10.1.2.3"})
        with pytest.raises(Unauthorized):
            await authenticate_by(AuthSettings(), client)(through_proxy)
        assert await authenticate_by(AuthSettings(auth="open"), client)(through_proxy) is ANYBODY


class TestSettings:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"jwt_jwks_url": "https://id.example.org/keys"},
            {"jwt_jwks_url": "https://id.example.org/keys", "jwt_issuer": "i"},
            {"jwt_jwks_url": "http://id.example.org/keys", "jwt_issuer": "i", "jwt_audience": "a"},
            {"jwt_jwks_url": "file:///etc/keys", "jwt_issuer": "i", "jwt_audience": "a"},
            {"jwt_jwks_url": "https://id/k", "jwt_issuer": "i", "jwt_audience": "a", "jwt_algorithms": "RS256,HS256"},
            {"jwt_jwks_url": "https://id/k", "jwt_issuer": "i", "jwt_audience": "a", "jwt_algorithms": "none"},
            {"jwt_jwks_url": "https://id/k", "jwt_issuer": "i", "jwt_audience": "a", "jwt_algorithms": ""},
            {"jwt_jwks_url": "https://id/k", "jwt_issuer": "i", "jwt_audience": "a", "auth": "open"},
            {"ticket_secret": "too short"},
            {"auth": "off"},
        ],
    )
    def test_those_that_would_be_unsafe_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="1 validation error"):
            AuthSettings(**wrong)

    def test_secrets_are_not_shown(self) -> None:
        with pytest.raises(ValueError, match="ticket_secret") as raised:
            ApiSettings.model_validate({"ticket_secret": "hush"})
        assert "hush" not in str(raised.value)
        assert "hush" not in repr(ApiSettings.model_validate({"ticket_secret": "hush" * 8}))


class Guest:
    """Somebody's app, with sessions of its own."""

    def __init__(self, caller: Caller | None) -> None:
        async def authenticate(connection: HTTPConnection) -> Caller | None:
            return caller

        client = FakeSource().client()
        gate = Gate(authenticate, Tickets(client, "s" * 32, lifetime=60))
        router = APIRouter(dependencies=[Depends(gate)])
        self.seen: list[Caller] = []

        @router.get("/cancel")
        async def cancel(caller: Canceller) -> str:
            self.seen.append(caller)
            return "done"

        @router.websocket("/ws")
        async def websocket(websocket: WebSocket, caller: Watcher) -> None:
            self.seen.append(caller)
            await websocket.accept()
            await websocket.close(1000)

        self.app = FastAPI()
        self.app.include_router(router, prefix="/background")

    async def connect(self, query: bytes = b"") -> list[Message]:
        """What a WebSocket hears."""
        said: list[Message] = []
        messages: Iterator[Message] = iter([{"type": "websocket.connect"}])

        async def receive() -> Message:
            return next(messages)

        async def send(message: Message) -> None:
            said.append(message)

        scope = {"type": "websocket", "path": "/background/ws", "headers": [], "query_string": query, "root_path": ""}
        await self.app(scope, receive, send)
        return said


class TestWebSockets:
    async def test_who_may_is_let_in(self) -> None:
        guest = Guest(Caller("acme", READ))
        assert [message["type"] for message in await guest.connect()] == ["websocket.accept", "websocket.close"]
        assert guest.seen == [Caller("acme", READ)]

    @pytest.mark.parametrize(
        ("caller", "query", "code"),
        [
            (None, b"", 4401),
            (Caller("acme", READ), b"ticket=nonsense", 4401),
            (Caller("acme", frozenset({Scope.SUBMIT})), b"", 4403),
        ],
    )
    async def test_who_may_not_is_told_by_a_code(self, caller: Caller | None, query: bytes, code: int) -> None:
        guest = Guest(caller)
        accepted, closed = await guest.connect(query)
        assert accepted["type"] == "websocket.accept"
        assert (closed["type"], closed["code"]) == ("websocket.close", code)
        assert closed["reason"]
        assert guest.seen == []


async def test_an_admitted_caller_is_the_guests_own() -> None:
    async def nobody(connection: HTTPConnection) -> None:
        return None

    async def somebody(connection: HTTPConnection) -> Caller:
        return Caller("acme", READ)

    tickets = Tickets(FakeSource().client(), "s" * 32, lifetime=60)
    with pytest.raises(Unauthorized):
        await Gate(nobody, tickets).admit(connection(), None, ticket=False)
    assert await Gate(somebody, tickets).admit(connection(), Scope.READ, ticket=False) == Caller("acme", READ)
    with pytest.raises(Forbidden):
        await Gate(somebody, tickets).admit(connection(), Scope.CANCEL, ticket=False)
    assert Rule(Scope.READ).ticket is False
