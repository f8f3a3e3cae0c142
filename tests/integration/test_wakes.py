"""Wake-ups: a job wakes one worker that can take it, not the whole fleet; and no job is forgotten for that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from arq.connections import ArqRedis
from redis.asyncio.client import PubSub

from jobstream import keys
from jobstream.job import Job
from jobstream.queue import Queue, Submission
from jobstream.redis import RedisSource
from jobstream_workers.claim import claim
from tests.working import Settings, ended, working


@contextlib.asynccontextmanager
async def hearing(client: ArqRedis, *workers: str) -> AsyncIterator[PubSub]:
    """Hears what these workers are told."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(*[keys.control(worker) for worker in workers], "end")
        for _ in range(len(workers) + 1):
            await pubsub.get_message(timeout=5)
        yield pubsub


async def woken(client: ArqRedis, pubsub: PubSub) -> list[tuple[str, str]]:
    """Who was told what until now."""
    await client.publish("end", "")
    told = []
    while (message := await pubsub.get_message(timeout=5)) is not None and message["channel"] != b"end":
        told.append((message["channel"].decode().removeprefix(keys.CONTROL), message["data"].decode()))
    return told


async def claims(client: ArqRedis, worker: str, *, slots: int) -> int:
    """How many jobs a worker gets for its free slots."""
    jobs, _ = await claim(client, queue="default", worker_id=worker, slots=slots, lease=60)
    return len(jobs)


async def test_a_job_wakes_the_one_that_has_most_slots(queue: Queue, client: ArqRedis) -> None:
    await client.zadd(keys.idle("default"), {"second": -2, "first": -10})
    async with hearing(client, "first", "second") as pubsub:
        await queue.submit("words", {})
        assert await woken(client, pubsub) == [("first", "claim default")]
        await queue.submit("words", {})
        assert await woken(client, pubsub) == [("second", "claim default")]
        await queue.submit("words", {})  # all have been told to look
        assert await woken(client, pubsub) == []


async def test_one_that_hears_nothing_is_passed_over(queue: Queue, client: ArqRedis) -> None:
    await client.zadd(keys.idle("default"), {"dead": -3, "dead too": -2, "alive": -1})
    async with hearing(client, "alive") as pubsub:
        await queue.submit("words", {})
        assert await woken(client, pubsub) == [("alive", "claim default")]
    assert await client.zcard(keys.idle("default")) == 0


async def test_who_has_slots_left_waits_and_who_has_none_does_not(queue: Queue, client: ArqRedis) -> None:
    for _ in range(3):
        await queue.submit("words", {})
    assert await claims(client, "busy", slots=2) == 2
    assert await claims(client, "free", slots=2) == 1
    assert await client.zrange(keys.idle("default"), 0, -1, withscores=True) == [(b"free", -1)]
    assert 0 < await client.pttl(keys.idle("default")) <= 3_600_000
    await queue.submit("words", {})
    assert await claims(client, "free", slots=1) == 1
    assert await client.zrange(keys.idle("default"), 0, -1) == []


async def test_who_is_full_and_leaves_jobs_wakes_the_next(queue: Queue, client: ArqRedis) -> None:
    for _ in range(3):
        await queue.submit("words", {})
    await client.zadd(keys.idle("default"), {"other": -2, "another": -1})
    async with hearing(client, "other", "another") as pubsub:
        assert await claims(client, "this", slots=2) == 2
        assert await woken(client, pubsub) == [("other", "claim default")]
        assert await claims(client, "this", slots=0) == 0  # it was woken for another queue, or is about to end
        assert await woken(client, pubsub) == [("another", "claim default")]
        assert await claims(client, "other", slots=1) == 1
        assert await claims(client, "another", slots=1) == 0
        assert await woken(client, pubsub) == []


async def test_a_fleet_runs_all_without_a_poll(source: RedisSource, queue: Queue, settings: Settings) -> None:
    """Single jobs, and batches that are more than any worker has slots for; workers come and go."""

    async def one() -> Job:
        return await ended(queue, await queue.submit("add", {"a": 1}))

    few = settings(polls=False, max_jobs=2)
    async with working(source, few) as first, working(source, few), working(source, few):
        for _ in range(5):
            await asyncio.gather(*[one() for _ in range(4)])
        for job_id in await queue.submit_many([Submission("add", {"a": 1})] * 50):
            await ended(queue, await queue.get(job_id))
        first.stop()
        await asyncio.gather(*[one() for _ in range(10)])
