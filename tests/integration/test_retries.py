"""Retries: which failures are tried again, how often, when; what the record keeps of them; running a job again."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus as ArqStatus

from jobstream import events, keys
from jobstream.errors import JobConflict, JobGone, JobNotFound
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue
from jobstream.redis import RedisSource
from jobstream.serialize import deserialize, serialize
from jobstream.store import JobFilter
from jobstream_workers.claim import claim
from jobstream_workers.writer import AttemptWriter
from tests.working import TASKS, Settings, ended, error_of, event_of, in_status, lease_over, working

DAY = 86_400


async def submitted(queue: Queue, task: str, data: dict[str, Any] | None = None) -> Job:
    """Hand a job over as the API would."""
    attempts = TASKS[task].retry.attempts if task in TASKS else 1
    return await queue.submit(task, data or {}, max_attempts=attempts)


def attempts_in(job: Job) -> list[int]:
    return [error.attempt for error in job.errors]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("task", ["flaky", "flaky_thread", "flaky_process"])
async def test_a_failed_attempt_is_followed_by_another_until_one_succeeds(queue: Queue, task: str) -> None:
    job = await ended(queue, await submitted(queue, task, {"fails": 2}))
    assert (job.status, job.result, job.attempt, job.max_attempts) == (JobStatus.SUCCEEDED, 3, 3, 3)
    assert (job.error, job.run_at) == (None, None)
    assert [(error.attempt, error.detail) for error in job.errors] == [
        (1, "Unlucky: attempt 1"),
        (2, "Unlucky: attempt 2"),
    ]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("task", ["flaky", "flaky_thread", "flaky_process"])
async def test_the_last_attempt_ends_the_job_and_every_error_is_kept(queue: Queue, task: str) -> None:
    job = await ended(queue, await submitted(queue, task, {"fails": 9}))
    assert (job.status, job.attempt, job.result) == (JobStatus.FAILED, 3, None)
    assert attempts_in(job) == [1, 2, 3]
    assert job.error == job.errors[-1]
    assert error_of(job)["detail"] == "Unlucky: attempt 3"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("task", ["flaky", "flaky_thread", "flaky_process"])
async def test_a_subclass_in_give_up_on_is_not_tried_again(queue: Queue, task: str) -> None:
    job = await ended(queue, await submitted(queue, task, {"fails": 1, "hopeless": True}))
    assert (job.status, job.attempt, attempts_in(job)) == (JobStatus.FAILED, 1, [1])
    assert error_of(job)["retryable"] is False


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("task", "data", "attempts", "status"),
    [
        ("slow_at_first", {}, [1], JobStatus.SUCCEEDED),  # a timeout is a TimeoutError
        ("only_timeouts", {}, [1], JobStatus.FAILED),  # not in retry_on
        ("dies_at_first", {}, [1], JobStatus.SUCCEEDED),  # the child's death is no worker's crash
        ("refuses_again", {"retryable": True}, [1, 2, 3], JobStatus.FAILED),
        ("refuses_again", {"retryable": False}, [1], JobStatus.FAILED),
        ("flaky", {"fails": "x"}, [1], JobStatus.FAILED),  # the input is as wrong the next time
        ("raises", {}, [1], JobStatus.FAILED),  # no policy
    ],
)
async def test_the_policy_decides_what_is_tried_again(
    queue: Queue, task: str, data: dict[str, Any], attempts: list[int], status: JobStatus
) -> None:
    job = await ended(queue, await submitted(queue, task, data))
    assert (job.status, attempts_in(job)) == (status, attempts)
    assert job.attempt == len(attempts) + (status is JobStatus.SUCCEEDED)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("task", ["asks", "asks_process"])
async def test_a_task_asks_to_be_tried_again_at_a_time_of_its_choice(queue: Queue, client: ArqRedis, task: str) -> None:
    job = await ended(queue, await submitted(queue, task, {"times": 1, "after": 0.25}))
    assert (job.status, job.result) == (JobStatus.SUCCEEDED, 2)
    assert [(error.attempt, error.code, error.detail) for error in job.errors] == [(1, "retry", "not yet")]
    [wait] = await _waits(client, job)
    assert 250 <= wait < 2000


@pytest.mark.usefixtures("worker")
async def test_asking_again_counts_as_an_attempt(queue: Queue) -> None:
    job = await ended(queue, await submitted(queue, "asks", {"times": 9, "after": 0}))
    assert (job.status, job.attempt, attempts_in(job)) == (JobStatus.FAILED, 3, [1, 2, 3])
    assert error_of(job)["detail"] == "not yet; attempt 3 of 3 was the last"


@pytest.mark.usefixtures("worker")
async def test_a_task_without_a_policy_asks_in_vain_and_the_record_says_so(queue: Queue) -> None:
    job = await ended(queue, await submitted(queue, "asks_in_vain"))
    assert (job.status, job.attempt) == (JobStatus.FAILED, 1)
    assert error_of(job)["detail"] == "not yet; attempt 1 of 1 was the last"


@pytest.mark.usefixtures("worker")
async def test_the_waits_grow_up_to_their_limit(queue: Queue, client: ArqRedis) -> None:
    job = await ended(queue, await submitted(queue, "backs_off"))
    waits = await _waits(client, job)
    for wait, planned in zip(waits, [20, 60, 100, 100], strict=True):
        assert planned <= wait < planned + 400
    assert await _planned(client, job) == [20, 60, 100, 100]


@pytest.mark.usefixtures("worker")
async def test_a_job_that_waits_for_its_next_attempt_says_when_and_why(queue: Queue, client: ArqRedis) -> None:
    job = await in_status(queue, await submitted(queue, "patient"), JobStatus.RETRYING)
    assert job.run_at is not None
    assert job.started_at is not None
    assert 200 <= (job.run_at - job.started_at).total_seconds() < 220
    assert (job.done, job.attempt, job.max_attempts, job.worker, job.finished_at) == (False, 1, 2, None, None)
    assert (error_of(job)["detail"], error_of(job)["retryable"], attempts_in(job)) == ("Unlucky: today", True, [1])
    listed, _ = await queue.list(JobFilter(status="retrying"))
    assert [one.id for one in listed] == [job.id]
    assert (await queue.list(JobFilter(status="running")))[0] == []
    stock = ArqJob(job.id, client, _deserializer=deserialize)
    assert await stock.status() is ArqStatus.deferred


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("purge", [False, True])
async def test_a_job_that_waits_for_its_next_attempt_is_stopped_at_once(
    queue: Queue, client: ArqRedis, purge: bool
) -> None:
    job = await in_status(queue, await submitted(queue, "patient"), JobStatus.RETRYING)
    outcome = await (queue.purge if purge else queue.cancel)(job.id)
    assert (outcome.stopping, outcome.was_done) == (False, False)
    if purge:
        with pytest.raises(JobGone):
            await queue.get(job.id)
        assert (await queue.list())[0] == []
    else:
        job = await queue.get(job.id)
        assert (job.status, error_of(job)["code"], attempts_in(job)) == (JobStatus.CANCELLED, "cancelled", [1])
    assert [key async for key in client.scan_iter("arq:*")] == []


@pytest.mark.usefixtures("worker")
async def test_a_cancelled_job_is_not_tried_again_whatever_its_cleaning_up_raises(
    queue: Queue, client: ArqRedis
) -> None:
    job = await submitted(queue, "fails_when_cancelled")
    await event_of(client, job.id, "log")
    assert (await queue.cancel(job.id)).stopping
    job = await ended(queue, job)
    assert (job.status, job.attempt) == (JobStatus.CANCELLED, 1)
    assert (error_of(job)["detail"], job.errors) == ("cancelled by client", [])


async def test_a_cancel_that_comes_before_the_failure_is_written_is_kept(queue: Queue, client: ArqRedis) -> None:
    """The worker has not heard of it: the script that would let the job wait again is the last to know."""
    job = await submitted(queue, "patient")
    [claimed], _ = await claim(client, queue="default", worker_id="w", slots=1, lease=60)
    assert (await queue.cancel(job.id)).stopping
    writer = AttemptWriter(client, claimed)
    assert not await writer.retry({"detail": "no luck", "attempt": 1}, after=600)
    assert (await queue.get(job.id)).status is JobStatus.CANCELLING


async def test_a_wait_that_is_longer_than_jobs_are_kept_keeps_the_job(queue: Queue, client: ArqRedis) -> None:
    job = await submitted(queue, "patient")
    [claimed], _ = await claim(client, queue="default", worker_id="w", slots=1, lease=60)
    assert await AttemptWriter(client, claimed).retry({"detail": "no luck", "attempt": 1}, after=300 * DAY)
    for key in (keys.record(job.id), keys.log(job.id), keys.arq_job(job.id), keys.ARQ_RETRY + job.id):
        assert await client.ttl(key) > 300 * DAY


async def test_dead_workers_and_shutdowns_use_up_no_attempt(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    job = await submitted(queue, "always_unlucky")
    [released], _ = await claim(client, queue="default", worker_id="stops", slots=1, lease=60)
    assert await AttemptWriter(client, released).release()
    for worker_id in ("dies-1", "dies-2"):
        await _claim_and_die(client, worker_id)
    async with working(source, settings()):
        job = await ended(queue, job)
    # Attempts 1 and 2 died with their workers; 3, 4 and 5 are the three of the policy.
    assert (job.status, job.attempt, attempts_in(job)) == (JobStatus.FAILED, 5, [3, 4, 5])
    assert error_of(job)["code"] == "task-raised"


@pytest.mark.parametrize("task", ["who", "nobody_knows"])
async def test_a_job_that_was_told_to_stop_ends_cancelled_however_many_workers_died_with_it(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, task: str
) -> None:
    """Nothing of it is run any more, so the worker that ends it need not even have its task."""
    job = await submitted(queue, task)
    for worker_id in ("dies-1", "dies-2"):
        await _claim_and_die(client, worker_id)
    await claim(client, queue="default", worker_id="dies-3", slots=1, lease=60)
    await queue.cancel(job.id)
    assert (await queue.get(job.id)).status is JobStatus.CANCELLING
    await client.delete(keys.in_progress(job.id))  # its lease ends
    await client.zadd(keys.queue("default"), {job.id: 1})
    async with working(source, settings(max_crashes=3)):
        stopped = await ended(queue, job)
    assert (stopped.status, error_of(stopped)["code"]) == (JobStatus.CANCELLED, "cancelled")


async def test_a_job_whose_workers_die_fails_with_that_reason_and_can_be_run_again(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    job = await submitted(queue, "who")
    for worker_id in ("dies-1", "dies-2", "dies-3"):
        await _claim_and_die(client, worker_id)
    async with working(source, settings(max_crashes=3)):
        failed = await ended(queue, job)
        assert (failed.status, error_of(failed)["code"]) == (JobStatus.FAILED, "worker-crashed")
        assert error_of(failed)["detail"] == "3 workers died while they ran the job"
        await queue.retry(job.id)
        again = await in_status(queue, job, JobStatus.SUCCEEDED)
    assert again.result == [job.id, 5]


@pytest.mark.usefixtures("worker")
async def test_running_a_job_again_gives_it_all_its_attempts_and_counts_on(queue: Queue, client: ArqRedis) -> None:
    job = await submitted(queue, "flaky", {"fails": 5})
    assert (await ended(queue, job)).status is JobStatus.FAILED
    again = await queue.retry(job.id)
    assert (again.id, again.status, again.attempt, again.done) == (job.id, JobStatus.QUEUED, 3, False)
    assert (again.error, again.finished_at, again.expires_at, again.started_at) == (None, None, None, None)
    job = await in_status(queue, job, JobStatus.SUCCEEDED)
    assert (job.result, job.attempt, attempts_in(job)) == (6, 6, [1, 2, 3, 4, 5])
    assert {key async for key in client.scan_iter("arq:*")} == {keys.arq_result(job.id).encode()}


@pytest.mark.usefixtures("worker")
async def test_a_job_that_is_run_again_is_found_by_its_new_status_only(queue: Queue) -> None:
    failed = await ended(queue, await submitted(queue, "raises"))
    assert [job.id for job in (await queue.list(JobFilter(status="failed")))[0]] == [failed.id]
    await queue.retry(failed.id)
    assert failed.id not in [job.id for job in (await queue.list(JobFilter(status="failed")))[0] if not job.done]
    job = await in_status(queue, failed, JobStatus.FAILED)
    assert (job.attempt, attempts_in(job)) == (2, [1, 2])
    assert [job.id for job in (await queue.list(JobFilter(status="failed")))[0]] == [failed.id]


@pytest.mark.usefixtures("worker")
async def test_only_a_failed_or_cancelled_job_is_run_again(queue: Queue, client: ArqRedis) -> None:
    good = await ended(queue, await submitted(queue, "add", {"a": 1}))
    with pytest.raises(JobConflict, match="succeeded"):
        await queue.retry(good.id)
    running = await submitted(queue, "waits")
    await event_of(client, running.id, "log")
    with pytest.raises(JobConflict, match="running"):
        await queue.retry(running.id)
    await queue.cancel(running.id)
    await ended(queue, running)
    assert (await queue.retry(running.id)).status is JobStatus.QUEUED
    await in_status(queue, running, JobStatus.RUNNING)
    with pytest.raises(JobNotFound):
        await queue.retry("nobody")


async def test_a_job_that_is_asked_for_twice_runs_again_once(queue: Queue, client: ArqRedis) -> None:
    job = await submitted(queue, "raises")
    await queue.cancel(job.id)
    answers = await asyncio.gather(*(queue.retry(job.id) for _ in range(3)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["Job", "JobConflict", "JobConflict"]
    claimed, _ = await claim(client, queue="default", worker_id="w", slots=10, lease=60)
    assert [one.id for one in claimed] == [job.id]


async def test_an_abort_of_the_run_before_does_not_stop_the_next_one(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    """Stock arq marks a job as aborted although it has ended."""
    async with working(source, settings()):
        job = await ended(queue, await submitted(queue, "flaky", {"fails": 3}))
        await client.zadd(keys.ARQ_ABORT, {job.id: 1})
        await queue.retry(job.id)
        assert (await in_status(queue, job, JobStatus.SUCCEEDED)).result == 4


async def test_a_job_from_a_stock_client_is_tried_again_as_its_task_says(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    stock = ArqRedis(client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
    enqueued = await stock.enqueue_job("flaky", fails=2)
    assert enqueued is not None
    async with working(source, settings()):
        assert await enqueued.result(timeout=20, poll_delay=0.01) == 3
    job = await queue.get(enqueued.job_id)
    assert (job.attempt, job.max_attempts, attempts_in(job)) == (3, 3, [1, 2])


async def _claim_and_die(client: ArqRedis, worker_id: str) -> None:
    """Take a job as a worker that is never heard of again; return when its lease has ended."""
    claimed, _ = await claim(client, queue="default", worker_id=worker_id, slots=1, lease=0.02)
    for job in claimed:
        await lease_over(client, job.id)


async def _statuses(client: ArqRedis, job: Job) -> list[tuple[int, dict[str, Any]]]:
    """Milliseconds and data of each change of status."""
    snapshot = await events.read_snapshot(client, job.id, after=0)
    assert snapshot is not None
    return [(event.time_ms, json.loads(event.data)) for event in snapshot.events if event.kind == "status"]


async def _planned(client: ArqRedis, job: Job) -> list[int]:
    """Milliseconds between each failure and the next attempt, as announced."""
    return [
        round(datetime.fromisoformat(data["run_at"]).timestamp() * 1000) - at
        for at, data in await _statuses(client, job)
        if data["status"] == "retrying"
    ]


async def _waits(client: ArqRedis, job: Job) -> list[int]:
    """Milliseconds between each failure and the start of the next attempt."""
    changes = pairwise(await _statuses(client, job))
    return [after - before for (before, data), (after, _) in changes if data["status"] == "retrying"]
