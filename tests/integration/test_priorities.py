"""Priorities: a higher one first, never before its time, the same for stock workers, kept through every detour."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus as ArqStatus

from jobstream import keys
from jobstream.errors import InvalidParameter, TaskError
from jobstream.job import Job, JobStatus
from jobstream.problem import job_problem
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import RedisSource
from jobstream_workers.claim import ClaimedJob, claim
from jobstream_workers.writer import AttemptWriter
from tests.worker_tasks import ORDER
from tests.working import Settings, ended, working

QUEUE = keys.queue("default")


@pytest.fixture(autouse=True)
def _no_order() -> Iterator[None]:
    yield
    ORDER.clear()


async def entering(queue: Queue, name: str, *, priority: int = 0, delay: float = 0) -> Job:
    """A job that notes when it has its turn. Its id is its name: in one millisecond, ids decide who is first."""
    options = SubmitOptions(priority=priority, delay=delay)
    return await queue.submit("enters", {"name": name}, options=options, job_id=name)


async def taken(client: ArqRedis, slots: int = 1) -> list[ClaimedJob]:
    """What a worker with so many free slots would run now."""
    claimed, _ = await claim(client, queue="default", worker_id="w", slots=slots, lease=60)
    return claimed


async def is_due(client: ArqRedis, job: Job) -> None:
    """Return when Redis's clock has come to the job's time."""
    assert job.run_at is not None
    due = job.run_at.timestamp()
    while True:
        seconds, microseconds = await client.time()
        if seconds + microseconds / 1e6 > due:
            return


async def test_a_higher_priority_runs_first_and_the_same_in_the_order_of_submission(
    source: RedisSource, settings: Settings, queue: Queue
) -> None:
    jobs = [await entering(queue, f"{priority}-{turn}", priority=priority) for turn in "ab" for priority in (0, 100, 1)]
    async with working(source, settings(max_jobs=1)):
        for job in jobs:
            assert (await ended(queue, job)).status is JobStatus.SUCCEEDED
    assert ORDER == ["100-a", "100-b", "1-a", "1-b", "0-a", "0-b"]


async def test_a_delayed_job_never_runs_before_its_time_whatever_its_priority(queue: Queue, client: ArqRedis) -> None:
    high = await entering(queue, "high", priority=100, delay=600)
    low = await entering(queue, "low")
    claimed, next_due = await claim(client, queue="default", worker_id="w", slots=10, lease=6000)
    assert [job.id for job in claimed] == [low.id]
    assert next_due is not None
    assert 599 < next_due <= 600
    assert await ArqJob(high.id, client).status() is ArqStatus.deferred


async def test_a_delayed_job_that_is_due_runs_before_older_ones_of_a_lower_priority(
    queue: Queue, client: ArqRedis
) -> None:
    low = [await entering(queue, f"low-{n}") for n in range(3)]
    high = await entering(queue, "high", priority=1, delay=0.05)
    equal = await entering(queue, "equal", delay=0.05)
    await is_due(client, equal)
    assert [job.id for job in await taken(client)] == [high.id]
    assert [job.id for job in await taken(client, slots=10)] == [*(job.id for job in low), equal.id]
    assert await client.exists(keys.PROMOTE + "default") == 0


async def test_a_worker_wakes_up_for_a_delayed_job_with_a_priority(
    source: RedisSource, settings: Settings, queue: Queue
) -> None:
    async with working(source, settings(polls=False)):
        job = await ended(queue, await entering(queue, "high", priority=7, delay=0.2))
    assert job.started_at is not None
    assert 0.2 <= (job.started_at - job.created_at).total_seconds() < 2


async def test_stock_workers_find_every_waiting_job_due_and_in_the_same_order(queue: Queue, client: ArqRedis) -> None:
    low, high, top = [await entering(queue, str(priority), priority=priority) for priority in (0, 50, 100)]
    seen = await client.zrange(QUEUE, 0, -1, withscores=True)
    assert [job_id.decode() for job_id, _ in seen] == [top.id, high.id, low.id]
    for job, (_, score) in zip((top, high, low), seen, strict=True):
        assert 0 < score <= time.time() * 1000
        assert await ArqJob(job.id, client).status() is ArqStatus.queued


@pytest.mark.parametrize("purge", [False, True])
async def test_a_delayed_job_with_a_priority_can_be_stopped(queue: Queue, client: ArqRedis, purge: bool) -> None:
    job = await entering(queue, "high", priority=5, delay=600)
    await (queue.purge if purge else queue.cancel)(job.id)
    assert await client.exists(keys.PROMOTE + "default", QUEUE) == 0


async def test_a_job_keeps_its_priority_for_its_next_attempt(queue: Queue, client: ArqRedis) -> None:
    high = await entering(queue, "high", priority=5)
    [attempt] = await taken(client)
    low = await entering(queue, "low")
    assert await AttemptWriter(client, attempt).retry(job_problem(TaskError("no luck"), attempt=1), after=0.05)
    await is_due(client, await queue.get(high.id))
    assert [job.id for job in await taken(client, slots=10)] == [high.id, low.id]


async def test_a_job_keeps_its_priority_when_its_worker_gives_it_back(queue: Queue, client: ArqRedis) -> None:
    high = await entering(queue, "high", priority=5)
    [attempt] = await taken(client)
    low = await entering(queue, "low")
    assert await AttemptWriter(client, attempt).release()
    assert [job.id for job in await taken(client, slots=10)] == [high.id, low.id]


async def test_a_job_keeps_its_priority_when_it_is_run_again(queue: Queue, client: ArqRedis) -> None:
    high = await entering(queue, "high", priority=5)
    await queue.cancel(high.id)
    low = await entering(queue, "low")
    await queue.retry(high.id)
    assert [job.id for job in await taken(client, slots=10)] == [high.id, low.id]


@pytest.mark.parametrize("priority", [-1, 101])
async def test_a_priority_that_cannot_be_kept_is_refused(queue: Queue, priority: int) -> None:
    """A score for less than 0 would lie in the future: no worker would find the job for days."""
    with pytest.raises(InvalidParameter, match="0 to 100"):
        await entering(queue, "no", priority=priority)
