"""What is to be said of the Redis server: version, role, persistence, memory, how fast it answers, its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from jobstream.redis import time_ms
from jobstream_cli.doctor.findings import Finding, error, note, ok, warning

OLDEST = (6, 2)
PINGS = 21
SLOW_MS, VERY_SLOW_MS = 5.0, 50.0
SKEW_MS = 2_000
"""Clocks that differ by more than this are told of. Leases go by Redis's clock alone; tokens and the signatures of
webhooks do not."""
FULL, NEARLY_FULL = 0.95, 0.8

Info = Mapping[str, Any]


async def examine(client: Redis) -> list[Finding]:
    """All checks of the server. Raises redis-py's errors."""
    found = [await _latency(client), await _clock(client)]
    try:
        info: Info = await client.info()
    except ResponseError as refused:
        advice = "ACL SETUSER … +info: it says which version this is, and whether it keeps your jobs."
        return [*found, note("info", f"INFO is denied: {refused}", advice)]
    config = {**await _config(client, "save"), **await _config(client, "appendfsync")}
    return [*found, version(info), *role(info), *persistence(info, config), *memory(info)]


def version(info: Info) -> Finding:
    """New enough?"""
    text = str(info.get("redis_version", "0"))
    name = "Valkey" if "valkey_version" in info else "Redis"
    if tuple(int(part) for part in text.split(".")[:2] if part.isdecimal()) < OLDEST:
        return error("redis-version", f"{name} {text}", "Use 6.2 or later: scripts need commands that came with it.")
    return ok("redis-version", f"{name} {info.get('valkey_version', text)}")


def role(info: Info) -> Iterator[Finding]:
    """A primary, and no cluster?"""
    if info.get("role") == "slave":
        advice = "Let JOBSTREAM_REDIS_URL lead to the primary."
        yield error("redis-role", "this is a replica, which takes no writes", advice)
    elif int(info.get("cluster_enabled", 0)):
        advice = "Use a Redis without cluster mode: a script touches keys that a cluster keeps on several nodes."
        yield error("redis-role", "cluster mode is on", advice)
    else:
        yield ok("redis-role", f"primary with {info.get('connected_slaves', 0)} replicas")


def persistence(info: Info, config: Mapping[str, str]) -> Iterator[Finding]:
    """What does a restart of Redis cost? `config`: `save` and `appendfsync`, as far as one may read them."""
    if info.get("aof_last_write_status", "ok") != "ok" or info.get("rdb_last_bgsave_status", "ok") != "ok":
        advice = "See Redis's log: most often the disk is full. Redis refuses writes meanwhile, or loses them."
        yield error("persistence-fails", "Redis cannot write to its disk", advice)
    if int(info.get("aof_enabled", 0)):
        fsync = config.get("appendfsync", "everysec")
        if fsync == "no":
            advice = "CONFIG SET appendfsync everysec"
            yield warning("persistence", "append-only file without fsync: a power cut loses half a minute", advice)
        else:
            yield ok("persistence", f"append-only file, fsync {fsync}")
        return
    save = config.get("save")
    advice = "CONFIG SET appendonly yes, and in redis.conf: then what was accepted outlives Redis."
    if save is None:
        yield note("persistence", "no append-only file; CONFIG is denied, so nobody can say whether it saves", advice)
    elif not save:
        yield error("persistence", "nothing is written to disk: a restart of Redis loses every job", advice)
    else:
        yield warning("persistence", f"snapshots only (save {save}): a crash loses the jobs of some minutes", advice)


def memory(info: Info) -> Iterator[Finding]:
    """May it throw jobs away, and how full is it?"""
    policy, most, used = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0)), int(info["used_memory"])
    if policy != "noeviction":
        advice = "CONFIG SET maxmemory-policy noeviction, and in redis.conf. A full Redis then refuses submits instead."
        say = error if most else warning
        yield say("eviction", f"maxmemory-policy {policy}: a full Redis throws away jobs and their results", advice)
    else:
        yield ok("eviction", "maxmemory-policy noeviction")
    if int(info.get("evicted_keys", 0)):
        yield error(
            "evicted", f"{info['evicted_keys']} keys have been thrown away since Redis began", "See `eviction`."
        )
    if not most:
        advice = "CONFIG SET maxmemory to what the machine has for it: the kernel kills a Redis that grows beyond."
        yield warning("memory", f"{_megabytes(used)} used, no maxmemory", advice)
        return
    share = f"{_megabytes(used)} of {_megabytes(most)} used"
    advice = "Raise maxmemory, or shorten `ttl` of tasks with large results."
    if used > FULL * most:
        yield error("memory", f"{share}: submits are refused when it is full", advice)
    elif used > NEARLY_FULL * most:
        yield warning("memory", share, advice)
    else:
        yield ok("memory", share)


def latency(milliseconds: float) -> Finding:
    """Of one round trip."""
    advice = "Bring Redis nearer (the same zone); SLOWLOG GET shows slow commands of others; does its machine swap?"
    text = f"{milliseconds:.1f} ms a round trip"
    if milliseconds > VERY_SLOW_MS:
        return error("latency", text, advice)
    return warning("latency", text, advice) if milliseconds > SLOW_MS else ok("latency", text)


def skew(check: str, who: str, milliseconds: float) -> Finding | None:
    """Of a clock beside Redis's; None: near enough."""
    if abs(milliseconds) <= SKEW_MS:
        return None
    way = "behind" if milliseconds > 0 else "ahead of"
    detail = f"the clock of {who} is {abs(milliseconds) / 1000:.1f} s {way} that of Redis"
    return warning(check, detail, "Run an NTP client (chrony) on every machine, the one of Redis too.")


async def _latency(client: Redis) -> Finding:
    times = []
    for _ in range(PINGS):
        began = time.perf_counter()
        await client.ping()
        times.append(time.perf_counter() - began)
    return latency(1000 * median(times))


async def _clock(client: Redis) -> Finding:
    before = time.time()
    there = await time_ms(client)
    here = (before + time.time()) / 2 * 1000
    return skew("clock", "this machine", there - here) or ok("clock", "this machine and Redis agree")


async def _config(client: Redis, name: str) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in (await client.config_get(name)).items()}
    except ResponseError:  # managed services deny it
        return {}


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MB"
