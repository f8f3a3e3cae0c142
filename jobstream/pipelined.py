"""An ArqRedis whose single commands share one connection: all that are sent in a turn of the loop travel together.

An awaited redis-py call takes a connection of its own and costs about 100 µs of CPU; here it costs a few, because the
bytes of one turn are written at once and parsed by hiredis in one go. redis-py still makes the connection (TLS, AUTH,
SELECT, Sentinel) and still serves pipelines, transactions and pub/sub from its pool.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Self, cast

import hiredis
from arq.connections import ArqRedis
from redis import exceptions
from redis._parsers.base import BaseParser
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.client import EMPTY_RESPONSE, NEVER_DECODE

_NOTHING_YET = object()

_OF_THEIR_OWN = frozenset(
    "BLPOP BRPOP BLMOVE BRPOPLPUSH BLMPOP BZPOPMIN BZPOPMAX BZMPOP XREAD XREADGROUP WAIT WAITAOF "
    "SELECT AUTH HELLO MULTI EXEC DISCARD WATCH UNWATCH".split()
)
"""Commands that would hold up, or change, the connection for all others: they take one from the pool."""

_ENOUGH = 16
"""Commands that do not wait for the end of the loop's turn: Redis begins with them while we prepare the next ones."""


class Link(asyncio.Protocol):
    """One connection. Calls are answered in order; a call that waits longer than `timeout` s ends the connection."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=exceptions.InvalidResponse,
            replyError=BaseParser.parse_error,
            notEnoughData=_NOTHING_YET,
        )
        self._connection: AbstractConnection | None = None
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._unsent: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._clock: asyncio.TimerHandle | None = None
        self._lost: Exception | None = None

    @classmethod
    def take_over(cls, connection: AbstractConnection, timeout: float) -> Self:
        """Take the transport of a connection that redis-py has made and greeted."""
        link = cls(timeout)
        assert connection._writer is not None
        link._connection = connection
        link._transport = cast(asyncio.Transport, connection._writer.transport)
        link._transport.set_protocol(link)
        return link

    @property
    def lost(self) -> bool:
        """True when it can be used no more."""
        return self._lost is not None

    async def call(self, *command: Any, hurry: bool = False, patience: float = 0.0) -> Any:
        """Send a command and await its reply; an error reply is raised.

        `hurry`: send it, and all that waits, now and not at the end of the loop's turn: Redis works while we do.
        `patience`: seconds to wait, if more than the timeout. What was sent after it waits behind it.

        Raises redis-py's ConnectionError or TimeoutError when the connection ends first: then it is not known whether
        the command was executed.
        """
        if not self._writable.is_set():  # the server reads slower than we write: memory must stay bounded
            await self._writable.wait()
        if self._lost is not None:
            raise self._lost
        packed = hiredis.pack_command(command)  # before anything is noted: it refuses what Redis cannot take
        answer = self._loop.create_future()
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(packed)
        if hurry or len(self._unsent) >= _ENOUGH:
            self._flush()
        self._waiting.append((answer, self._loop.time() + max(self._timeout, patience)))
        if self._clock is None:
            self._clock = self._loop.call_later(self._timeout, self._check_deadline)
        reply = await answer
        if isinstance(reply, Exception):
            # It has become a replica: whoever connects anew finds the primary. (Redis 6 quotes a script's error.)
            if isinstance(reply, exceptions.ReadOnlyError) or "-READONLY" in str(reply):
                self._end(exceptions.ConnectionError("The server has become a replica"))
            raise reply
        return reply

    def close(self) -> None:
        """End the connection; whoever waits gets a ConnectionError."""
        self._end(exceptions.ConnectionError("The connection was closed"))

    def _flush(self) -> None:
        if self._transport is not None and self._unsent:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        """asyncio: replies have come."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _NOTHING_YET:
                answer, _ = self._waiting.popleft()
                if not answer.done():  # else its caller was cancelled
                    answer.set_result(reply)
        except (exceptions.InvalidResponse, IndexError) as error:
            self._end(exceptions.ConnectionError(f"Redis sent what nobody asked for: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the connection has ended."""
        self._end(exceptions.ConnectionError(f"Connection to Redis lost: {error or 'closed by the server'}"))

    def pause_writing(self) -> None:
        """asyncio: the send buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """asyncio: the send buffer has room."""
        self._writable.set()

    def _check_deadline(self) -> None:
        self._clock = None
        if not self._waiting:
            return
        left = self._waiting[0][1] - self._loop.time()
        if left <= 0:
            self._end(exceptions.TimeoutError("Redis did not answer in time"))
        else:
            self._clock = self._loop.call_later(left, self._check_deadline)

    def _end(self, error: Exception) -> None:
        if self._lost is not None:
            return
        self._lost = error
        self._writable.set()
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if self._transport is not None:
            self._transport.abort()
        if self._connection is not None:  # else redis-py warns of a connection that was not closed
            self._connection._reader = self._connection._writer = None
        while self._waiting:
            answer, _ = self._waiting.popleft()
            if not answer.done():
                answer.set_result(error)


class PipelinedRedis(ArqRedis):
    """ArqRedis with `execute_command` on a shared link. A command that loses its connection is tried once more."""

    def __init__(self, *args: Any, timeout: float = 2.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeout = timeout
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._closed = False

    @classmethod
    def of_pool(cls, pool: ConnectionPool, *, timeout: float) -> Self:
        """A client that owns the pool: `aclose()` closes all connections."""
        client = cls(pool, timeout=timeout)
        client.auto_close_connection_pool = True
        return client

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command, as redis-py's method of that name does."""
        if args[0] in _OF_THEIR_OWN:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        for name in (NEVER_DECODE, EMPTY_RESPONSE, "keys"):
            options.pop(name, None)
        callback = self.response_callbacks.get(args[0])
        if " " in args[0]:  # redis-py's names of two words: `SCRIPT LOAD`
            args = (*args[0].split(), *args[1:])
        hurry, patience = options.pop("hurry", False), options.pop("patience", 0.0)
        link = self._link
        if link is None or link.lost:
            link = await self._connected()
        try:
            reply = await link.call(*args, hurry=hurry, patience=patience)
        except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
            if isinstance(error, exceptions.BusyLoadingError | exceptions.TimeoutError) or not link.lost:
                raise
            reply = await (await self._connected()).call(*args, patience=patience)
        return callback(reply, **options) if callback is not None else reply

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the link and, when the client owns it, the pool."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._link.close()
        await super().aclose(close_connection_pool)

    async def _connected(self) -> Link:
        """The link, made anew when there is none; whoever comes meanwhile waits for the same one."""
        if self._link is not None and not self._link.lost:
            return self._link
        if self._closed:
            raise exceptions.ConnectionError("The client was closed")
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Link:
        connection: AbstractConnection = self.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        async with asyncio.timeout(2 * self._timeout):  # a frozen server accepts, and then says nothing
            await connection.connect()  # type: ignore[no-untyped-call]
        if self._link is not None:  # what ended the link before concerns the idle connections too
            await self.connection_pool.disconnect(inuse_connections=False)
        self._link = Link.take_over(connection, self._timeout)
        return self._link
