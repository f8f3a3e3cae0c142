"""Several queues per worker: their shares while all have work, every slot for the one that has, no queue overlooked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from arq.connections import ArqRedis

from jobstream import keys
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import RedisSource
from jobstream.serialize import deserialize, serialize
from tests.worker_tasks import ORDER, TURNSTILE
from tests.working import Settings, ended, in_status, working


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    ORDER.clear()
    TURNSTILE.gates.clear()


async def submitted(queue: Queue, name: str, task: str, data: dict[str, Any], *, delay: float = 0) -> Job:
    """A job in the queue of that name."""
    return await queue.submit(task, data, options=SubmitOptions(queue=name, delay=delay))


async def test_queues_get_their_shares_while_all_have_work(
    source: RedisSource, settings: Settings, queue: Queue
) -> None:
    jobs = [await submitted(queue, name, "enters", {"name": name}) for _ in range(80) for name in ("heavy", "light")]
    async with working(source, settings(queues="light,heavy:3", max_jobs=3)):
        for job in jobs:
            await ended(queue, job)
    shares = Counter(ORDER[:80])
    assert 56 <= shares["heavy"] <= 64
    assert Counter(ORDER) == {"heavy": 80, "light": 80}


@pytest.mark.parametrize("name", ["heavy", "light"])
async def test_a_queue_gets_every_slot_when_the_other_is_empty(
    source: RedisSource, settings: Settings, queue: Queue, name: str
) -> None:
    gate = TURNSTILE.gates["all"] = asyncio.Event()
    async with working(source, settings(queues="heavy:3,light", max_jobs=4, polls=False)):
        jobs = [await submitted(queue, name, "waits_at", {"gate": "all"}) for _ in range(4)]
        for job in jobs:
            await in_status(queue, job, JobStatus.RUNNING)
        gate.set()
        for job in jobs:
            assert (await ended(queue, job)).status is JobStatus.SUCCEEDED


async def test_a_flood_in_one_queue_does_not_hold_up_another(
    source: RedisSource, settings: Settings, queue: Queue
) -> None:
    for _ in range(200):
        await submitted(queue, "flood", "enters", {"name": "flood"})
    job = await submitted(queue, "calm", "enters", {"name": "calm"})
    async with working(source, settings(queues="flood:9,calm", max_jobs=2)):
        await ended(queue, job)
    assert ORDER.index("calm") < 20


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("delay", [0, 0.2])
async def test_a_worker_wakes_up_for_each_of_its_queues(
    source: RedisSource, settings: Settings, queue: Queue, name: str, delay: float
) -> None:
    """It does not wait for its fallback poll: there is none."""
    async with working(source, settings(queues="one,two", polls=False)):
        job = await ended(queue, await submitted(queue, name, "add", {"a": 1}, delay=delay))
    assert job.started_at is not None
    assert delay <= (job.started_at - job.created_at).total_seconds() < delay + 2


async def test_a_worker_leaves_the_queues_alone_that_are_not_its_own(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    other = await submitted(queue, "other", "add", {"a": 1})
    async with working(source, settings(queues="own")):
        assert (await ended(queue, await submitted(queue, "own", "add", {"a": 1}))).queue == "own"
    assert (await queue.get(other.id)).status is JobStatus.QUEUED
    assert await client.zscore(keys.queue("other"), other.id) is not None


async def test_jobs_of_stock_clients_are_found_in_each_queue(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    stock = ArqRedis(client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
    async with working(source, settings(queues="one,two")):
        for name in ("one", "two"):
            job = await stock.enqueue_job("add", a=1, _queue_name=keys.queue(name))
            assert job is not None
            assert await job.result(timeout=20, poll_delay=0.01) == {"total": 2}
            assert (await queue.get(job.job_id)).queue == name
