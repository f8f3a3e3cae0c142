"""A worker for tests, in this event loop, and how to wait for what its jobs do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from jobstream import events, keys
from jobstream.events import JobEvent
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue
from jobstream.redis import RedisSource
from jobstream.task import Task
from jobstream_workers.loader import load_tasks
from jobstream_workers.settings import WorkerSettings
from jobstream_workers.worker import Worker

TASKS = load_tasks(["tests.worker_tasks"], entry_points=False)
PATIENCE = 20.0
Settings = Callable[..., WorkerSettings]


def quick_settings(files: Path, *, polls: bool = True, **changes: Any) -> WorkerSettings:
    """Settings of a worker that stops at once. Without `polls` it only knows of jobs by wake-ups and its timer."""
    defaults: dict[str, Any] = {"files_dir": files, "processes": 1, "shutdown_seconds": 0, "kill_seconds": 1}
    settings = WorkerSettings(**(defaults | changes))
    return settings if polls else settings.model_copy(update={"poll_seconds": 3600})


@contextlib.asynccontextmanager
async def working(
    source: RedisSource, settings: WorkerSettings, *, tasks: Mapping[str, Task] = TASKS
) -> AsyncIterator[Worker]:
    """A worker that runs while the block does."""
    worker = Worker(source, tasks, settings)
    running = asyncio.create_task(worker.async_run())
    try:
        await worker.ready.wait()
        yield worker
    finally:
        worker.stop()
        await running
        await worker.close()


async def event_of(client: Redis, job_id: str, kind: str) -> JobEvent:
    """Wait for the first durable event of a kind."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(keys.events(job_id))
        while True:
            snapshot = await events.read_snapshot(client, job_id, after=0)
            assert snapshot is not None
            found = [event for event in snapshot.events if event.kind == kind]
            if found:
                return found[0]
            assert await pubsub.get_message(timeout=PATIENCE) is not None, f"no {kind} within {PATIENCE:g} s"


async def ended(queue: Queue, job: Job) -> Job:
    """The job at its end."""
    await event_of(queue.client, job.id, "done")
    return await queue.get(job.id)


async def in_status(queue: Queue, job: Job, status: JobStatus) -> Job:
    """The job as soon as it has this status."""
    async with queue.client.pubsub() as pubsub:
        await pubsub.subscribe(keys.events(job.id))
        while (found := await queue.get(job.id)).status is not status:
            message = await pubsub.get_message(timeout=PATIENCE)
            assert message is not None, f"{found.status}, not {status}, after {PATIENCE:g} s"
    return found


async def lease_over(client: Redis, job_id: str) -> None:
    """Return when nobody holds the job and its place in the default queue is due: fakeredis is a moment early."""
    while await client.exists(keys.in_progress(job_id)) or not await _is_due(client, job_id):
        pass


async def _is_due(client: Redis, job_id: str) -> bool:
    seconds, microseconds = await client.time()
    due = await client.zscore(keys.queue("default"), job_id)
    return due is not None and due <= seconds * 1000 + microseconds // 1000


def error_of(job: Job) -> dict[str, Any]:
    """The job's error."""
    assert job.error is not None
    return job.error.model_dump()
