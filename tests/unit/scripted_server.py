"""A server on loopback that answers each path by a script, well or badly, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Writes an answer; the connection is closed when it returns."""


class ScriptedServer:
    """What a script and a test may know of the server."""

    def __init__(self, scripts: Mapping[str, Script]) -> None:
        self.scripts = scripts
        self.port = 0
        self.heads: list[str] = []
        """The heads of all requests, in order."""
        self.connections: set[asyncio.Task[None]] = set()

    @property
    def paths(self) -> list[str]:
        """The paths asked for, in order."""
        return [head.split(" ")[1] for head in self.heads]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The address of a path."""
        return f"http://{host}:{self.port}{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                await self.scripts[self.paths[-1]](writer)
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def serving(scripts: Mapping[str, Script], *, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    """Serve on 127.0.0.1 until the block ends; scripts that still wait are ended with it."""
    scripted = ScriptedServer(scripts)
    listener = await asyncio.start_server(scripted.answer, "127.0.0.1", 0, ssl=tls)
    scripted.port = listener.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        listener.close()
        for connection in scripted.connections:
            connection.cancel()
        await asyncio.gather(*scripted.connections, return_exceptions=True)


def sends(*pieces: bytes) -> Script:
    """Write the pieces, and close."""

    async def script(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return script


def says(body: bytes, *, status: str = "200 OK", headers: str = "") -> Script:
    """A well-formed answer with a Content-Length."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return sends(head.encode() + body)


def redirects(location: str) -> Script:
    """A 302."""
    return says(b"", status="302 Found", headers=f"Location: {location}\r\n")


def stalls(*pieces: bytes) -> Script:
    """Write the pieces, and never another byte."""

    async def script(writer: asyncio.StreamWriter) -> None:
        await sends(*pieces)(writer)
        await asyncio.Event().wait()

    return script
