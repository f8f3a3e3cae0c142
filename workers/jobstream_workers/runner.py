"""The runner: from a claimed job to its end. The one place where whatever a task raises becomes an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec
from redis.asyncio import Redis

from jobstream.errors import InvalidInput, JobstreamError
from jobstream.job import JobStatus
from jobstream.outbox import Outbox
from jobstream.problem import job_problem
from jobstream.serialize import TaskFailure, deserialize, serialize
from jobstream.task import Task
from jobstream_workers.claim import ClaimedJob
from jobstream_workers.executors import Execution, Executors
from jobstream_workers.writer import AttemptWriter, Outcome

logger = logging.getLogger("jobstream.runner")

WRITE_SECONDS = 0.25
"""At most one write per job in this time, however often a task speaks; the last word is never lost."""


class StopReason(StrEnum):
    """Why an attempt is stopped from outside."""

    CANCEL = "cancelled by client"
    SHUTDOWN = "worker is shutting down"
    LOST = "lease lost"


class PayloadExpired(JobstreamError):
    """The job's payload is gone: it waited too long"""

    code = "payload-expired"


class PayloadUnreadable(JobstreamError):
    """The job's payload cannot be decoded"""

    code = "payload-unreadable"


class TaskMissing(JobstreamError):
    """The worker has no task of that name"""

    code = "task-missing"


class TaskTimeout(JobstreamError):
    """The task took longer than it may"""

    status = 504
    code = "timeout"


class InternalError(JobstreamError):
    """The worker itself went wrong"""


@dataclass(frozen=True)
class Payload:
    """arq's job payload, decoded."""

    task: str
    data: object
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    enqueued_ms: int


@dataclass
class RunningJob:
    """A claimed job on its way through the runner, and the handle by which it is stopped."""

    job: ClaimedJob
    stop_reason: StopReason | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    execution: asyncio.Task[bytes] | None = None

    def stop(self, reason: StopReason) -> None:
        """Stop the attempt; the first reason counts, but a lost lease overrides (nothing may be written then)."""
        if self.stop_reason is None or reason is StopReason.LOST:
            self.stop_reason = reason
        if self.execution is not None:
            self.execution.cancel()


class Runner:
    """Runs claimed jobs; holds what all of them need."""

    def __init__(
        self,
        client: Redis,
        tasks: Mapping[str, Task],
        executors: Executors,
        *,
        keep_arq_result: float = 3600.0,
    ) -> None:
        self._client = client
        self._tasks = tasks
        self._executors = executors
        self._keep_arq_result = keep_arq_result

    async def run(self, running: RunningJob) -> None:
        """Make the attempt and write its end. Never raises for anything that the job did."""
        job = running.job
        writer = AttemptWriter(self._client, job)
        started_ms = _now_ms()
        payload = Payload(task="<unknown>", data=None, args=(), kwargs={}, enqueued_ms=started_ms)
        try:
            payload = read_payload(job)
            task = self._task(payload.task)
            if not job.known:
                await writer.adopt(task=task.name, enqueued_ms=payload.enqueued_ms, ttl=task.ttl)
            result: bytes | None = await self._attempt(running, task, payload, writer)
            error: JobstreamError | None = None
        except JobstreamError as problem:
            result, error = None, problem
        except Exception:
            logger.exception("job %s: the runner failed", job.id)
            result, error = None, InternalError("See the worker's log.")
        if result is None and error is None and running.stop_reason is StopReason.SHUTDOWN:
            await writer.release()
            logger.info("job %s released: %s", job.id, StopReason.SHUTDOWN)
            return
        if running.stop_reason is StopReason.LOST:
            logger.warning("job %s: lease lost, another worker has it", job.id)
            return
        outcome = _outcome(job, payload, result, error, started_ms=started_ms)
        if await writer.finish(outcome, keep_arq_result=self._keep_arq_result):
            detail = f": {error.detail}" if error else ""
            logger.info("job %s %s %s in %d ms%s", job.id, payload.task, outcome.status, _now_ms() - started_ms, detail)
        else:
            logger.warning("job %s: its end was refused, another worker has it", job.id)

    def _task(self, name: str) -> Task:
        try:
            return self._tasks[name]
        except KeyError:
            raise TaskMissing(f"This worker has no task {name[:64]!r}") from None

    async def _attempt(self, running: RunningJob, task: Task, payload: Payload, writer: AttemptWriter) -> bytes | None:
        """The task's result as JSON, or None when the attempt was stopped. Raises JobstreamError for its failures."""
        job = running.job
        if job.stop:
            running.stop_reason = StopReason.CANCEL
        if running.stop_reason is not None:
            return None
        loop, said, ended = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: the process is ending
                loop.call_soon_threadsafe(said.set)

        outbox = Outbox(notify)
        execution = Execution(
            task=task,
            data=payload.data,
            job_id=job.id,
            attempt=job.attempt,
            max_attempts=1,
            outbox=outbox,
            cancelled=running.cancelled,
        )
        limit = job.timeout or task.timeout
        running.execution = asyncio.create_task(self._execute(execution, limit), name=f"job-{job.id}")
        reporter = asyncio.create_task(_report(outbox, said, ended, writer, running), name=f"report-{job.id}")
        await asyncio.wait({running.execution})
        ended.set()
        said.set()
        await reporter  # never cancelled: it may hold the last words
        if running.execution.cancelled():
            return None
        return running.execution.result()

    async def _execute(self, execution: Execution, limit: float) -> bytes:
        try:
            async with asyncio.timeout(limit) as deadline:
                return await self._executors.run(execution)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise TaskTimeout(f"timeout {limit:g} s") from None


async def _report(
    outbox: Outbox, said: asyncio.Event, ended: asyncio.Event, writer: AttemptWriter, running: RunningJob
) -> None:
    """Write what the job says, coalesced, and its last words; a refused write means that the lease is lost."""
    while True:
        await said.wait()
        said.clear()
        last = ended.is_set()  # read before the outbox: nothing is said after the end
        try:
            held = await writer.emit(outbox.take())
        except Exception:
            logger.exception("job %s: progress not written", running.job.id)
            held = True
        if not held:
            running.stop(StopReason.LOST)
        if last or not held:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WRITE_SECONDS):
                await ended.wait()


def read_payload(job: ClaimedJob) -> Payload:
    """Decode arq's payload. The input is its keyword arguments, or its only positional argument, a map."""
    if not job.payload:
        raise PayloadExpired("The job's payload has expired or was deleted")
    try:
        stored = deserialize(job.payload)
        task, args, kwargs, enqueued = str(stored["f"]), tuple(stored["a"]), dict(stored["k"]), int(stored["et"])
    except (ValueError, KeyError, TypeError) as error:
        raise PayloadUnreadable(
            "The job's payload is not in the format of this service; stock arq clients must be given "
            "jobstream.serialize.serialize as their job_serializer"
        ) from error
    if not args:
        data: object = kwargs
    elif len(args) == 1 and not kwargs:
        data = args[0]
    else:
        raise InvalidInput("A task takes keyword arguments, or one positional argument that holds all of them")
    return Payload(task=task, data=data, args=args, kwargs=kwargs, enqueued_ms=enqueued)


def _outcome(
    job: ClaimedJob,
    payload: Payload,
    result: bytes | None,
    error: JobstreamError | None,
    *,
    started_ms: int,
) -> Outcome:
    """Record fields and arq's result envelope (arq 0.28, jobs.py, serialize_result) of how the attempt ended."""
    value: object
    if error is not None:
        status, value = JobStatus.FAILED, TaskFailure(f"{error.code}: {error.detail}")
    elif result is None:
        status, value = JobStatus.CANCELLED, asyncio.CancelledError(StopReason.CANCEL)
    else:
        status, value = JobStatus.SUCCEEDED, msgspec.json.decode(result)
    envelope = {
        "t": job.attempt,
        "f": payload.task,
        "a": payload.args,
        "k": payload.kwargs,
        "et": payload.enqueued_ms,
        "s": status is JobStatus.SUCCEEDED,
        "r": value,
        "st": started_ms,
        "ft": _now_ms(),
        "q": job.queue,
        "id": job.id,
    }
    return Outcome(
        status=status,
        result=result or b"",
        error=job_problem(error, attempt=job.attempt) if error else None,
        arq_result=serialize(envelope),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
