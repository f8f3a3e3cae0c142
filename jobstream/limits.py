"""Limits of tenants: how fast they may submit, how many of their jobs may run, what share of the workers is theirs."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Self, cast

from redis.asyncio import Redis

from jobstream import keys
from jobstream.caller import TENANT
from jobstream.errors import InvalidParameter

WEIGHT_MAX = 100

_RATE = re.compile(r"(\d{1,9})/(?:(\d{1,6})(s|m|h|d)?|(s|m|h|d))\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class Rate:
    """So many jobs in so many seconds, all at once if they come at once."""

    jobs: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """`100/m`, `1000/10m`, `5/30` (seconds); `0` or nothing: no limit. Raises ValueError."""
        if text in ("", "0"):
            return None
        match = _RATE.match(text)
        if match is None or int(match[1]) < 1 or int(match[2] or 1) < 1:
            raise ValueError(f"{text!r} is no rate: 100/m, 1000/10m or 5/30s")
        return cls(int(match[1]), int(match[2] or 1) * _SECONDS[match[3] or match[4] or "s"])

    def __str__(self) -> str:
        return f"{self.jobs}/{self.seconds}s" if self.jobs else "0"


UNLIMITED_RATE = Rate(0, 0)


@dataclass(frozen=True, kw_only=True)
class SubmitLimits:
    """What a submit is held to, unless something else was set for its tenant."""

    depth: int = 0
    """Jobs that a queue may hold; 0: any number."""
    rate: Rate | None = None
    """How fast a tenant may submit; None: as fast as it likes."""

    def encode(self) -> str:
        """As the scripts read it: depth, jobs, window (ms)."""
        return f"{self.depth} {self.rate.jobs} {self.rate.seconds * 1000}" if self.rate else f"{self.depth} 0 0"


NO_SUBMIT_LIMITS = SubmitLimits()


@dataclass(frozen=True, kw_only=True)
class TenantLimits:
    """What was set for one tenant; None: the settings' default. Raises InvalidParameter."""

    rate: Rate | None = None
    """How fast it may submit; `UNLIMITED_RATE`: as fast as it likes."""
    running: int | None = None
    """How many of its jobs may run at once; 0: any number."""
    weight: int | None = None
    """Its share of the workers, against 1 of others."""

    def __post_init__(self) -> None:
        if self.running is not None and self.running < 0:
            raise InvalidParameter("running is a whole number, 0 for no limit")
        if self.weight is not None and not 1 <= self.weight <= WEIGHT_MAX:
            raise InvalidParameter(f"weight is a whole number from 1 to {WEIGHT_MAX}")

    def encode(self) -> str:
        """As the scripts read it: jobs, window (ms), running, weight."""
        words = [None, None] if self.rate is None else [self.rate.jobs, self.rate.seconds * 1000]
        return " ".join("-" if word is None else str(word) for word in [*words, self.running, self.weight])

    @classmethod
    def decode(cls, text: str) -> Self:
        """The reverse of `encode`."""
        jobs, window, running, weight = (None if word == "-" else int(word) for word in text.split(" "))
        rate = None if jobs is None or window is None else Rate(jobs, window // 1000)
        return cls(rate=rate, running=running, weight=weight)


async def set_limits(client: Redis, tenant: str, limits: TenantLimits) -> None:
    """Replace what was set for a tenant. It counts from the next submit and claim on. Raises InvalidParameter."""
    if not TENANT.match(tenant):
        raise InvalidParameter("a tenant's name is 1 to 128 visible ASCII characters, without spaces")
    await cast("Awaitable[int]", client.hset(keys.LIMITS, tenant, limits.encode()))


async def clear_limits(client: Redis, tenant: str) -> bool:
    """Back to the settings' defaults; False when nothing was set."""
    return bool(await cast("Awaitable[int]", client.hdel(keys.LIMITS, tenant)))


async def get_limits(client: Redis, tenant: str) -> TenantLimits:
    """What was set for a tenant."""
    stored = await cast("Awaitable[bytes | None]", client.hget(keys.LIMITS, tenant))
    return TenantLimits() if stored is None else TenantLimits.decode(stored.decode())


async def list_limits(client: Redis) -> dict[str, TenantLimits]:
    """What was set, by tenant."""
    stored = await cast("Awaitable[dict[bytes, bytes]]", client.hgetall(keys.LIMITS))
    return {name.decode(): TenantLimits.decode(text.decode()) for name, text in sorted(stored.items())}
