"""`max_running`: never more in the whole fleet; whoever is held back runs as soon as one of the others has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus as ArqStatus

from jobstream import keys
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import RedisSource, UrlSource
from jobstream.serialize import deserialize, serialize
from jobstream_workers.claim import ClaimedJob, claim
from jobstream_workers.writer import AttemptWriter, Outcome
from tests.worker_tasks import TURNSTILE
from tests.working import Settings, ended, event_of, in_status, lease_over, working

LIMITS = {"limited": 2}
DONE = Outcome(JobStatus.SUCCEEDED, b"", b"null")


@pytest.fixture(autouse=True)
def _turnstile() -> Iterator[None]:
    yield
    TURNSTILE.running = TURNSTILE.most = 0
    TURNSTILE.gates.clear()


def gate(name: str) -> asyncio.Event:
    """A gate that is closed."""
    opening = TURNSTILE.gates[name] = asyncio.Event()
    return opening


async def held_at(queue: Queue, name: str, *, options: SubmitOptions | None = None) -> Job:
    """A job of the task with the limit, to be held at a gate of its own."""
    return await queue.submit("limited", {"gate": name}, options=options, job_id=name)


async def taken(
    client: ArqRedis, *, worker_id: str = "w", lease: float = 60, queue: str = "default", slots: int = 10
) -> list[ClaimedJob]:
    """What a worker would run now."""
    claimed, _ = await claim(client, queue=queue, worker_id=worker_id, slots=slots, lease=lease, limits=LIMITS)
    return claimed


async def is_held_back(client: ArqRedis, job: Job) -> None:
    """Return when a worker has looked at the job and left it waiting."""
    while await client.zscore(keys.PARKED + "limited", job.id) is None:
        pass


async def test_no_more_than_the_limit_run_in_all_workers_together(
    source: RedisSource, settings: Settings, queue: Queue
) -> None:
    async with contextlib.AsyncExitStack() as fleet:
        for _ in range(3):
            await fleet.enter_async_context(working(source, settings(max_jobs=5)))
        jobs = [await queue.submit("limited", {}) for _ in range(60)]
        for job in jobs:
            assert (await ended(queue, job)).status is JobStatus.SUCCEEDED
    assert TURNSTILE.most == 2


@pytest.mark.parametrize("end", ["succeeds", "fails", "asks again", "is cancelled", "is purged"])
async def test_a_job_that_is_held_back_runs_when_another_ends(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, end: str
) -> None:
    gates = {name: gate(name) for name in "abc"}
    data = {"gate": "a", "fails": end in ("fails", "asks again"), "again": end == "asks again"}
    async with working(source, settings(polls=False)), working(source, settings(polls=False)):
        first = await queue.submit("limited", data)
        second = await held_at(queue, "b")
        for job in (first, second):
            await in_status(queue, job, JobStatus.RUNNING)
        third = await held_at(queue, "c")
        await is_held_back(client, third)
        assert (await queue.get(third.id)).status is JobStatus.QUEUED
        match end:
            case "is cancelled":
                await queue.cancel(first.id)
            case "is purged":
                await queue.purge(first.id)
            case _:
                gates["a"].set()
        await in_status(queue, third, JobStatus.RUNNING)
        assert TURNSTILE.most == 2
        for name in "bc":
            gates[name].set()
        for job in (second, third):
            assert (await ended(queue, job)).status is JobStatus.SUCCEEDED
    assert await client.exists(keys.RUNNING + "limited", keys.PARKED + "limited") == 0


async def test_a_shutdown_makes_room(source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis) -> None:
    for name in "abc":
        gate(name)
    jobs = [await held_at(queue, name) for name in "abc"]
    async with working(source, settings()):
        for job in jobs[:2]:
            await in_status(queue, job, JobStatus.RUNNING)
        await is_held_back(client, jobs[2])
    assert sorted(job.id for job in await taken(client, slots=1)) == ["a"]  # back at its old place, before the third
    assert sorted(job.id for job in await taken(client)) == ["b"]


async def test_a_dead_workers_jobs_do_not_count(queue: Queue, client: ArqRedis) -> None:
    jobs = [await held_at(queue, name) for name in "abcd"]
    dead = await taken(client, worker_id="dead", lease=0.05)
    assert [job.id for job in dead] == ["a", "b"]
    assert await taken(client) == []
    await is_held_back(client, jobs[3])
    for name in "ab":
        await lease_over(client, name)
    assert len(await taken(client)) == 2
    assert await taken(client) == []


async def test_a_cancelled_job_of_a_dead_worker_makes_room(queue: Queue, client: ArqRedis) -> None:
    for name in "abc":
        await held_at(queue, name)
    await taken(client, worker_id="dead", lease=0.05)
    while await client.exists(keys.in_progress("a")):
        pass
    await queue.cancel("a")
    await queue.cancel("b")
    assert [job.id for job in await taken(client)] == ["c"]


async def test_an_outage_does_not_make_room(queue: Queue, client: ArqRedis) -> None:
    """Redis was away for longer than a lease: those that ran before still do, and are on their way to say so."""
    for name in "abc":
        await held_at(queue, name)
    held = await taken(client, worker_id="cut-off", lease=0.05)
    while await client.exists(keys.in_progress("a"), keys.in_progress("b")):
        pass
    await client.set(keys.CONTACT, 1)
    assert await taken(client) == []
    for job in held:
        assert await AttemptWriter(client, job).release()


async def test_those_held_back_come_in_the_order_of_priority_and_time(queue: Queue, client: ArqRedis) -> None:
    for name in "ab":
        await held_at(queue, name)
    running = await taken(client)
    for name, priority in (("c", 0), ("d", 0), ("urgent", 1)):
        await held_at(queue, name, options=SubmitOptions(priority=priority))
    assert await taken(client) == []
    for expected in ("urgent", "c", "d"):
        assert await AttemptWriter(client, running.pop(0)).finish(DONE, keep_arq_result=0)
        running += await taken(client)
        assert running[-1].id == expected


async def test_thousands_held_back_hold_up_nobody_else(
    real_source: UrlSource, real_client: ArqRedis, settings: Settings
) -> None:
    queue, opening = Queue(real_client), gate("all")
    flood = await asyncio.gather(*(queue.submit("limited", {"gate": "all"}) for _ in range(3000)))
    async with working(real_source, settings(max_jobs=5)):
        for _ in range(20):
            job = await ended(queue, await queue.submit("add", {"a": 1}))
            assert job.started_at is not None
            assert (job.started_at - job.created_at).total_seconds() < 2
        assert TURNSTILE.running == TURNSTILE.most == 2
        for job in flood[2:]:
            await queue.cancel(job.id)
        opening.set()
        for job in flood[:2]:
            await ended(queue, job)


async def test_one_claim_looks_at_a_bounded_number_and_the_next_goes_on(real_client: ArqRedis) -> None:
    """A script that walks through a long queue would stop Redis for everybody."""
    queue = Queue(real_client)
    await asyncio.gather(*(queue.submit("limited", {}) for _ in range(2500)))
    other = await queue.submit("add", {"a": 1})
    first, next_due = await claim(real_client, queue="default", worker_id="w", slots=3, lease=60, limits=LIMITS)
    assert (len(first), next_due) == (2, 0)
    second, next_due = await claim(real_client, queue="default", worker_id="w", slots=1, lease=60, limits=LIMITS)
    assert [job.id for job in second] == [other.id]
    assert next_due is not None
    assert next_due > 10


async def test_stock_arq_sees_a_job_that_is_held_back_as_deferred(queue: Queue, client: ArqRedis) -> None:
    for name in "abc":
        await held_at(queue, name)
    await taken(client)
    held = ArqJob("c", client, _deserializer=deserialize)
    assert await held.status() is ArqStatus.deferred
    info = await held.info()
    assert info is not None
    assert (info.function, info.kwargs) == ("limited", {"gate": "c"})


async def test_a_job_that_is_held_back_can_be_stopped(queue: Queue, client: ArqRedis) -> None:
    for name in "abcd":
        await held_at(queue, name)
    a, b = await taken(client)
    assert not (await queue.cancel("c")).stopping
    assert (await queue.get("c")).status is JobStatus.CANCELLED
    for job in (a, b):
        await queue.cancel(job.id)
        await AttemptWriter(client, job).release()
    assert sorted((job.id, job.stop) for job in await taken(client)) == [("a", True), ("b", True), ("d", False)]


async def test_a_stock_abort_reaches_a_job_that_is_held_back(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    opening = gate("a")
    gate("b")
    async with working(source, settings()):
        for name in "ab":
            await event_of(client, (await held_at(queue, name)).id, "log")
        held = await held_at(queue, "c")
        await is_held_back(client, held)
        assert await ArqJob("c", client, _deserializer=deserialize).abort(timeout=20, poll_delay=0.01)
        assert (await queue.get("c")).status is JobStatus.CANCELLED
        last = await held_at(queue, "d")
        gate("d").set()
        await is_held_back(client, last)
        opening.set()
        assert (await ended(queue, last)).status is JobStatus.SUCCEEDED


async def test_a_limit_holds_across_queues(source: RedisSource, settings: Settings, queue: Queue) -> None:
    gates = {name: gate(name) for name in "abc"}
    async with working(source, settings(queues="one", polls=False)):
        for name in "ab":
            await in_status(queue, await held_at(queue, name, options=SubmitOptions(queue="one")), JobStatus.RUNNING)
        async with working(source, settings(queues="two", polls=False)):
            other = await held_at(queue, "c", options=SubmitOptions(queue="two"))
            await is_held_back(queue.client, other)  # type: ignore[arg-type]
            gates["a"].set()
            await in_status(queue, other, JobStatus.RUNNING)
            for name in "bc":
                gates[name].set()
            await ended(queue, other)
    assert TURNSTILE.most == 2


async def test_a_limit_holds_for_jobs_of_stock_clients(
    source: RedisSource, settings: Settings, client: ArqRedis
) -> None:
    stock = ArqRedis(client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
    jobs = [await stock.enqueue_job("limited") for _ in range(20)]
    async with working(source, settings(max_jobs=10)), working(source, settings(max_jobs=10)):
        for job in jobs:
            assert job is not None
            assert await job.result(timeout=20, poll_delay=0.01) == ""
    assert TURNSTILE.most == 2


async def test_a_raised_limit_is_used_at_once(queue: Queue, client: ArqRedis) -> None:
    for name in "abcde":
        await held_at(queue, name)
    assert len(await taken(client)) == 2
    more, _ = await claim(client, queue="default", worker_id="new", slots=10, lease=60, limits={"limited": 4})
    assert sorted(job.id for job in more) == ["c", "d"]
