"""Ends that travel together: each counts for itself, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ResponseError

from jobstream import keys
from jobstream.gauge import ProgressState
from jobstream.job import JobStatus
from jobstream.outbox import Batch, Entry
from jobstream.queue import Queue, Submission
from jobstream.redis import time_ms
from jobstream.store import JobFilter
from jobstream_workers.claim import ClaimedJob, claim
from jobstream_workers.writer import AttemptWriter, Endings, Outcome

DONE = Outcome(JobStatus.SUCCEEDED, b"arq's", b'"done"')


async def claimed(client: ArqRedis, queue: Queue, count: int) -> list[ClaimedJob]:
    await queue.submit_many([Submission("words", {"text": str(number)}) for number in range(count)])
    jobs, _ = await claim(client, queue="default", worker_id="w", slots=count, lease=10)
    assert len(jobs) == count
    return jobs


async def test_the_ends_of_one_turn_travel_together(
    client: ArqRedis, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await claimed(client, queue, 40)
    calls, execute = 0, client.execute_command

    async def count(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return await execute(*args, **options)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(client, "execute_command", count)
    endings = Endings(client, keep_arq_result=10)
    assert all(await asyncio.gather(*(endings.finish(job, DONE) for job in jobs)))
    assert calls < 10
    ended, _ = await queue.list(JobFilter(status="succeeded"), limit=100)
    assert {job.id for job in ended} == {job.id for job in jobs}
    assert {job.result for job in ended} == {"done"}
    assert not await client.zcard(keys.queue("default"))
    assert not await client.exists(*(keys.in_progress(job.id) for job in jobs))
    assert await client.get(keys.arq_result(jobs[7].id)) == b"arq's"


async def test_a_zombie_among_others_is_refused_alone(client: ArqRedis, queue: Queue) -> None:
    first, second, third = await claimed(client, queue, 3)
    endings = Endings(client, keep_arq_result=0)
    zombie = second._replace(token="another one's")
    ends = await asyncio.gather(*(endings.finish(job, DONE) for job in (first, zombie, third)))
    assert ends == [True, False, True]
    assert (await queue.get(second.id)).status is JobStatus.RUNNING


async def test_what_redis_cannot_write_hurts_nobody_else(client: ArqRedis, queue: Queue) -> None:
    first, broken, third = await claimed(client, queue, 3)
    await client.set(keys.log(broken.id), "no list")
    endings = Endings(client, keep_arq_result=0)
    ends = await asyncio.gather(*(endings.finish(job, DONE) for job in (first, broken, third)), return_exceptions=True)
    assert (ends[0], ends[2]) == (True, True)
    assert isinstance(ends[1], ResponseError)
    assert "WRONGTYPE" in str(ends[1])
    assert await client.zrange(keys.queue("default"), 0, -1) == [broken.id.encode()]


@pytest.mark.parametrize("at_once", [1, 2])
async def test_an_attempt_ends_once(client: ArqRedis, queue: Queue, at_once: int) -> None:
    """Also when the same end is said twice: in one call, or in one after the other."""
    (job,) = await claimed(client, queue, 1)
    endings = Endings(client, keep_arq_result=0)
    if at_once == 2:
        ends = list(await asyncio.gather(*(endings.finish(job, DONE) for _ in range(2))))
    else:
        ends = [await endings.finish(job, DONE), await endings.finish(job, DONE)]
    assert ends == [True, False]


async def test_a_lease_that_ran_out_is_its_own_until_somebody_takes_the_job_over(
    client: ArqRedis, queue: Queue
) -> None:
    (first,) = await claimed(client, queue, 1)
    await _run_out(client, first)
    [second], _ = await claim(client, queue="default", worker_id="heir", slots=1, lease=10)
    await _run_out(client, second)
    endings = Endings(client, keep_arq_result=0)
    assert not await endings.finish(first, DONE)
    assert await endings.finish(second, DONE)


async def test_what_a_stock_worker_has_ended_is_not_ended_again(client: ArqRedis, queue: Queue) -> None:
    """Such a worker removes arq's keys, and leaves our record as it is."""
    (job,) = await claimed(client, queue, 1)
    await client.delete(keys.in_progress(job.id), keys.arq_job(job.id))
    assert not await Endings(client, keep_arq_result=0).finish(job, DONE)


async def test_a_job_that_runs_is_due_at_the_end_of_its_lease(client: ArqRedis, queue: Queue) -> None:
    """It would stand before all that wait, and be looked at by every claim."""
    before = await time_ms(client)
    jobs = await claimed(client, queue, 3)
    for job in jobs:
        due = await client.zscore(keys.queue("default"), job.id)
        assert due is not None
        assert due >= before + 10_000


async def _run_out(client: ArqRedis, job: ClaimedJob) -> None:
    """As when the lease's time has passed."""
    await client.delete(keys.in_progress(job.id))
    await client.zadd(keys.queue("default"), {job.id: await time_ms(client)}, xx=True)


async def test_nothing_that_a_zombie_says_is_written(client: ArqRedis, queue: Queue) -> None:
    (job,) = await claimed(client, queue, 1)
    before = await client.hgetall(keys.record(job.id))  # type: ignore[misc]
    writer = AttemptWriter(client, job._replace(token="another one's"))
    assert not await writer.emit(Batch(ProgressState(1, 2), [Entry("log", b"{}")], 0))
    assert not await writer.retry({"detail": "no luck"}, after=0)
    assert not await writer.release()
    assert await client.hgetall(keys.record(job.id)) == before  # type: ignore[misc]
