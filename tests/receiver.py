"""A receiver of webhooks on a loopback address: it notes what comes, and answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Received:
    """A request."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def message(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Receiver:
    """Answers 204, unless `answers` of the path has something else: whole answers, of which the last one stays."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.received: list[Received] = []
        self.answers: dict[str, list[bytes]] = {}
        self.held: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """Paths that begin with /held are answered when their event is set."""
        self.open: defaultdict[str, int] = defaultdict(int)
        self.most_open: defaultdict[str, int] = defaultdict(int)
        self.changed = asyncio.Condition()

    def at(self, path: str) -> list[Received]:
        """What came there."""
        return [request for request in self.received if request.path == path]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what has come makes it true."""
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(condition)

    async def first(self, path: str, count: int = 1) -> list[Received]:
        """The first requests there."""
        await self.until(lambda: len(self.at(path)) >= count)
        return self.at(path)[:count]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                path = first.split()[1]
                self.open[path] += 1
                self.most_open[path] = max(self.open[path], self.most_open[path])
                async with self.changed:
                    self.received.append(Received(path, headers, body, time.monotonic()))
                    self.changed.notify_all()
                try:
                    if path.startswith("/held"):
                        await self.held[path].wait()
                finally:
                    self.open[path] -= 1
                answers = self.answers.get(path, [b""])
                writer.write(answers.pop(0) if len(answers) > 1 else answers[0] or answer(204))
                await writer.drain()
        writer.close()


def answer(status: int, **headers: str) -> bytes:
    """An answer without a body."""
    lines = [f"HTTP/1.1 {status} X", "Content-Length: 0"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver, until the block ends."""
    made: list[Receiver] = []
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with contextlib.suppress(asyncio.CancelledError):  # the test is over, and somebody was still held
            await made[0].serve(reader, writer)
        connections.discard(task)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    made.append(Receiver(server.sockets[0].getsockname()[1]))
    try:
        yield made[0]
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
