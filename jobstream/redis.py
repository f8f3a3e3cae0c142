"""From settings to Redis clients with timeouts, keepalive and retries; and which errors mean "Redis is away"."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import Any, Literal, Protocol, cast

import redis as sync_redis
import redis.asyncio as aio_redis
from arq.connections import ArqRedis
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.retry import Retry as SyncRetry

from jobstream.errors import ConfigurationError
from jobstream.pipelined import PipelinedRedis
from jobstream.sentinel import SCHEMES, SentinelUrl
from jobstream.subscription import Hear, Subscription

RedisKind = Literal["external", "child", "fake"]

DURABILITY = {
    "external": "as durable as that server is configured to be",
    "child": "append-only file, fsync every second: survives a crash, a power cut may lose the last second",
    "fake": "in memory of one process: everything is gone at exit, for development only",
}
"""What each kind of Redis means for the jobs, in words."""

UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    asyncio.TimeoutError,
    OSError,
)
"""Errors that pass by themselves when Redis is back (`ResponseError`s need `is_unavailable`)."""

_PASSING_REPLY = re.compile(r"(?:^|-)(?:MISCONF|NOREPLICAS|MASTERDOWN|OOM|READONLY|LOADING|UNBLOCKED|CLUSTERDOWN)\b")
"""Error codes of Redis; before version 7 a script's error quotes them as `-CODE` in the middle."""


def is_unavailable(error: BaseException) -> bool:
    """True when `error` says that Redis is away, full or read-only for the moment, not that a command was wrong."""
    # On a Unix socket redis-py wraps a refused password in a ConnectionError.
    refused = exceptions.AuthenticationError | exceptions.AuthorizationError
    if isinstance(error, refused) or isinstance(error.__cause__, refused):
        return False
    if isinstance(error, UNAVAILABLE):
        return True
    return isinstance(error, exceptions.ResponseError) and _PASSING_REPLY.search(str(error)) is not None


class RedisSettings(BaseSettings):
    """Where Redis is and how long to wait for it."""

    model_config = SettingsConfigDict(env_prefix="JOBSTREAM_", env_file=".env", extra="ignore", env_ignore_empty=True)

    redis_url: str | None = Field(
        None,
        description="redis://, rediss:// or unix:// URL; user, password and path percent-encoded. With Sentinels "
        "redis+sentinel://host:26379,host:26379/primary's name/database. "
        "Required outside `jobstream dev` and `jobstream demo`.",
    )
    redis_kind: RedisKind = Field(
        "external", description="Set by `jobstream dev` for the processes that it starts; leave it alone."
    )
    redis_timeout: float = Field(2.0, gt=0, description="Seconds to wait for an answer of Redis.")
    redis_connect_timeout: float = Field(1.0, gt=0, description="Seconds to wait for a connection to Redis.")
    redis_max_connections: int = Field(50, ge=4, description="Connections a process may hold.")


class RedisSource(Protocol):
    """Where clients come from: a server at a URL, or fakeredis in this process."""

    @property
    def kind(self) -> RedisKind: ...
    def client(self) -> ArqRedis:
        """A new asyncio client with a pool of its own; close it with `aclose()`."""

    def subscriber(self) -> aio_redis.Redis:
        """A new asyncio client for pub/sub: no read timeout, since silence is normal there."""

    async def subscription(self, hear: Hear) -> Subscription:
        """A new connection that hears what is published. Raises redis-py's errors."""

    def sync_client(self) -> sync_redis.Redis:
        """A new blocking client for a thread of its own."""

    def describe(self) -> str:
        """One line for people: kind, address without secrets, durability."""


class UrlSource:
    """A Redis server at a URL."""

    def __init__(
        self,
        url: str,
        *,
        kind: RedisKind = "external",
        timeout: float = 2.0,
        connect_timeout: float = 1.0,
        max_connections: int = 50,
    ) -> None:
        self.kind: RedisKind = kind
        self._url = _checked(url)
        self._options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": connect_timeout,
            "max_connections": max_connections,
            # OSError: a refused connection is raised as such inside redis-py's connect.
            "retry_on_error": [
                exceptions.ConnectionError,
                exceptions.TimeoutError,
                exceptions.BusyLoadingError,
                OSError,
            ],
        }
        self._sentinels = SentinelUrl.parse(self._url) if self._url.partition("://")[0] in SCHEMES else None
        if not self._url.startswith("unix:"):
            self._options["socket_keepalive"] = True
        if self._url.startswith("rediss"):
            self._options["ssl_check_hostname"] = True  # off by default in redis-py 5: any certificate would do

    @classmethod
    def from_settings(cls, settings: RedisSettings) -> UrlSource:
        """The configured server. Raises ConfigurationError when no URL is set."""
        if not settings.redis_url:
            raise ConfigurationError(
                "JOBSTREAM_REDIS_URL is not set. Set it to your Redis, or use `jobstream dev`, which brings its own."
            )
        return cls(
            settings.redis_url,
            kind=settings.redis_kind,
            timeout=settings.redis_timeout,
            connect_timeout=settings.redis_connect_timeout,
            max_connections=settings.redis_max_connections,
        )

    def client(self) -> ArqRedis:
        options = self._options | {"timeout": self._options["socket_timeout"], "retry": _retry()}
        if self._sentinels is not None:
            pool = self._sentinels.pool(**options)
        else:
            pool = aio_redis.BlockingConnectionPool.from_url(self._url, **options)
        return PipelinedRedis.of_pool(pool, timeout=self._options["socket_timeout"])

    def subscriber(self) -> aio_redis.Redis:
        options = self._options | {"socket_timeout": None, "retry_on_error": []}  # its user knows what it subscribed to
        options["retry"] = Retry(ExponentialBackoff(), 0)
        if self._sentinels is not None:
            return aio_redis.Redis.from_pool(self._sentinels.pool(**options))
        return aio_redis.Redis.from_pool(aio_redis.ConnectionPool.from_url(self._url, **options))

    async def subscription(self, hear: Hear) -> Subscription:
        return await Subscription.open(self.subscriber(), hear)

    def sync_client(self) -> sync_redis.Redis:
        retry = SyncRetry(ExponentialBackoff(cap=0.1, base=0.05), 1)
        if self._sentinels is not None:
            return sync_redis.Redis.from_pool(self._sentinels.sync_pool(retry=retry, **self._options))
        return sync_redis.Redis.from_url(self._url, retry=retry, **self._options)

    def describe(self) -> str:
        return f"{self.kind} Redis at {masked(self._url)}: {DURABILITY[self.kind]}"


async def time_ms(client: aio_redis.Redis) -> int:
    """Redis's time in ms since the epoch: the clock of all leases, expiries and schedules."""
    seconds, microseconds = await cast("Awaitable[tuple[int, int]]", client.time())
    return seconds * 1000 + microseconds // 1000


def masked(url: str) -> str:
    """The URL without user and password, fit for a log."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def _retry() -> Retry:
    """Once more, at once: a connection that was closed under us. Whoever can wait longer decides that himself."""
    return Retry(ExponentialBackoff(cap=0.1, base=0.05), 1)


def _checked(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme == "valkey":
        return "redis" + url.removeprefix("valkey")
    if scheme == "valkeys":
        return "rediss" + url.removeprefix("valkeys")
    if scheme in SCHEMES:
        return url
    if scheme not in ("redis", "rediss", "unix"):
        raise ConfigurationError(
            "JOBSTREAM_REDIS_URL must begin with redis://, rediss://, unix:// or redis+sentinel://"
        )
    try:
        aio_redis.ConnectionPool.from_url(url)
    except ValueError as error:
        # redis-py's message may quote the URL, password and all.
        raise ConfigurationError(
            "JOBSTREAM_REDIS_URL cannot be understood; percent-encode special characters in user and password"
        ) from error
    return url
