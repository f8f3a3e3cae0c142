"""Redis in this process's memory, for demonstrations and tests where no server is installed: nothing is kept."""

from __future__ import annotations

from typing import cast

import redis as sync_redis
import redis.asyncio as aio_redis
from arq.connections import ArqRedis

from jobstream.errors import ConfigurationError
from jobstream.redis import DURABILITY, RedisKind
from jobstream.subscription import Hear, Subscription


class FakeSource:
    """A `RedisSource` whose clients share one fakeredis in this process. It opens no port and writes no file.

    Clients may live in several threads and event loops. Raises ConfigurationError when fakeredis is not installed.
    """

    def __init__(self) -> None:
        try:
            from jobstream.fake_engine import Engine
        except ImportError as error:
            raise ConfigurationError(
                f"Redis in memory needs fakeredis ({error}): install it with `pip install 'jobstream[dev-redis]'`, "
                "or install redis-server or valkey-server"
            ) from error
        self.kind: RedisKind = "fake"
        self._engine = Engine()

    def client(self) -> ArqRedis:
        """A new asyncio client with a pool of its own; close it with `aclose()`."""
        return cast(ArqRedis, ArqRedis.from_pool(self._engine.async_pool()))

    def subscriber(self) -> aio_redis.Redis:
        """A new asyncio client for pub/sub."""
        return aio_redis.Redis.from_pool(self._engine.async_pool())

    async def subscription(self, hear: Hear) -> Subscription:
        """A new connection that hears what is published."""
        return await Subscription.open(self.subscriber(), hear)

    def sync_client(self) -> sync_redis.Redis:
        """A new blocking client for a thread of its own."""
        return sync_redis.Redis.from_pool(self._engine.sync_pool())

    def describe(self) -> str:
        """One line for people."""
        return f"{self.kind} Redis in this process: {DURABILITY[self.kind]}"
