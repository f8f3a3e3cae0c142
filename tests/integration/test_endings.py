"""Ends that travel together: each counts for itself, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ResponseError

from jobstream import keys
from jobstream.job import JobStatus
from jobstream.queue import Queue, Submission
from jobstream.store import JobFilter
from jobstream_workers.claim import ClaimedJob, claim
from jobstream_workers.writer import Endings, Outcome

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
