"""A worker leaves jobs of tasks that it lacks to workers that have them: a deploy of new tasks loses no work."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from arq.connections import ArqRedis

from jobstream import keys
from jobstream.job import JobStatus
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import RedisSource, UrlSource
from jobstream.serialize import deserialize, serialize
from jobstream_workers.claim import ClaimedJob, claim, task_list
from tests.worker_tasks import TURNSTILE
from tests.working import TASKS, Settings, ended, error_of, in_status, working

OLD = {name: task for name, task in TASKS.items() if name not in ("who", "limited")}
"""What a worker has that was not deployed anew yet."""


async def offered(
    client: ArqRedis, *tasks: str, slots: int = 10, missing: float = 3600
) -> tuple[list[ClaimedJob], float | None]:
    """What a worker with these tasks would run, and when it would look again."""
    return await claim(
        client,
        queue="default",
        worker_id="w",
        slots=slots,
        lease=60,
        tasks=task_list(tasks),
        missing=missing,
    )


async def is_left(client: ArqRedis, task: str) -> None:
    """Return when a worker has looked at a job of the task and left it waiting."""
    while not await client.exists(keys.LEFT + f"default:{task}"):
        pass


async def test_a_job_waits_for_a_worker_that_has_its_task(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    async with working(source, settings(), tasks=OLD):
        job = await queue.submit("who", {})
        assert (await ended(queue, await queue.submit("add", {"a": 1}))).status is JobStatus.SUCCEEDED
        assert (await queue.get(job.id)).status is JobStatus.QUEUED
        async with working(source, settings()):
            job = await ended(queue, job)
    assert (job.status, job.result) == (JobStatus.SUCCEEDED, [job.id, 1])
    assert [key async for key in client.scan_iter("jobstream:l[ae]*ed:*")] == []


async def test_workers_with_different_tasks_share_a_queue(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    """Neither looks at the queue by itself: each is woken for what the other has left."""
    asynchronously = settings(polls=False, max_jobs=3)
    new = {name: TASKS[name] for name in ("who", "limited")}
    async with working(source, asynchronously, tasks=OLD), working(source, asynchronously, tasks=new):
        jobs = [
            await queue.submit(task, data) for _ in range(30) for task, data in (("add", {"a": 1}), ("who", {}))
        ] + [await queue.submit("limited", {}) for _ in range(10)]
        for job in jobs:
            job = await ended(queue, job)
            assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)
    assert TURNSTILE.most <= 2


async def test_what_a_worker_left_it_does_not_look_at_again_soon(queue: Queue, client: ArqRedis) -> None:
    """Nor does it hold up what is behind it."""
    left = await queue.submit("who", {})
    other = await queue.submit("add", {"a": 1})
    jobs, due = await offered(client, "add")
    assert [job.id for job in jobs] == [other.id]
    assert due is not None
    assert due > 50
    assert (await offered(client, "add"))[0] == []
    assert [job.id for job in (await offered(client, "who"))[0]] == [left.id]


async def test_thousands_that_are_left_hold_up_nobody(real_client: ArqRedis) -> None:
    queue = Queue(real_client)
    flood = await asyncio.gather(*(queue.submit("who", {}) for _ in range(2500)))
    other = await queue.submit("add", {"a": 1})
    found, looks = list[ClaimedJob](), 0
    while not found:
        found, due = await offered(real_client, "add")
        looks += 1
        assert found or due == 0  # there may be more behind them
    assert ([job.id for job in found], looks) == ([other.id], 2)
    taken: list[str] = []
    while len(taken) < len(flood):
        jobs, _ = await offered(real_client, "who", slots=50)
        assert jobs
        taken += [job.id for job in jobs]
    assert sorted(taken) == sorted(job.id for job in flood)


async def test_what_was_left_keeps_its_place(queue: Queue, client: ArqRedis) -> None:
    first = await queue.submit("who", {})
    urgent = await queue.submit("who", {}, options=SubmitOptions(priority=1))
    await offered(client, "add")
    last = await queue.submit("who", {})
    order = []
    for _ in range(3):
        [job] = (await offered(client, "who", slots=1))[0]
        order.append(job.id)
        await offered(client, "add")
    assert order == [urgent.id, first.id, last.id]


async def test_a_job_that_nobody_can_run_fails_in_the_end(
    source: RedisSource, settings: Settings, queue: Queue
) -> None:
    async with working(source, settings(missing_task_seconds=0), tasks=OLD):
        job = await ended(queue, await queue.submit("who", {}))
    assert (job.status, error_of(job)["code"], job.attempt) == (JobStatus.FAILED, "task-missing", 1)
    assert error_of(job)["detail"] == "No worker that is heard of has a task 'who'"


async def test_the_end_comes_when_job_and_fleet_have_waited(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    """Neither a job that is new nor a task that was heard of lately is given up."""
    async with working(source, settings(), tasks={"who": TASKS["who"]}):
        pass  # it announces the task, and stops
    job = await queue.submit("who", {})
    long_ago = int((await queue.get(job.id)).created_at.timestamp() * 1000) - 3_700_000

    async def due() -> None:
        await client.zadd(keys.queue("default"), {job.id: 1})

    await client.zadd(keys.ANNOUNCED, {"who": long_ago})
    assert (await offered(client, "add"))[0] == []
    await due()
    await client.zadd(keys.LEFT + "default:who", {job.id: long_ago})
    await client.zadd(keys.ANNOUNCED, {"who": long_ago + 3_700_000})
    assert (await offered(client, "add"))[0] == []
    await due()
    await client.zadd(keys.ANNOUNCED, {"who": long_ago})
    assert [given.id for given in (await offered(client, "add"))[0]] == [job.id]
    assert await client.exists(keys.LEFT + "default:who") == 0


async def test_a_job_that_was_left_can_be_cancelled(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("who", {})
    await offered(client, "add")
    await queue.cancel(job.id)
    assert (await queue.get(job.id)).status is JobStatus.CANCELLED
    assert await client.exists(keys.LEFT + "default:who") == 0
    assert (await offered(client, "who"))[0] == []


@pytest.mark.parametrize("task", ["who", "flaky"])
async def test_a_stock_clients_job_is_left_too(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, task: str
) -> None:
    """Its task is in its payload: the worker that reads it writes it down, with what was announced of the task."""
    old = {name: other for name, other in TASKS.items() if name != task}
    stock = ArqRedis(client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
    async with working(source, settings()):
        pass  # it announces the task, and stops
    data: dict[str, Any] = {"fails": 1} if task == "flaky" else {}
    enqueued = await stock.enqueue_job(task, **data)
    assert enqueued is not None
    async with working(source, settings(), tasks=old):
        await is_left(client, task)
        async with working(source, settings()):
            await enqueued.result(timeout=20, poll_delay=0.01)
    job = await queue.get(enqueued.job_id)
    assert (job.status, job.task) == (JobStatus.SUCCEEDED, task)
    assert job.max_attempts == TASKS[task].retry.attempts


async def test_a_dead_workers_job_is_left_too(
    real_source: UrlSource, settings: Settings, real_client: ArqRedis
) -> None:
    queue = Queue(real_client)
    async with working(real_source, settings(), tasks=OLD):
        job = await queue.submit("who", {})
        await in_status(queue, job, JobStatus.QUEUED)
        [held], _ = await claim(real_client, queue="default", worker_id="dies", slots=1, lease=0.05, tasks=" who ")
        assert held.id == job.id
        await is_left(real_client, "who")
        async with working(real_source, settings()):
            job = await ended(queue, job)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
