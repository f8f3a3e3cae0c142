"""A Redis whose subscribers lose, or hold back, what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import redis as sync_redis
from arq.connections import ArqRedis
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from jobstream import keys
from jobstream.events import JobEvent, parse_message
from jobstream.journal import parse_entry
from jobstream.redis import RedisKind, RedisSource


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

    def client(self) -> ArqRedis:
        return self._source.client()

    def subscriber(self) -> Redis:
        client = self._source.subscriber()
        client.pubsub = lambda **options: _LossyPubSub(self, client)  # type: ignore[method-assign]
        return client

    def sync_client(self) -> sync_redis.Redis:
        return self._source.sync_client()

    def describe(self) -> str:
        return self._source.describe()

    async def pass_on(self, channel: bytes, data: bytes) -> bool:
        """True when the message is to be delivered, once it may be."""
        event = parse_entry(data).event if channel.decode() == keys.JOURNAL_ENTRY else parse_message(data)
        if self.drops(event):
            self.dropped.append(event)
            return False
        await self.open.wait()
        return True


class _LossyPubSub(PubSub):
    def __init__(self, source: LossySource, client: Redis) -> None:
        super().__init__(client.connection_pool)
        self._lossy = source

    async def handle_message(self, response: Any, ignore_subscribe_messages: bool = False) -> Any:
        message = await super().handle_message(response, ignore_subscribe_messages)  # type: ignore[no-untyped-call]
        if message is None or message["type"] != "message":
            return message
        return message if await self._lossy.pass_on(message["channel"], message["data"]) else None
