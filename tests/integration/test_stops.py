"""Stops: a cancel or a timeout ends the code that runs, wherever it runs, and the record says why; so do deaths."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from arq.connections import ArqRedis

from jobstream import events, keys
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import RedisSource
from jobstream_workers import processes
from jobstream_workers.worker import Worker
from tests.working import Settings, ended, error_of, event_of, working


async def logged(client: ArqRedis, job: Job) -> list[str]:
    """The lines of the job's log."""
    snapshot = await events.read_snapshot(client, job.id, after=0)
    assert snapshot is not None
    return [event.data.decode() for event in snapshot.events if event.kind == "log"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("task", "data", "detail"),
    [
        ("too_slow", {}, "timeout 0.2 s"),
        ("slow-thread", {}, "timeout 0.2 s"),
        ("slow-process", {}, "timeout 0.5 s"),
        ("stubborn", {"times": 0}, "timeout 0.2 s"),
        ("stubborn", {"times": 1}, "timeout 0.2 s"),  # it swallows one cancellation and is told again
        ("stubborn", {"times": 2}, "timeout 0.2 s"),
    ],
)
async def test_a_timeout_ends_the_code_and_the_record_says_so(
    queue: Queue, client: ArqRedis, task: str, data: dict[str, int], detail: str
) -> None:
    job = await ended(queue, await queue.submit(task, data))
    error = error_of(job)
    assert (job.status, error["code"], error["detail"], error["status"]) == (JobStatus.FAILED, "timeout", detail, 504)
    assert await client.exists(keys.in_progress(job.id)) == 0
    assert (await ended(queue, await queue.submit("add", {"a": 1}))).status is JobStatus.SUCCEEDED


@pytest.mark.usefixtures("worker")
async def test_a_job_has_the_timeout_that_its_submit_asked_for(queue: Queue) -> None:
    job = await ended(queue, await queue.submit("waits", {}, options=SubmitOptions(timeout=0.1)))
    assert error_of(job)["detail"] == "timeout 0.1 s"


@pytest.mark.parametrize("times", [0, 1, 2])
async def test_a_coroutine_that_swallows_its_cancellation_is_told_again(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, times: int
) -> None:
    async with working(source, settings(lease_seconds=1)):
        job = await queue.submit("stubborn", {"times": times}, options=SubmitOptions(timeout=60))
        await event_of(client, job.id, "log")
        await queue.cancel(job.id)
        job = await ended(queue, job)
    assert (job.status, error_of(job)["detail"]) == (JobStatus.CANCELLED, "cancelled by client")
    assert len(await logged(client, job)) == times + 1


async def test_a_coroutine_that_never_ends_holds_up_neither_other_jobs_nor_the_shutdown(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    """Nobody can end it; its job is given back, and is cancelled where it is claimed next."""
    async with working(source, settings(max_jobs=2, kill_seconds=0.1)) as worker:
        job = await queue.submit("stubborn", {"times": 1_000}, options=SubmitOptions(timeout=60))
        await event_of(client, job.id, "log")
        await queue.cancel(job.id)
        assert (await ended(queue, await queue.submit("add", {"a": 1}))).status is JobStatus.SUCCEEDED
    assert worker.stuck == 1
    async with working(source, settings()):
        assert (await ended(queue, job)).status is JobStatus.CANCELLED
    await wear_out(job)


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_a_coroutine_that_never_ends_is_left_behind_and_its_slot_is_used_again(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis, how: str
) -> None:
    """The record ends without it, and says so. There is no further attempt, and nothing that it says is heard."""
    cancelled = how == "cancelled"
    options = SubmitOptions(timeout=60 if cancelled else 0.1)
    async with working(source, settings(max_jobs=1, kill_seconds=0)) as worker:
        job = await queue.submit("never-stops", {}, options=options, max_attempts=3)
        await event_of(client, job.id, "log")
        if cancelled:
            await queue.cancel(job.id)
        job = await ended(queue, job)
        if cancelled:
            expected = (JobStatus.CANCELLED, "cancelled by client, and the code did not stop")
        else:
            expected = (JobStatus.FAILED, "timeout 0.1 s, and the code did not stop")
        assert (job.status, error_of(job)["detail"], job.attempt) == (*expected, 1)
        assert (await ended(queue, await queue.submit("add", {"a": 1}))).status is JobStatus.SUCCEEDED
        assert worker.stuck == 1
        assert b"jobstream_coroutines_left_behind 1.0" in worker.exposition()
        said = await logged(client, job)
        await wear_out(job)
        assert worker.stuck == 0
        assert b"jobstream_coroutines_left_behind 0.0" in worker.exposition()
    assert await logged(client, job) == said
    assert await queue.get(job.id) == job


async def test_coroutines_that_never_end_make_their_worker_ill_and_use_no_more_than_its_slots_again(
    source: RedisSource, settings: Settings, queue: Queue
) -> None:
    """Their jobs end nevertheless; when one of the coroutines ends at last, there is room again."""
    async with working(source, settings(max_jobs=1, kill_seconds=0)) as worker:
        assert health(worker) == (None, 1)
        jobs = []
        for _ in range(2):
            jobs.append(await queue.submit("never-stops", {}))
            assert (await ended(queue, jobs[-1])).status is JobStatus.FAILED
        assert health(worker) == ("2 coroutines did not stop when they were told to, and run on", 0)
        waiting = await queue.submit("add", {"a": 1})
        await wear_out(jobs[0])
        assert (await ended(queue, waiting)).status is JobStatus.SUCCEEDED
        await wear_out(jobs[1])
        assert health(worker) == (None, 1)


@pytest.mark.usefixtures("worker")
async def test_a_process_that_only_computes_is_gone_after_the_grace(queue: Queue, client: ArqRedis) -> None:
    """It ignores SIGTERM; its worker's grace is a second."""
    job = await queue.submit("spins", {})
    said = await event_of(client, job.id, "log")
    pid = int(json.loads(said.data)["message"])
    assert _lives(pid)
    await queue.cancel(job.id)
    told = await _now(client)
    job = await ended(queue, job)
    assert not _lives(pid)
    assert (job.status, error_of(job)["detail"]) == (JobStatus.CANCELLED, "cancelled by client")
    assert job.finished_at is not None
    assert job.finished_at.timestamp() - told < 3


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_process_that_is_ended_by_a_signal_says_which(queue: Queue, number: signal.Signals) -> None:
    job = await ended(queue, await queue.submit("killed", {"number": number}))
    error = error_of(job)
    assert (job.status, error["code"]) == (JobStatus.FAILED, "task-crashed")
    assert error["detail"] == f"The process that ran the task was ended by {number.name}"
    assert (await ended(queue, await queue.submit("flaky_process", {"fails": 0}))).status is JobStatus.SUCCEEDED


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("number", "detail"), [(signal.SIGKILL, "killed: out of memory"), (signal.SIGSEGV, "was ended by SIGSEGV")]
)
async def test_a_process_that_the_kernel_killed_for_its_memory_says_so(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, detail: str
) -> None:
    """The kernel's count rises between the start of the attempt and its death."""
    counts = iter(range(10))
    monkeypatch.setattr(processes, "oom_kills", lambda: next(counts))
    job = await ended(queue, await queue.submit("killed", {"number": number}))
    assert detail in error_of(job)["detail"]


@pytest.mark.usefixtures("worker")
async def test_a_process_that_is_refused_memory_fails_its_job_only(queue: Queue) -> None:
    job = await ended(queue, await queue.submit("hungry", {}))
    assert (error_of(job)["code"], error_of(job)["detail"]) == ("task-raised", "MemoryError")
    assert (await ended(queue, await queue.submit("flaky_process", {"fails": 0}))).status is JobStatus.SUCCEEDED


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("task", ["waits", "thread_works", "process_works", "spins"])
async def test_a_purge_ends_the_code_and_forgets_the_job(queue: Queue, client: ArqRedis, task: str) -> None:
    job = await queue.submit(task, {})
    await event_of(client, job.id, "log")
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(keys.events(job.id))
        assert await pubsub.get_message(timeout=20) is not None  # the subscription's own
        assert (await queue.purge(job.id)).stopping
        while b" done " not in (message := await pubsub.get_message(timeout=20) or {"data": b""})["data"]:
            assert message["data"], "not purged within 20 s"
    assert [key async for key in client.scan_iter(f"*{job.id}*")] == [keys.tombstone(job.id).encode()]


def health(worker: Worker) -> tuple[str | None, int]:
    """Whether a restart would help, and how many more jobs it would claim."""
    return worker.illness, worker.free


async def wear_out(job: Job) -> None:
    """End the job's coroutine, by more cancellations than it swallows."""
    while running := [task for task in asyncio.all_tasks() if task.get_name() == f"run-{job.id}"]:
        running[0].cancel()
        await asyncio.wait(running, timeout=0)


async def _now(client: ArqRedis) -> float:
    seconds, microseconds = await client.time()
    return float(seconds) + float(microseconds) / 1e6


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
