"""Stock arq and ours on the same keys: its client against our worker, its workers beside ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus as ArqStatus
from arq.jobs import ResultNotFound

from jobstream import keys
from jobstream.catalogue import read_workers
from jobstream.embedded import ChildRedis
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue
from jobstream.redis import RedisSource, UrlSource
from jobstream.serialize import TaskFailure, deserialize, serialize
from tests.stock_worker import stock_client
from tests.working import Settings, ended, error_of, event_of, in_status, working


@pytest.fixture
def stock(client: ArqRedis) -> ArqRedis:
    """arq's own client."""
    return ArqRedis(client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)


async def enqueued(stock: ArqRedis, task: str, **options: Any) -> ArqJob:
    job = await stock.enqueue_job(task, **options)
    assert job is not None
    return job


async def result(job: ArqJob) -> Any:
    return await job.result(timeout=20, poll_delay=0.01)


async def arq_keys(client: ArqRedis) -> set[str]:
    return {key.decode() async for key in client.scan_iter("arq:*")}


async def test_the_life_of_a_job_as_the_stock_client_sees_it(
    source: RedisSource, settings: Settings, stock: ArqRedis, queue: Queue, client: ArqRedis
) -> None:
    job = await enqueued(stock, "waits", _job_id="mine")
    assert await job.status() is ArqStatus.queued
    async with working(source, settings()):
        await _has_record(client, job)
        await event_of(client, "mine", "log")
        assert await job.status() is ArqStatus.in_progress
        info = await job.info()
        assert info is not None
        assert (info.function, list(info.args), info.kwargs) == ("waits", [], {})
        assert await job.result_info() is None
        assert await job.abort(timeout=20, poll_delay=0.01)
        assert await job.status() is ArqStatus.complete
        ended_info = await job.result_info()
        assert ended_info is not None
        assert (ended_info.success, ended_info.job_try, ended_info.queue_name) == (False, 1, "default")
        assert ended_info.finish_time >= ended_info.start_time
        with pytest.raises(asyncio.CancelledError):
            await result(job)
    assert (await queue.get("mine")).status is JobStatus.CANCELLED
    assert await arq_keys(client) == {keys.arq_result("mine")}
    assert await ArqJob("nobody", client).status() is ArqStatus.not_found
    with pytest.raises(ResultNotFound):
        await ArqJob("nobody", client).result(timeout=1)


@pytest.mark.usefixtures("worker")
async def test_results_and_failures_reach_the_stock_client(stock: ArqRedis) -> None:
    assert await result(await enqueued(stock, "add", a=1, b=2)) == {"total": 3}
    with pytest.raises(TaskFailure, match="task-raised: ValueError: no such luck"):
        await result(await enqueued(stock, "raises"))
    with pytest.raises(TaskFailure, match=r"timeout 0\.2 s"):
        await result(await enqueued(stock, "too_slow"))
    with pytest.raises(TaskFailure, match="invalid-input"):
        await result(await enqueued(stock, "add", a="x"))
    with pytest.raises(TaskFailure, match="task-missing"):
        await result(await enqueued(stock, "nobody_knows"))
    assert await result(await enqueued(stock, "flaky_process", fails=1)) == 2


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("how", ["_defer_by", "_defer_until"])
async def test_a_deferred_job_runs_at_its_time(stock: ArqRedis, queue: Queue, how: str) -> None:
    due = datetime.now(UTC) + timedelta(seconds=0.7)
    job = await enqueued(stock, "who", **{how: due if how == "_defer_until" else timedelta(seconds=0.7)})
    assert await job.status() is ArqStatus.deferred
    assert await result(job) == [job.job_id, 1]
    record = await queue.get(job.job_id)
    assert record.started_at is not None
    late = (record.started_at - due).total_seconds()
    assert -0.002 <= late < 1.5


@pytest.mark.usefixtures("worker")
async def test_an_id_is_taken_until_its_result_is_gone(stock: ArqRedis, queue: Queue, client: ArqRedis) -> None:
    job = await enqueued(stock, "add", a=1, _job_id="once")
    assert await stock.enqueue_job("add", a=2, _job_id="once") is None
    assert await result(job) == {"total": 2}
    assert await stock.enqueue_job("add", a=3, _job_id="once") is None
    ours = await ended(queue, await queue.submit("add", {"a": 1}, job_id="twice"))
    assert await stock.enqueue_job("add", a=3, _job_id="twice") is None
    await client.delete(keys.arq_result("once"), keys.arq_result(ours.id))
    again = await enqueued(stock, "add", a=3, _job_id="once")
    assert await result(again) == {"total": 4}
    assert (await queue.get("once")).result == {"total": 4}


async def test_a_job_that_expired_before_a_worker_came_fails(
    source: RedisSource, settings: Settings, stock: ArqRedis, queue: Queue, client: ArqRedis
) -> None:
    job = await enqueued(stock, "add", a=1, _expires=0.02)
    while await client.exists(keys.arq_job(job.job_id)):
        pass
    async with working(source, settings()):
        with pytest.raises(TaskFailure, match="payload-expired"):
            await result(job)
    record = await queue.get(job.job_id)
    assert (record.status, error_of(record)["code"]) == (JobStatus.FAILED, "payload-expired")


@pytest.mark.usefixtures("worker")
async def test_a_long_expiry_does_not_end_early(stock: ArqRedis, client: ArqRedis) -> None:
    job = await enqueued(stock, "waits", _expires=timedelta(days=2))
    await _has_record(client, job)
    await event_of(client, job.job_id, "log")
    assert await client.ttl(keys.arq_job(job.job_id)) > 86_400
    assert await job.abort(timeout=20, poll_delay=0.01)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("task", ["waits", "thread_works", "process_works", "spins"])
async def test_an_abort_reaches_the_running_code(stock: ArqRedis, queue: Queue, client: ArqRedis, task: str) -> None:
    job = await enqueued(stock, task)
    await _has_record(client, job)
    await event_of(client, job.job_id, "log")
    assert await job.abort(timeout=20, poll_delay=0.01)
    record = await queue.get(job.job_id)
    assert (record.status, error_of(record)["detail"]) == (JobStatus.CANCELLED, "cancelled by client")
    assert await client.exists(keys.ARQ_ABORT) == 0


@pytest.mark.parametrize("defer", [None, 600])
async def test_an_abort_ends_a_job_that_waits(
    source: RedisSource, settings: Settings, stock: ArqRedis, queue: Queue, client: ArqRedis, defer: int | None
) -> None:
    job = await enqueued(stock, "who", _defer_by=defer)
    aborting = asyncio.create_task(job.abort(timeout=20, poll_delay=0.01))
    while not await client.exists(keys.ARQ_ABORT):
        pass
    async with working(source, settings()):
        assert await aborting
    assert (await queue.get(job.job_id)).status is JobStatus.CANCELLED
    assert await arq_keys(client) == {keys.arq_result(job.job_id)}


@pytest.mark.usefixtures("worker")
async def test_a_job_of_ours_is_read_by_the_stock_client(queue: Queue, client: ArqRedis) -> None:
    running = await queue.submit("waits", {})
    await event_of(client, running.id, "log")
    seen = ArqJob(running.id, client, _deserializer=deserialize)
    assert await seen.status() is ArqStatus.in_progress
    assert await seen.abort(timeout=20, poll_delay=0.01)
    assert (await queue.get(running.id)).status is JobStatus.CANCELLED
    waiting = await in_status(queue, await queue.submit("patient", {}, max_attempts=2), JobStatus.RETRYING)
    seen = ArqJob(waiting.id, client, _deserializer=deserialize)
    assert await seen.status() is ArqStatus.deferred
    assert await seen.abort(timeout=20, poll_delay=0.01)
    assert (await queue.get(waiting.id)).status is JobStatus.CANCELLED


@pytest.mark.usefixtures("worker")
async def test_a_pickle_is_refused_and_says_what_to_do(client: ArqRedis, queue: Queue) -> None:
    """arq's default serializer: its bytes are code, and are not run."""
    job = await enqueued(ArqRedis(client.connection_pool), "add", a=1)
    record = await _ended(queue, job)
    assert error_of(record)["code"] == "payload-unreadable"
    assert "jobstream.serialize" in error_of(record)["detail"]


async def test_stock_workers_and_ours_share_a_queue_and_run_each_job_once(
    real_source: UrlSource, redis_server: ChildRedis, tmp_path: Path
) -> None:
    """Two processes of each kind; half of the jobs from each kind of client."""
    client, stock = real_source.client(), stock_client(redis_server.url)
    queue = Queue(client)
    notes = tmp_path / "notes"
    notes.touch()
    data = {"path": str(notes)}
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.aclose)
        stack.push_async_callback(stock.aclose, close_connection_pool=True)
        for _ in range(2):
            await stack.enter_async_context(_process("tests.stock_worker", redis_server.url))
            await stack.enter_async_context(_process("jobstream_workers.main", **_environment(redis_server, tmp_path)))
        await _all_work(client)
        ids: list[str] = []
        for _ in range(25):
            ours = await asyncio.gather(*(queue.submit("note", data) for _ in range(50)))
            theirs = await asyncio.gather(*(enqueued(stock, "note", **data) for _ in range(50)))
            ids += [job.id for job in ours] + [job.job_id for job in theirs]
        for job_id in ids:
            job = ArqJob(job_id, client, _deserializer=deserialize)
            assert await job.result(timeout=60, poll_delay=0.02) == "noted"
    lines = notes.read_text().splitlines()
    assert Counter(line.split()[0] for line in lines) == dict.fromkeys(ids, 1)
    by = Counter(line.split()[1] for line in lines)
    assert min(by["ours"], by["stock"]) > 0, by
    async with contextlib.aclosing(real_source.client()) as last:
        assert await arq_keys(last) == {keys.arq_result(job_id) for job_id in ids}


async def _has_record(client: ArqRedis, job: ArqJob) -> None:
    """Return when a worker has made the record of a job from a stock client."""
    while not await client.exists(keys.record(job.job_id)):
        pass


async def _ended(queue: Queue, job: ArqJob) -> Job:
    while not await queue.client.exists(keys.arq_result(job.job_id)):
        pass
    return await queue.get(job.job_id)


async def _all_work(client: ArqRedis) -> None:
    """Return when two of our workers and one of arq's have said that they live."""
    while len(await read_workers(client)) < 2 or not await client.exists(keys.queue("default") + ":health-check"):
        pass


def _environment(server: ChildRedis, files: Path) -> dict[str, str]:
    return {
        "JOBSTREAM_REDIS_URL": server.url,
        "JOBSTREAM_TASKS": "tests.worker_tasks",
        "JOBSTREAM_FILES_DIR": str(files),
        "JOBSTREAM_MAX_JOBS": "2",  # ours are much faster: stock workers are to have a share
    }


@contextlib.asynccontextmanager
async def _process(module: str, *arguments: str, **environment: str) -> AsyncIterator[None]:
    """A Python process that is ended by SIGTERM, and must take that well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, env=os.environ | environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield
        process.terminate()
        async with asyncio.timeout(20):
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
