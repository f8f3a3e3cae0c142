"""A connection that hears what is published: a message costs a call, and neither a task nor an object of redis-py's.

redis-py makes the connection (TLS, AUTH, Sentinel). Then its transport is taken over, and hiredis parses what comes. A
connection without a transport, as fakeredis has it, is read by a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self, cast

import hiredis
from redis import exceptions
from redis._parsers.base import BaseParser
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from jobstream.cancellation import cancel

Hear = Callable[[bytes, bytes, bytes], None]
"""Is told what comes: its kind (`message`, `subscribe`, `unsubscribe`), the channel, the data. It must not wait."""

SLICE = 64
"""Messages heard in one go: others have their turn in between."""

_NOTHING_YET = object()


class Subscription(asyncio.Protocol):
    """`open` it, and `aclose` it in the end. Whatever ends it before shows in `ended`."""

    def __init__(self, client: Redis, connection: AbstractConnection, hear: Hear) -> None:
        self._client = client
        self._connection = connection
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=exceptions.InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_NOTHING_YET
        )
        self._transport: asyncio.Transport | None = None
        self._pulling: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._busy = False
        """There is more than one slice to hear, so nothing is read for the time being."""
        self._end: asyncio.Future[None] = self._loop.create_future()
        self.heard = False
        """Set whenever something comes, for those who clear it."""

    @classmethod
    async def open(cls, client: Redis, hear: Hear) -> Self:
        """Connect; the client is closed with the subscription. Raises redis-py's errors; it has no deadline."""
        connection: AbstractConnection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await client.aclose()
            raise
        subscription = cls(client, connection, hear)
        subscription._begin()
        return subscription

    async def subscribe(self, *channels: str) -> None:
        """Ask to hear these. Each is acknowledged by a `subscribe`."""
        await self._send("SUBSCRIBE", *channels)

    async def unsubscribe(self, *channels: str) -> None:
        """Ask to hear these no more."""
        await self._send("UNSUBSCRIBE", *channels)

    async def ping(self) -> None:
        """Ask for an answer; it sets `heard`."""
        await self._send("PING")

    async def ended(self) -> None:
        """Wait for the end, and raise why it came: redis-py's errors, or what `hear` has raised."""
        await asyncio.shield(self._end)

    async def aclose(self) -> None:
        """End it, if it has not ended."""
        self._finish(exceptions.ConnectionError("The subscription was closed"))
        if self._pulling is not None:
            await cancel(self._pulling)
            await self._connection.disconnect()
        await self._client.aclose()

    # --- what asyncio calls -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """asyncio: something has come."""
        self.heard = True
        self._reader.feed(data)
        if not self._busy:
            self._take_slice()

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the connection has ended."""
        self._finish(exceptions.ConnectionError(f"Connection to Redis lost: {error or 'closed by the server'}"))

    def pause_writing(self) -> None:
        """asyncio: the send buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """asyncio: the send buffer has room."""
        self._writable.set()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        writer = getattr(self._connection, "_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            self._transport = cast(asyncio.Transport, writer.transport)
            self._transport.set_protocol(self)
        else:
            self._pulling = self._loop.create_task(self._pull(), name="subscription-pull")

    async def _send(self, *command: Any) -> None:
        if self._transport is None:
            await self._connection.send_command(*command)
            return
        await self._writable.wait()  # a server that does not read must not cost memory
        self._transport.write(hiredis.pack_command(command))

    def _take_slice(self) -> None:
        transport = self._transport
        assert transport is not None
        try:
            for _ in range(SLICE):
                reply = self._reader.gets()
                if reply is _NOTHING_YET:
                    if self._busy:
                        self._busy = False
                        transport.resume_reading()
                    return
                self._take(reply)
        except Exception as error:
            self._finish(error)
            return
        if not self._busy:
            self._busy = True
            transport.pause_reading()
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._end.done():
            self._take_slice()

    async def _pull(self) -> None:
        try:
            while True:
                reply = await self._connection.read_response()
                self.heard = True
                self._take(reply)
        except Exception as error:
            self._finish(error)

    def _take(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, list) and len(reply) == 3:  # else the answer to a PING
            self._hear(*reply)

    def _finish(self, error: Exception) -> None:
        if self._end.done():
            return
        self._end.set_exception(error)
        self._end.exception()  # nobody may ask
        self._writable.set()
        if self._transport is not None:
            self._transport.abort()
            self._connection._reader = self._connection._writer = None  # else redis-py warns that it was not closed
