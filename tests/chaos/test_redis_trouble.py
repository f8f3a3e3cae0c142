"""Redis restarts, goes away, freezes, forgets scripts, cuts connections, is full: work goes on, once, nothing grows."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from jobstream.embedded import ServerProgram
from jobstream.events import JobEvent, read_snapshot
from jobstream.job import JobStatus
from jobstream.queue import Queue
from jobstream.redis import UrlSource
from tests.chaos.load import Kind, Load
from tests.chaos.rig import Rig
from tests.working import ended

AWAY_SECONDS = 10.0
GROWTH_BYTES = 12 * 1024**2
"""What a process may come to hold in the second half of an outage. Five jobs say four times as much in that time."""

LOUD_GROWTH_BYTES = 100 * 1024**2
"""What a worker and its children may come to hold more: what waits, and what the loud second before has left."""

Trouble = Callable[[Rig], Awaitable[None]]


@pytest.fixture
async def rig(server_program: ServerProgram, tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(server_program, tmp_path)
    try:
        await rig.start(workers=2)
        yield rig
    finally:
        await asyncio.to_thread(rig.close)


async def restarted(rig: Rig) -> None:
    """As an operator does it."""
    await asyncio.to_thread(rig.redis.signal, signal.SIGTERM)
    await asyncio.to_thread(rig.redis.start)


async def killed(rig: Rig) -> None:
    """And started again at once."""
    await asyncio.to_thread(rig.redis.signal, signal.SIGKILL)
    await asyncio.to_thread(rig.redis.start)


async def frozen(rig: Rig) -> None:
    """A server that accepts connections and says nothing; what it was sent it does afterwards."""
    rig.redis.signal(signal.SIGSTOP)
    await asyncio.sleep(AWAY_SECONDS)
    rig.redis.signal(signal.SIGCONT)


async def scripts_flushed(rig: Rig) -> None:
    """Five times."""
    with rig.redis.client() as client:
        for _ in range(5):
            client.script_flush()
            await asyncio.sleep(0.2)


async def clients_killed(rig: Rig) -> None:
    """Every connection, five times."""
    with rig.redis.client() as client:
        for _ in range(5):
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            await asyncio.sleep(0.2)


async def full(rig: Rig) -> None:
    """For longer than a lease, `maxmemory` is less than what is stored."""
    with rig.redis.client() as client:
        client.config_set("maxmemory", "100kb")
        await asyncio.sleep(5)
        client.config_set("maxmemory", "0")


@pytest.mark.parametrize(
    "trouble", [restarted, killed, frozen, scripts_flushed, clients_killed, full], ids=lambda way: way.__name__
)
async def test_each_job_ends_once_and_no_process_is_lost(rig: Rig, trouble: Trouble, chaos_seed: int) -> None:
    """Nobody's worker died, so nothing is run twice either."""
    async with rig.load() as load:
        for length in (1.0, 3.0, AWAY_SECONDS + 4 if trouble is frozen else 3.0):
            await load.submit(Kind("talking", data={"seconds": length}))
        async with load.flowing(random.Random(chaos_seed)):
            await asyncio.sleep(0.5)
            await trouble(rig)
            await asyncio.sleep(0.5)
        await ended_once(rig, load)


async def test_memory_stays_bounded_while_redis_is_away(rig: Rig, chaos_seed: int) -> None:
    """Jobs that chatter on into the void, clients that knock all the time: after a while, nothing more is kept."""
    seconds = AWAY_SECONDS + 4
    chatter = Kind("chatter", data={"seconds": seconds, "lines": 50}, runs=0)  # its log is too long for the books

    def resident() -> list[int]:
        return [process.resident_bytes() for process in (*rig.workers, rig.api)]

    async with rig.load() as load:
        for kind in [chatter] * 10 + [Kind("talking", data={"seconds": seconds})]:
            await load.submit(kind)
        async with load.flowing(random.Random(chaos_seed)):
            await asyncio.sleep(1)
            await asyncio.to_thread(rig.redis.signal, signal.SIGKILL)
            await asyncio.sleep(AWAY_SECONDS / 2)
            before = resident()
            await asyncio.sleep(AWAY_SECONDS / 2)
            growth = [now - then for now, then in zip(resident(), before, strict=True)]
            await asyncio.to_thread(rig.redis.start)
        assert max(growth) < GROWTH_BYTES, growth
        await ended_once(rig, load)


async def test_loud_jobs_are_held_back_while_redis_is_frozen(rig: Rig) -> None:
    """Each of them could say more than 100 MB in that time. Not a chunk is lost, and none comes twice or too early."""
    source = UrlSource(rig.redis.url)
    client = source.client()
    try:
        queue, before = Queue(client), [worker.family_bytes() for worker in rig.workers]
        jobs = [
            await queue.submit(task, {"seconds": AWAY_SECONDS + 2})
            for task in ("loud-loop", "loud-thread", "loud-process")
        ]
        await asyncio.sleep(1)
        rig.redis.signal(signal.SIGSTOP)
        await asyncio.sleep(AWAY_SECONDS)
        growth = [worker.family_bytes() - then for worker, then in zip(rig.workers, before, strict=True)]
        rig.redis.signal(signal.SIGCONT)
        assert max(growth) < LOUD_GROWTH_BYTES, growth
        for job in jobs:
            found = await ended(queue, job)
            assert found.status is JobStatus.SUCCEEDED, found.error
            said = [event for event in await durable_events(client, job.id) if event.kind == "chunk"]
            numbers = [msgspec.json.decode(event.data)["number"] for event in said]
            # A batch whose answer the freeze swallowed may be written twice; never is one left out.
            # Of megabytes the log keeps the end.
            assert sorted(set(numbers)) == list(range(min(numbers), found.result))
    finally:
        await client.aclose()


async def durable_events(client: Redis, job_id: str) -> list[JobEvent]:
    """All of them that the log keeps."""
    snapshot = await read_snapshot(client, job_id, after=0)
    assert snapshot is not None
    return list(snapshot.events)


async def ended_once(rig: Rig, load: Load) -> None:
    """Every job ended as its kind does, its function ran as often as it should, and no process was lost."""
    accounts = await rig.balanced(load.accepted)
    assert all(process.alive for process in (*rig.workers, rig.api))
    runs = rig.runs()
    for job_id, kind in load.accepted.items():
        end = load.end_of(job_id)
        assert accounts[job_id].status is end, str(accounts[job_id])
        never_begun = kind.cancelled or (kind.follows and end is not JobStatus.SUCCEEDED)
        least = 0 if never_begun else min(kind.runs, 1)
        assert least <= runs[job_id] <= kind.runs, str(accounts[job_id])
