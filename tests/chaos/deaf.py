"""A way to Redis on which messages to subscribers get lost: what was published is not heard, and nobody is told."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Self

from jobstream.cancellation import cancel

MESSAGE = b"*3\r\n$7\r\nmessage\r\n"


class DeafWay:
    """Passes connections on to a Redis; on those that subscribe a `share` of the messages is lost (`lost` counts)."""

    def __init__(self, target: int, chance: random.Random) -> None:
        self.target = target
        self.port = 0
        self.share = 0.0
        self.lost = 0
        self._chance = chance
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await cancel(*self._links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._link(reader, writer)
        finally:
            writer.close()
            self._links.discard(task)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self.target)
        subscribes = asyncio.Event()
        ways = [
            asyncio.create_task(_upwards(reader, to_server, subscribes)),
            asyncio.create_task(self._downwards(server, writer, subscribes)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*ways)
            to_server.close()

    async def _downwards(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, subscribes: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError, EOFError):
            while not subscribes.is_set():  # up to here answers are awaited, so that none is cut in two by what follows
                if not (data := await server.read(1 << 16)):
                    return
                writer.write(data)
                await writer.drain()
            while reply := await _reply(server):
                if reply.startswith(MESSAGE) and self._chance.random() < self.share:
                    self.lost += 1
                    continue
                writer.write(reply)
                await writer.drain()


async def _upwards(reader: asyncio.StreamReader, to_server: asyncio.StreamWriter, subscribes: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            if b"SUBSCRIBE" in data:
                subscribes.set()
            to_server.write(data)
            await to_server.drain()


async def _reply(server: asyncio.StreamReader) -> bytes:
    """The bytes of one reply (RESP2); none at the end."""
    reply = await server.readline()
    if reply.startswith(b"*"):
        return reply + b"".join([await _reply(server) for _ in range(int(reply[1:]))])
    if reply.startswith(b"$") and (length := int(reply[1:])) >= 0:
        return reply + await server.readexactly(length + 2)
    return reply
