"""What is to be said of workers, API processes and the work itself: who is deaf, what stands still, who is too old."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from jobstream import keys
from jobstream.catalogue import Heartbeats, read_catalogue, read_heartbeats
from jobstream.job import WEBHOOKS_QUEUE
from jobstream.redis import time_ms
from jobstream.version import VERSION
from jobstream_cli.doctor.findings import Finding, error, note, ok, warning
from jobstream_cli.doctor.server import skew

DEAF_SECONDS: Final = 30
STUCK_MS: Final = 30_000
"""Workers take a dead one's jobs over within seconds."""
LOOKED_AT: Final = 1_000
"""Running jobs, the oldest first."""
SCAN_SECONDS: Final = 2.0
SCANNED_AT_ONCE: Final = 5_000
MARGIN_SECONDS: Final = 1.0
SHOWN: Final = 5


async def examine(client: Redis, *, grace: float | None, drain: float) -> list[Finding]:
    """All checks of the fleet. `grace`: seconds between SIGTERM and SIGKILL, if known; `drain`: what a worker with our
    own settings would need. Raises redis-py's errors."""
    beats = await read_heartbeats(client)
    return [
        *alive(beats),
        *deaf(beats),
        *versions(beats),
        *clocks(beats),
        stopping(beats, grace=grace, drain=drain),
        *await _queues(client, beats),
        await _stuck(client),
    ]


def alive(beats: Heartbeats) -> Iterator[Finding]:
    """Is anybody there?"""
    if beats.workers:
        yield ok("workers", f"{len(beats.workers)} alive, {sum(each.slots for each, _ in beats.workers)} slots")
    else:
        advice = (
            "Start workers, with the JOBSTREAM_REDIS_URL of the API. Those that run say in their log what is wrong."
        )
        yield warning("workers", "no worker is alive: jobs are accepted, and wait", advice)
    if beats.apis:
        yield ok("api", f"{len(beats.apis)} processes alive")
    else:
        yield note("api", "no API process is alive", "Nothing is submitted over HTTP, and nothing watched.")


def deaf(beats: Heartbeats) -> Iterator[Finding]:
    """Do they claim, or only breathe?"""
    found = [each for each, _ in beats.workers if each.unreached > DEAF_SECONDS]
    if found:
        longest = max(each.unreached for each in found)
        detail = f"{_names([each.id for each in found])} beat but have not claimed for up to {longest} s"
        advice = "Restart them; a liveness probe on /livez of JOBSTREAM_WORKER_PORT does that by itself."
        yield error("deaf-worker", detail, advice)
    elif beats.workers:
        yield ok("deaf-worker", "all workers claim")


def versions(beats: Heartbeats) -> Iterator[Finding]:
    """Is all of it one version?"""
    found = {
        role: sorted({each.version or "unknown" for each in processes})
        for role, processes in (("workers", [w for w, _ in beats.workers]), ("API", [a for a, _ in beats.apis]))
        if processes
    }
    said = "; ".join(f"{role} {', '.join(each)}" for role, each in found.items())
    if len({version for each in found.values() for version in each}) > 1:
        advice = "During an update that is as it should be; else finish it, workers first."
        yield warning("version-skew", said, advice)
    elif found and VERSION not in next(iter(found.values())):
        yield note("version-skew", f"{said}; this command is {VERSION}", "Use the doctor of the same version.")
    elif found:
        yield ok("version-skew", said)


def clocks(beats: Heartbeats) -> Iterator[Finding]:
    """Do their clocks agree with that of Redis? What a beat took on its way counts as a clock that is behind."""
    processes = [(each.id, each.clock, at) for each, at in beats.workers] + [
        (each.id, each.clock, at) for each, at in beats.apis
    ]
    found = [skew("clock-skew", name, at - clock) for name, clock, at in processes if clock]
    wrong = [each for each in found if each is not None]
    yield from wrong[:SHOWN]
    if found and not wrong:
        yield ok("clock-skew", f"the clocks of {len(found)} processes and of Redis agree")


def stopping(beats: Heartbeats, *, grace: float | None, drain: float) -> Finding:
    """Does whoever stops a worker give it the time that it needs?"""
    needed = max([*(each.drain for each, _ in beats.workers), *(each.drain for each, _ in beats.apis)], default=0.0)
    needed = (needed or drain) + MARGIN_SECONDS
    if grace is None:
        advice = (
            "Say what yours is: --grace, or JOBSTREAM_GRACE_SECONDS (terminationGracePeriodSeconds, TimeoutStopSec)."
        )
        return note("grace", f"a worker needs up to {needed:g} s from SIGTERM to its end", advice)
    if grace < needed:
        detail = f"SIGKILL comes {grace:g} s after SIGTERM, but a worker may need {needed:g} s"
        advice = (
            f"Raise the grace period to {needed:g} s, or lower JOBSTREAM_SHUTDOWN_SECONDS or JOBSTREAM_KILL_SECONDS: "
            "a worker that is killed counts as a crash of its jobs."
        )
        return error("grace", detail, advice)
    return ok("grace", f"{grace:g} s are enough for the {needed:g} s that a worker may need")


async def _queues(client: Redis, beats: Heartbeats) -> list[Finding]:
    """Queues with jobs that are due, and nobody who reads them; tasks that the readers lack."""
    now = await time_ms(client)
    served = {queue for each, _ in beats.workers for queue in each.queues} | (
        {WEBHOOKS_QUEUE} if beats.workers else set()
    )
    has = {task for each, _ in beats.workers for task in each.tasks}
    names, all_seen = await _queue_names(client)
    found: list[Finding] = []
    for name in sorted(names):
        due = int(await client.zcount(keys.queue(name), "-inf", now))
        if due and name not in served:
            detail = f"{due:,} jobs are due in the queue {name!r}, which no worker serves"
            advice = f"Start a worker with JOBSTREAM_QUEUES={name}, or cancel the jobs."
            found.append(error("unread-queue", detail, advice))
        for task in sorted(await cast("Awaitable[set[bytes]]", client.smembers(keys.LACKED + name))):
            left = int(await client.zcard(f"{keys.LEFT}{name}:{task.decode()}"))
            if left and task.decode() not in has:
                detail = f"{left:,} jobs of the task {task.decode()!r} wait in the queue {name!r}; no worker has it"
                advice = "Start a worker whose JOBSTREAM_TASKS has the task, or cancel the jobs."
                found.append(error("lacked-task", detail, advice))
    if not all_seen:
        found.append(note("unread-queue", "not all keys could be looked at: there may be more queues"))
    return found or [ok("unread-queue", "every queue with jobs has a worker")]


async def _queue_names(client: Redis) -> tuple[set[str], bool]:
    """Those that somebody has named, and those that a walk through the keys finds in a while; whether these are all."""
    _, catalogue = await read_catalogue(client)
    names = {task.queue for task in catalogue.values()} | {"default", WEBHOOKS_QUEUE}
    deadline, cursor = time.monotonic() + SCAN_SECONDS, 0
    try:
        while time.monotonic() < deadline:
            cursor, found = await client.scan(cursor, match=f"{keys.ARQ_QUEUE}*", count=SCANNED_AT_ONCE, _type="zset")
            names |= {keys.queue_name(key.decode()) for key in found}
            if cursor == 0:
                return names, True
    except ResponseError:  # denied
        pass
    return names, False


async def _stuck(client: Redis) -> Finding:
    """Jobs that nobody runs, although their records say so."""
    now = await time_ms(client)
    ids = [each for status in ("running", "cancelling") for each in await _oldest(client, status)]
    async with client.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.exists(keys.in_progress(job_id))
            pipe.hget(keys.record(job_id), "queue")
        answers = await pipe.execute()
    leaseless = [
        (job_id, queue.decode())
        for job_id, held, queue in zip(ids, answers[::2], answers[1::2], strict=True)
        if not held and queue is not None
    ]
    async with client.pipeline(transaction=False) as pipe:
        for job_id, queue in leaseless:
            pipe.zscore(keys.queue(queue), job_id)
        scores = await pipe.execute()
    stuck = [
        job_id for (job_id, _), score in zip(leaseless, scores, strict=True) if score is None or score < now - STUCK_MS
    ]
    if not stuck:
        return ok("stuck-lease", f"{len(ids)} running jobs looked at, all have a worker")
    detail = f"{len(stuck)} jobs say that they run, but their leases ended and nobody took them over: {_names(stuck)}"
    advice = (
        "See that workers of their queues are alive and not deaf. Else `jobstream cancel` them, then `jobstream retry`."
    )
    return error("stuck-lease", detail, advice)


async def _oldest(client: Redis, status: str) -> list[str]:
    return [each.decode() for each in await client.zrange(keys.index(status=status), 0, LOOKED_AT - 1)]


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
