"""A Redis whose subscribers lose, or hold back, what a test says."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import redis as sync_redis
from arq.connections import ArqRedis
from redis.asyncio import Redis

from jobstream import keys
from jobstream.events import JobEvent, parse_message
from jobstream.journal import parse_entry
from jobstream.redis import RedisKind, RedisSource
from jobstream.subscription import Hear, Subscription


class LossySource:
    """A `RedisSource` like the one that it wraps, but for messages that tell of events on the way to a subscriber.

    `drops` says which of them are lost; while `open` is cleared none is delivered.
    """

    def __init__(self, source: RedisSource) -> None:
        self._source = source
        self.kind: RedisKind = source.kind
        self.drops: Callable[[JobEvent], bool] = lambda event: False
        self.dropped: list[JobEvent] = []
        self.open = asyncio.Event()
        self.open.set()
        self._late: asyncio.Task[None] | None = None

    def client(self) -> ArqRedis:
        return self._source.client()

    def subscriber(self) -> Redis:
        return self._source.subscriber()

    async def subscription(self, hear: Hear) -> Subscription:
        kept: deque[tuple[bytes, bytes, bytes]] = deque()

        async def pass_on_later() -> None:
            while kept:
                await self.open.wait()
                hear(*kept.popleft())

        def lossy(kind: bytes, channel: bytes, data: bytes) -> None:
            if kind == b"message" and self._is_lost(channel, data):
                return
            kept.append((kind, channel, data))
            if self.open.is_set() and len(kept) == 1:
                hear(*kept.popleft())
            elif self._late is None or self._late.done():
                self._late = asyncio.create_task(pass_on_later())

        return await self._source.subscription(lossy)

    def sync_client(self) -> sync_redis.Redis:
        return self._source.sync_client()

    def describe(self) -> str:
        return self._source.describe()

    def _is_lost(self, channel: bytes, data: bytes) -> bool:
        event = parse_entry(data).event if channel.decode() == keys.JOURNAL_ENTRY else parse_message(data)
        if self.drops(event):
            self.dropped.append(event)
            return True
        return False
