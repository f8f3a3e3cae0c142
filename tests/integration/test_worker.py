"""The worker: every way a job can end, on Redis and on fakeredis; what dies with a worker and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob

from jobstream import catalogue, events, keys
from jobstream.embedded import ChildRedis
from jobstream.job import JobStatus
from jobstream.queue import Queue, SubmitOptions
from jobstream.redis import RedisSource, UrlSource
from jobstream.serialize import TaskFailure, deserialize, serialize
from jobstream_workers.claim import claim
from tests.worker_tasks import ORDER, TURNSTILE
from tests.working import TASKS, Settings, ended, error_of, event_of, working


@pytest.mark.usefixtures("worker")
async def test_a_job_runs_and_its_record_and_arq_result_say_so(queue: Queue, client: ArqRedis) -> None:
    job = await ended(queue, await queue.submit("add", {"a": 41}))
    assert (job.status, job.result, job.error, job.attempt) == (JobStatus.SUCCEEDED, {"total": 42}, None, 1)
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.expires_at is not None
    assert job.finished_at >= job.started_at >= job.created_at
    stock = ArqJob(job.id, client, _deserializer=deserialize)
    info = await stock.result_info()
    assert info is not None
    assert (info.success, info.result, info.function, info.kwargs) == (True, {"total": 42}, "add", {"a": 41})


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("task", "data", "code", "status", "detail"),
    [
        ("raises", {}, "task-raised", 500, "ValueError: no such luck"),
        ("refuses", {}, "not-yours", 403, "the URL is not yours"),
        ("wrong_result", {}, "invalid-output", 500, "total"),
        ("add", {"a": "x"}, "invalid-input", 422, "add"),
        ("too_slow", {}, "timeout", 504, "timeout 0.2 s"),
    ],
)
async def test_what_goes_wrong_fails_the_job_with_a_clear_error_and_the_worker_goes_on(
    queue: Queue, task: str, data: dict[str, Any], code: str, status: int, detail: str
) -> None:
    job = await ended(queue, await queue.submit(task, data))
    error = error_of(job)
    assert job.status is JobStatus.FAILED
    assert (error["code"], error["status"], error["attempt"]) == (code, status, 1)
    assert detail in error["detail"]
    assert "Traceback" not in json.dumps(error)
    assert (await ended(queue, await queue.submit("add", {"a": 1}))).status is JobStatus.SUCCEEDED


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "payload", [b"", b"\x80\x04K\x01.", b"\xff", b"\x93\x01\x02\x03", msgspec.msgpack.encode({"f": 1})]
)
async def test_a_payload_that_cannot_be_read_fails_its_job_only(queue: Queue, client: ArqRedis, payload: bytes) -> None:
    """Bytes of a pickle, of nothing, of the wrong shape: never executed, never a crash."""
    await client.set(keys.arq_job("strange"), payload, px=60_000)
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(keys.events("strange"))
        await pubsub.get_message(timeout=20)
        await client.zadd(keys.queue("default"), {"strange": 1})
        while b" done " not in (await pubsub.get_message(timeout=20) or {"data": b""})["data"]:
            pass
    job = await queue.get("strange")
    assert job.status is JobStatus.FAILED
    assert error_of(job)["code"] in ("payload-unreadable", "payload-expired")
    assert (await ended(queue, await queue.submit("add", {"a": 1}))).status is JobStatus.SUCCEEDED


@pytest.mark.usefixtures("worker")
async def test_a_stock_arq_client_enqueues_and_reads_the_result(client: ArqRedis, queue: Queue) -> None:
    stock = ArqRedis(client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
    one = await stock.enqueue_job("add", a=2, b=3)
    other = await stock.enqueue_job("add", {"a": 5})
    bad = await stock.enqueue_job("raises")
    assert one is not None
    assert other is not None
    assert bad is not None
    assert await one.result(timeout=20, poll_delay=0.01) == {"total": 5}
    assert await other.result(timeout=20, poll_delay=0.01) == {"total": 6}
    with pytest.raises(TaskFailure, match="no such luck"):
        await bad.result(timeout=20, poll_delay=0.01)
    job = await queue.get(one.job_id)
    assert (job.task, job.status, job.result) == ("add", JobStatus.SUCCEEDED, {"total": 5})
    assert {job.id for job in (await queue.list())[0]} == {one.job_id, other.job_id, bad.job_id}


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("task", ["waits", "thread_works", "process_works"])
async def test_a_cancel_reaches_the_running_code(queue: Queue, client: ArqRedis, task: str) -> None:
    job = await queue.submit(task, {})
    await event_of(client, job.id, "log")
    assert (await queue.cancel(job.id)).stopping
    job = await ended(queue, job)
    assert (job.status, job.result) == (JobStatus.CANCELLED, None)
    assert (error_of(job)["code"], error_of(job)["detail"]) == ("cancelled", "cancelled by client")
    kinds = [event.kind for event in (await events.read_snapshot(client, job.id, after=0)).events]  # type: ignore[union-attr]
    assert kinds[-1] == "done"
    assert kinds.count("done") == 1
    assert await client.exists(keys.in_progress(job.id), keys.arq_job(job.id)) == 0


@pytest.mark.usefixtures("worker")
async def test_a_stock_abort_reaches_the_running_code(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    async with working(source, settings(lease_seconds=1, queues="quick")):
        job = await queue.submit("waits", {}, options=SubmitOptions(queue="quick"))
        await event_of(client, job.id, "log")
        stock = ArqJob(job.id, client, _queue_name=keys.queue("quick"), _deserializer=deserialize)
        assert await stock.abort(timeout=20, poll_delay=0.01)
        assert (await queue.get(job.id)).status is JobStatus.CANCELLED


@pytest.mark.usefixtures("worker")
async def test_many_words_are_few_writes_and_the_last_one_is_kept(queue: Queue, client: ArqRedis) -> None:
    job = await ended(queue, await queue.submit("talks", {"words": 5000}))
    assert job.progress is not None
    assert (job.progress.current, job.progress.total, job.progress.percent) == (5000, 5000, 100)
    assert job.progress.items == ["item 4999"]
    snapshot = await events.read_snapshot(client, job.id, after=0)
    assert snapshot is not None
    said = [(event.kind, json.loads(event.data)) for event in snapshot.events if event.kind in ("log", "chunk")]
    assert [data["message"] for kind, data in said if kind == "log"] == [f"line {n}" for n in range(20)]
    assert [data["n"] for kind, data in said if kind == "chunk"] == list(range(20))
    assert job.version < 60  # 44 durable events, and a handful of progress


@pytest.mark.usefixtures("worker")
async def test_an_integer_of_any_size_survives(queue: Queue, client: ArqRedis) -> None:
    job = await ended(queue, await queue.submit("huge", {}))
    assert job.result == 10**40
    info = await ArqJob(job.id, client, _deserializer=deserialize).result_info()
    assert info is not None
    assert info.result == 10**40
    assert (await ended(queue, await queue.submit("add", {"a": 10**40}))).result == {"total": 10**40 + 1}


@pytest.mark.usefixtures("worker")
async def test_a_delayed_job_runs_when_it_is_due(queue: Queue) -> None:
    job = await ended(queue, await queue.submit("add", {"a": 1}, options=SubmitOptions(delay=0.3)))
    assert job.started_at is not None
    assert 0.3 <= (job.started_at - job.created_at).total_seconds() < 2


async def test_a_worker_announces_its_tasks_and_says_goodbye(
    source: RedisSource, settings: Settings, client: ArqRedis
) -> None:
    async with working(source, settings(max_jobs=3)) as worker:
        [info] = await catalogue.read_workers(client)
        assert (info.id, info.slots, info.queues) == (worker.id, 3, ("default",))
        version, tasks = await catalogue.read_catalogue(client)
        assert version == 1
        assert tasks["add"].input_schema["required"] == ["a"]
        assert tasks.keys() == TASKS.keys()
    assert await catalogue.read_workers(client) == []
    assert (await catalogue.read_catalogue(client))[1].keys() == TASKS.keys()


async def test_a_shutdown_gives_running_jobs_back_uncounted_and_another_worker_runs_them(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    async with working(source, settings()):
        waiting = await queue.submit("waits", {})
        await event_of(client, waiting.id, "log")
    released = await queue.get(waiting.id)
    assert (released.status, released.attempt, released.worker) == (JobStatus.QUEUED, 0, None)
    async with working(source, settings()) as heir:
        async with client.pubsub() as pubsub:
            await pubsub.subscribe(keys.events(waiting.id))
            while (job := await queue.get(waiting.id)).status is not JobStatus.RUNNING:
                await pubsub.get_message(timeout=20)
        assert (job.attempt, job.worker) == (1, heir.id)
        await queue.cancel(waiting.id)
        await ended(queue, waiting)


async def test_a_shutdown_waits_for_what_ends_in_time(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    async with working(source, settings(shutdown_seconds=20)) as worker:
        job = await queue.submit("waits", {})
        await event_of(client, job.id, "log")
        worker.stop()
        await queue.cancel(job.id)
    assert (await queue.get(job.id)).status is JobStatus.CANCELLED


async def test_a_job_that_blocks_the_event_loop_keeps_its_lease(
    source: RedisSource, settings: Settings, queue: Queue
) -> None:
    """The lease is renewed from a thread: nobody else gets a job whose worker lives."""
    async with working(source, settings(lease_seconds=1)), working(source, settings(lease_seconds=1)):
        job = await ended(queue, await queue.submit("blocks", {"seconds": 2.5}))
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)


async def test_a_dead_workers_job_runs_again_when_its_lease_has_ended(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    job = await queue.submit("who", {})
    claimed, _ = await claim(client, queue="default", worker_id="dead", slots=1, lease=1)
    assert [one.id for one in claimed] == [job.id]
    async with working(source, settings()):
        job = await ended(queue, job)
    assert (job.status, job.result) == (JobStatus.SUCCEEDED, [job.id, 2])


async def test_a_dead_workers_job_does_not_wait_behind_all_that_is_queued(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    """It has its old place again, although every worker is busy."""
    gate = TURNSTILE.gates["busy"] = asyncio.Event()
    async with working(source, settings(lease_seconds=1, max_jobs=1)):
        busy = await queue.submit("waits_at", {"gate": "busy"})
        await event_of(client, busy.id, "log")
        for name in "abc":
            await queue.submit("enters", {"name": name}, job_id=name)
        lost = await queue.submit("enters", {"name": "lost"}, options=SubmitOptions(priority=1))
        await claim(client, queue="default", worker_id="dead", slots=1, lease=0.05)
        while (await client.zrange(keys.queue("default"), 0, 0)) != [lost.id.encode()]:
            pass
        gate.set()
        await ended(queue, await queue.get("c"))
    assert ORDER == ["lost", "a", "b", "c"]
    ORDER.clear()
    TURNSTILE.gates.clear()


async def test_a_worker_survives_redis_being_killed_and_finishes_its_job_once(
    real_source: UrlSource, settings: Settings
) -> None:
    """The connection is cut under it (CLIENT KILL), in the middle of a job that talks."""
    client = real_source.client()
    queue = Queue(client)
    async with working(real_source, settings()):
        job = await queue.submit("waits", {})
        await event_of(client, job.id, "log")
        for kind in ("normal", "pubsub"):
            await client.client_kill_filter(_type=kind, skipme=True)
        await queue.cancel(job.id)
        assert (await ended(queue, job)).status is JobStatus.CANCELLED
        assert (await ended(queue, await queue.submit("add", {"a": 1}))).status is JobStatus.SUCCEEDED
    await client.aclose()


async def test_a_worker_process_ends_although_a_thread_does_not(
    real_source: UrlSource, redis_server: ChildRedis, tmp_path: Path
) -> None:
    """SIGTERM: the job of the deaf thread goes back to the queue, and the process is gone before the thread is."""
    client = real_source.client()
    queue = Queue(client)
    environment = os.environ | {
        "JOBSTREAM_REDIS_URL": redis_server.url,
        "JOBSTREAM_TASKS": "tests.worker_tasks",
        "JOBSTREAM_FILES_DIR": str(tmp_path),
        "JOBSTREAM_SHUTDOWN_SECONDS": "0",
        "JOBSTREAM_KILL_SECONDS": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobstream_workers.main", env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        job = await queue.submit("deaf", {})
        started = await event_of(client, job.id, "log")
        process.terminate()
        assert await process.wait() == 0
        released = await queue.get(job.id)
        assert (released.status, released.attempt) == (JobStatus.QUEUED, 0)
        seconds, microseconds = await client.time()
        assert seconds * 1000 + microseconds // 1000 - started.time_ms < 5500
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await client.aclose()


async def test_the_time_that_a_process_task_waits_for_a_free_process_is_not_its_own(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    async with working(source, settings(processes=1)):
        first = await queue.submit("process_works", {})
        await event_of(client, first.id, "log")
        waiting = await queue.submit("process_works", {}, options=SubmitOptions(timeout=0.3))
        while (await queue.get(waiting.id)).status is not JobStatus.RUNNING:
            pass
        await asyncio.sleep(0.5)  # longer than it may take, and it has not begun
        assert (await queue.get(waiting.id)).status is JobStatus.RUNNING
        await queue.cancel(first.id)
        assert error_of(await ended(queue, waiting))["detail"] == "timeout 0.3 s"
