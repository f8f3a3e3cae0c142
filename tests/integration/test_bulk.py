"""cancel-jobs and retry-jobs: what they touch, what they leave alone, and what they count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis

from jobstream import JobContext, keys, task
from jobstream.bulk import CANCEL_JOBS, RETRY_JOBS
from jobstream.errors import ConfigurationError, JobConflict, JobNotFound
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue, Submission, SubmitOptions
from jobstream.redis import RedisSource
from jobstream_workers.bulk import cancel_jobs, retry_jobs, with_bulk_tasks
from tests.working import PATIENCE, TASKS, ended, in_status, quick_settings, working

BULK = with_bulk_tasks(TASKS)


@pytest.fixture
def queue(client: ArqRedis) -> Queue:
    return Queue(client)


async def waiting(
    queue: Queue, count: int, *, tag: str = "all", owner: str | None = None, task: str = "nobody"
) -> list[str]:
    """Ids of jobs that nobody runs."""
    options = SubmitOptions(tags=[tag], delay=3600)
    return list(await queue.submit_many([Submission(task, {}, options, owner=owner) for _ in range(count)]))


async def failed_again(queue: Queue, job: Job) -> None:
    """The second attempt is over, too."""
    async with queue.client.pubsub() as pubsub:
        await pubsub.subscribe(keys.events(job.id))
        while (found := await queue.get(job.id)).attempt < 2 or not found.done:
            assert await pubsub.get_message(timeout=PATIENCE) is not None


async def clock(queue: Queue) -> int:
    """Redis's time in ms."""
    seconds, microseconds = await queue.client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


async def bulk(queue: Queue, task: str, data: dict[str, Any], *, owner: str | None = None) -> Job:
    return await queue.submit(task, data, max_attempts=5, owner=owner, options=SubmitOptions(priority=100))


async def statuses(queue: Queue, ids: list[str]) -> set[str]:
    return {(await queue.get(job_id)).status for job_id in ids}


async def test_what_matches_is_cancelled_and_counted(source: RedisSource, queue: Queue, tmp_path: Path) -> None:
    mine = await waiting(queue, 450, tag="mine")
    others = await waiting(queue, 3, tag="others")
    done = mine[7]
    await queue.cancel(done)
    async with working(source, quick_settings(tmp_path), tasks=BULK):
        job = await ended(queue, await bulk(queue, CANCEL_JOBS, {"tag": "mine"}))
    assert job.result == {"matched": 449, "changed": 449, "skipped": 0}
    assert job.progress is not None
    assert job.progress.current == 449
    assert await statuses(queue, mine) == {JobStatus.CANCELLED}
    assert await statuses(queue, others) == {JobStatus.SCHEDULED}


async def test_jobs_in_every_state_are_stopped_but_not_itself_and_none_that_came_later(
    source: RedisSource, queue: Queue, tmp_path: Path
) -> None:
    scheduled = await waiting(queue, 2)
    queued = [(await queue.submit("nobody", {})).id]
    async with working(source, quick_settings(tmp_path), tasks=BULK):
        runs = await queue.submit("waits", {})
        await in_status(queue, runs, JobStatus.RUNNING)
        last = await bulk(queue, CANCEL_JOBS, {"all": True})
        while await clock(queue) <= last.created_at.timestamp() * 1000:  # what comes in the same millisecond may be met
            pass
        later = await waiting(queue, 2)
        job = await ended(queue, last)
        assert job.status is JobStatus.SUCCEEDED
        await ended(queue, runs)
    assert await statuses(queue, [*scheduled, *queued, runs.id]) == {JobStatus.CANCELLED}
    assert await statuses(queue, later) == {JobStatus.SCHEDULED}
    assert job.result["changed"] == 4


async def test_a_tenants_order_does_not_reach_anybody_elses_jobs(
    source: RedisSource, queue: Queue, tmp_path: Path
) -> None:
    mine, other, nobodys = [await waiting(queue, 3, owner=owner) for owner in ("acme", "globex", None)]
    async with working(source, quick_settings(tmp_path), tasks=BULK):
        job = await ended(queue, await bulk(queue, CANCEL_JOBS, {"all": True}, owner="acme"))
        assert job.result == {"matched": 3, "changed": 3, "skipped": 0}
        assert await statuses(queue, mine) == {JobStatus.CANCELLED}
        assert await statuses(queue, other + nobodys) == {JobStatus.SCHEDULED}
        everybodys = await ended(queue, await bulk(queue, CANCEL_JOBS, {"all": True}))
    assert everybodys.result == {"matched": 6, "changed": 6, "skipped": 0}


async def test_failed_jobs_run_again_and_cancelled_ones_only_when_asked_for(
    source: RedisSource, queue: Queue, tmp_path: Path
) -> None:
    async with working(source, quick_settings(tmp_path), tasks=BULK):
        failed = [await ended(queue, await queue.submit("raises", {})) for _ in range(3)]
        (cancelled,) = await waiting(queue, 1)
        await queue.cancel(cancelled)
        job = await ended(queue, await bulk(queue, RETRY_JOBS, {"all": True}))
        assert job.result == {"matched": 3, "changed": 3, "skipped": 0}
        for each in failed:
            await failed_again(queue, each)
        assert {(await queue.get(each.id)).attempt for each in failed} == {2}
        assert await statuses(queue, [cancelled]) == {JobStatus.CANCELLED}
        job = await ended(queue, await bulk(queue, RETRY_JOBS, {"status": "cancelled"}))
        assert job.result == {"matched": 1, "changed": 1, "skipped": 0}
        assert await statuses(queue, [cancelled]) == {JobStatus.QUEUED}


async def test_a_retry_that_runs_again_retries_nothing_twice(source: RedisSource, queue: Queue, tmp_path: Path) -> None:
    """As after a crash: what the first run has retried has failed again meanwhile."""
    async with working(source, quick_settings(tmp_path), tasks=BULK):
        failed = [await ended(queue, await queue.submit("raises", {})) for _ in range(3)]
        order = await bulk(queue, RETRY_JOBS, {"status": "failed"})
        await ended(queue, order)
        for each in failed:
            await failed_again(queue, each)
        context = await queue.get(order.id)
        with pytest.raises(JobConflict):
            await queue.retry(failed[0].id, ended_before=context.created_at)
        assert {(await queue.get(each.id)).attempt for each in failed} == {2}


async def test_orders_are_not_given_again_by_a_filter(source: RedisSource, queue: Queue, tmp_path: Path) -> None:
    async with working(source, quick_settings(tmp_path), tasks=BULK):
        order = await queue.submit(CANCEL_JOBS, {"all": True}, options=SubmitOptions(delay=3600))
        await queue.cancel(order.id)
        job = await ended(queue, await bulk(queue, RETRY_JOBS, {"status": "cancelled"}))
    assert job.result == {"matched": 1, "changed": 0, "skipped": 1}
    assert (await queue.get(order.id)).status is JobStatus.CANCELLED


async def test_only_the_state_that_was_asked_for_is_stopped(queue: Queue) -> None:
    job = await queue.submit("nobody", {})
    with pytest.raises(JobConflict):
        await queue.cancel(job.id, only="running")
    assert (await queue.get(job.id)).status is JobStatus.QUEUED
    assert (await queue.cancel(job.id, only="queued")).job.status is JobStatus.CANCELLED


async def test_running_code_sees_the_jobs_of_its_own_owner(source: RedisSource, queue: Queue, tmp_path: Path) -> None:
    @task
    async def look(job: JobContext, other: str) -> list[str]:
        with pytest.raises(JobNotFound):
            await job.queue.get(other)
        with pytest.raises(JobNotFound):
            await job.queue.cancel(other)
        with pytest.raises(JobNotFound):
            await job.queue.retry(other)
        page, _ = await job.queue.list(limit=10)
        return [each.id for each in page]

    @task
    def blocked(job: JobContext) -> str:
        with pytest.raises(RuntimeError, match="async def"):
            _ = job.queue
        return "refused"

    (other,) = await waiting(queue, 1, owner="globex")
    async with working(source, quick_settings(tmp_path), tasks={"look": look, "blocked": blocked}):
        job = await ended(queue, await queue.submit("look", {"other": other}, owner="acme"))
        assert job.result == [job.id]
        assert (await ended(queue, await queue.submit("blocked", {}))).result == "refused"


def test_a_task_of_the_same_name_stops_the_worker_with_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="cancel-jobs"):
        with_bulk_tasks({CANCEL_JOBS: cancel_jobs})
    assert with_bulk_tasks({}) == {CANCEL_JOBS: cancel_jobs, RETRY_JOBS: retry_jobs}
