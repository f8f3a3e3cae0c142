"""The edge: what lies between uvicorn and our app, so that an open event stream holds no more than it needs.

A request that waits inside the framework keeps a dozen frames, middlewares and the request itself in memory, and every
write goes through them. An event stream leaves all that behind: it starts its response, asks the edge to stay, and
returns; the edge's own call, one frame below uvicorn's, then waits for the client to go.

This leans on uvicorn: its `send` puts bytes into the transport and waits only when the transport is full, and the
transport is an attribute of what `send` and `receive` are bound to. Behind any other server, use no edge.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobstream_api.live.stream import EDGE, EventStream

SEND_BUFFER = 32 * 1024
"""Bytes that the system keeps for a stream whose client does not read (it doubles them); more wait in the job's log."""

WRITE_BUFFER = 16 * 1024
"""Bytes that wait in this process for the system to take them; then a write waits."""


class _Stay:
    """The edge of one request."""

    __slots__ = ("send", "stream")

    def __init__(self, send: Send) -> None:
        self.send = send
        self.stream: EventStream | None = None

    def stay(self, stream: EventStream) -> None:
        self.stream = stream
        transport = _transport(self.send)
        if transport is None:
            return
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def abort(self) -> None:
        transport = _transport(self.send)
        if transport is not None:
            transport.abort()


class Edge:
    """The app to hand to uvicorn."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stay = _Stay(send)
        await self._serve(stay, scope, receive)
        stream = stay.stream
        if stream is None:
            return
        # uvicorn keeps the scope as long as the connection; it needs the method only.
        method = scope["method"]
        scope["headers"].clear()
        scope.clear()
        scope["method"] = method
        del stay, scope, send
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            stream.close()

    async def _serve(self, stay: _Stay, scope: Scope, receive: Receive) -> None:
        async def send(message: Message) -> None:
            # Middleware that copies a response says it is complete when the app returns; the stream knows better.
            if stay.stream is None or message["type"] != "http.response.body":
                await stay.send(message)

        inner = {**scope, "extensions": {**scope.get("extensions", {}), EDGE: stay}}
        await self._app(inner, receive, send)


def _transport(send: Send) -> asyncio.Transport | None:
    cycle: Any = getattr(send, "__self__", None)
    transport = getattr(cycle, "transport", None)
    return cast("asyncio.Transport", transport) if hasattr(transport, "set_write_buffer_limits") else None
