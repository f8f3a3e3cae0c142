"""Claims are numbered: what was taken by one whose answer got lost comes back at once, as if never begun."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from urllib.parse import unquote

import pytest
from arq.connections import ArqRedis

from jobstream import keys
from jobstream.embedded import ChildRedis
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue
from jobstream.redis import RedisSource, UrlSource, time_ms
from jobstream.serialize import deserialize, serialize
from jobstream_workers.claim import ClaimedJob, Numbers, StaleClaim, Suspects, claim
from jobstream_workers.writer import AttemptWriter
from tests.thief import Manner, Thief
from tests.worker_tasks import TURNSTILE
from tests.working import Settings, ended, lease_over, working


async def taken(
    client: ArqRedis,
    this: int,
    heard: int,
    *,
    worker_id: str = "w",
    queue: str = "default",
    slots: int = 10,
    lease: float = 60,
) -> list[ClaimedJob]:
    """What a worker is given by this claim."""
    numbers = Numbers(this, heard)
    jobs, _ = await claim(client, queue=queue, worker_id=worker_id, slots=slots, lease=lease, numbers=numbers)
    return jobs


async def crashes(client: ArqRedis, job: Job) -> int:
    """How many workers have died with it, by its record."""
    return int(await client.hget(keys.record(job.id), "crashes") or 0)  # type: ignore[misc]


@pytest.fixture(params=["cuts", "holds"])
async def thief(request: pytest.FixtureRequest, redis_server: ChildRedis) -> AsyncIterator[Thief]:
    manner: Manner = request.param
    async with Thief(unquote(redis_server.url.removeprefix("unix://")), manner, times=2) as thief:
        yield thief


async def test_jobs_whose_claim_was_not_answered_run_at_once_and_nothing_is_counted(
    thief: Thief, real_source: UrlSource, real_client: ArqRedis, settings: Settings
) -> None:
    """Twice in a row, with a lease that does not end before the test does."""
    queue = Queue(real_client)
    jobs = [await queue.submit("who", {}) for _ in range(3)]
    async with working(UrlSource(thief.url), settings(lease_seconds=600, max_crashes=1)):
        for job in jobs:
            job = await ended(queue, job)
            assert (job.status, job.result) == (JobStatus.SUCCEEDED, [job.id, 1])
            assert await crashes(real_client, job) == 0
    assert thief.stolen == 2


async def test_a_worker_that_stops_gives_back_what_an_unanswered_claim_took(
    redis_server: ChildRedis, real_source: UrlSource, real_client: ArqRedis, settings: Settings
) -> None:
    queue = Queue(real_client)
    async with (
        Thief(unquote(redis_server.url.removeprefix("unix://")), "holds") as thief,
        working(UrlSource(thief.url), settings(lease_seconds=600)) as worker,
    ):
        job = await queue.submit("who", {})
        await asyncio.wait_for(thief.stole.wait(), 20)
        worker.stop()  # while it waits for the answer
    assert (await queue.get(job.id)).status is JobStatus.QUEUED
    assert [(again.id, again.attempt) for again in await taken(real_client, 1, 0)] == [(job.id, 1)]


async def test_an_unanswered_claim_leaves_no_trace(queue: Queue, client: ArqRedis) -> None:
    """The next one of its worker, for whatever queue, gives back what it took; anybody may have it then."""
    jobs = [await queue.submit("who", {}) for _ in range(2)]
    lost = await taken(client, 1, 0)
    assert [job.id for job in lost] == [job.id for job in jobs]
    assert await taken(client, 2, 0, queue="other", slots=0) == []
    assert (await queue.get(jobs[0].id)).status is JobStatus.QUEUED
    again = await taken(client, 1, 0, worker_id="another")
    assert [(job.id, job.attempt, job.crashes) for job in again] == [(job.id, 1, 0) for job in jobs]
    assert not await AttemptWriter(client, lost[0]).release()


async def test_a_job_is_given_back_and_taken_by_the_same_claim(queue: Queue, client: ArqRedis) -> None:
    job = await queue.submit("who", {})
    assert len(await taken(client, 1, 0)) == 1
    [again] = await taken(client, 2, 0)
    assert (again.id, again.attempt, again.taken_over) == (job.id, 1, False)


async def test_a_claim_that_was_answered_keeps_its_jobs(queue: Queue, client: ArqRedis) -> None:
    await queue.submit("who", {})
    [first] = await taken(client, 1, 0)
    await queue.submit("who", {})
    [second] = await taken(client, 2, 1)
    assert await taken(client, 3, 2) == []
    for job in (first, second):
        assert await AttemptWriter(client, job).release()


async def test_only_what_the_lost_claim_still_holds_is_given_back(queue: Queue, client: ArqRedis) -> None:
    """Another worker has taken one over meanwhile: that one stays where it is."""
    theirs, ours = await queue.submit("who", {}), await queue.submit("who", {})
    assert len(await taken(client, 1, 0)) == 2
    await client.delete(keys.in_progress(theirs.id))  # its lease ends
    await client.zadd(keys.queue("default"), {theirs.id: 1})
    [held] = await taken(client, 1, 0, worker_id="another")
    assert held.taken_over
    assert [job.id for job in await taken(client, 2, 0)] == [ours.id]
    assert await AttemptWriter(client, held).release()


@pytest.mark.parametrize("number", [1, 2])
async def test_a_claim_that_comes_late_or_twice_takes_nothing(queue: Queue, client: ArqRedis, number: int) -> None:
    """Its worker has given up on it and asked again; nobody would run what it takes."""
    assert await taken(client, 2, 0) == []
    job = await queue.submit("who", {})
    with pytest.raises(StaleClaim):
        await taken(client, number, 0)
    assert (await queue.get(job.id)).status is JobStatus.QUEUED
    assert len(await taken(client, 3, 0)) == 1


async def test_a_lost_answer_makes_no_job_a_poisonous_one(queue: Queue, client: ArqRedis) -> None:
    """What was counted before stays, and nothing comes to it."""
    job = await queue.submit("who", {})
    await taken(client, 1, 0, worker_id="dies", lease=0.02)
    await lease_over(client, job.id)
    for this in range(1, 4):
        [again] = await taken(client, this, 0)
        assert (again.attempt, again.crashes) == (2, 1)
    assert await crashes(client, job) == 1


async def test_a_cancel_that_meets_an_unanswered_claim_ends_the_job(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    job = await queue.submit("waits", {})
    await taken(client, 1, 0)
    await queue.cancel(job.id)
    await taken(client, 2, 0, slots=0)
    async with working(source, settings()):
        assert (await ended(queue, job)).status is JobStatus.CANCELLED


async def test_a_stock_clients_job_whose_first_claim_was_lost_gets_its_record_all_the_same(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    stock = ArqRedis(client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
    enqueued = await stock.enqueue_job("flaky", fails=0)
    assert enqueued is not None
    await taken(client, 1, 0)
    await taken(client, 2, 0, slots=0)
    async with working(source, settings()):
        assert await enqueued.result(timeout=20, poll_delay=0.01) == 1
    job = await queue.get(enqueued.job_id)
    assert (job.task, job.attempt, job.max_attempts) == ("flaky", 1, 3)


async def test_of_jobs_whose_next_crash_is_their_last_a_worker_runs_one_at_a_time(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    """Beside others, which do not wait for it."""
    suspects = [await queue.submit("limited", {}) for _ in range(4)]
    await claim(client, queue="default", worker_id="dies", slots=10, lease=0.02)
    for job in suspects:
        await lease_over(client, job.id)
    fresh = [await queue.submit("add", {"a": 1}) for _ in range(3)]
    first, _ = await claim(client, queue="default", worker_id="w", slots=10, lease=60, suspects=Suspects(1, 1))
    assert Counter(job.crashes for job in first) == {1: 1, 0: 3}
    second, _ = await claim(client, queue="default", worker_id="w", slots=10, lease=60, suspects=Suspects(1, 0))
    assert second == []
    for held in first:
        assert await AttemptWriter(client, held).release()
    async with working(source, settings(max_crashes=2)):
        for job in [*suspects, *fresh]:
            assert (await ended(queue, job)).status is JobStatus.SUCCEEDED
    assert TURNSTILE.most == 1
    for job in suspects:
        assert await crashes(client, job) == 1


async def test_leases_that_ran_out_while_redis_was_away_are_held_for_one_more(client: ArqRedis, queue: Queue) -> None:
    """Their holders live, mostly, and could not renew them."""
    job = await queue.submit("words", {})
    (held,) = await taken(client, 1, 0, worker_id="holder", lease=0.05)
    await lease_over(client, job.id)
    await client.set(keys.CONTACT, await time_ms(client) - 3_000)  # nobody was heard of meanwhile
    assert await taken(client, 1, 0, worker_id="other") == []
    assert await taken(client, 2, 1, worker_id="other") == []
    await client.delete(keys.GRACE)  # it is over
    (again,) = await taken(client, 3, 2, worker_id="other")
    assert (again.id, again.attempt) == (held.id, 2)
