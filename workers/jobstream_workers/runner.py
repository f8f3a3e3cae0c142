"""The runner: from a claimed job to its end. The one place where whatever a task raises becomes an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from jobstream import traces
from jobstream.cancellation import Flag
from jobstream.catalogue import announcement
from jobstream.errors import (
    CancelledByClient,
    InvalidInput,
    JobstreamError,
    PayloadExpired,
    PayloadUnreadable,
    Retry,
    StorageFull,
    StorageUnavailable,
    TaskCrashed,
    TaskError,
    TaskMissing,
    TaskRaised,
    TaskTimeout,
    WorkerCrashed,
)
from jobstream.job import JobStatus
from jobstream.logs import JobLine, job_line
from jobstream.outbox import Outbox
from jobstream.problem import job_problem
from jobstream.serialize import TaskFailure, deserialize, serialize
from jobstream.spill import MARK, Spill
from jobstream.task import Task
from jobstream_workers.claim import ClaimedJob
from jobstream_workers.executors import Execution, Executors, speaks
from jobstream_workers.meter import Meter
from jobstream_workers.writer import AttemptWriter, Endings, Outcome

logger = logging.getLogger("jobstream.runner")

WRITE_SECONDS = 0.25
"""At most one write per job in this time, however often a task speaks; the last word is never lost."""

AGAIN_SECONDS = 1.0
"""A function that swallows its cancellation is told again after this time."""

LEAVE_SECONDS = 2.0
"""A coroutine is left behind this time after `kill_grace`."""


class StopReason(StrEnum):
    """Why an attempt is stopped from outside."""

    CANCEL = "cancelled by client"
    TIMEOUT = "timeout"
    SHUTDOWN = "worker is shutting down"
    LOST = "lease lost"


class Postponed(Retry):
    """Raised by a delivery: as many as may be are under way to its receiver. The attempt does not count."""

    def __init__(self, lane: str, *, most: int) -> None:
        super().__init__(f"others are under way to {lane}")
        self.lane = lane
        self.most = most


class InternalError(JobstreamError):
    """The worker itself went wrong"""


class Payload(msgspec.Struct, frozen=True):
    """arq's job payload, decoded."""

    task: str
    data: object
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    enqueued_ms: int
    trace: traces.Carrier | None = None
    """The trace that it was submitted in."""
    spilled: object = None
    """Where the input is, if it was too large for Redis."""


class RunningJob:
    """A claimed job on its way through the runner, and the handle by which it is stopped."""

    __slots__ = (
        "_again",
        "_cancelling",
        "_give_up",
        "_patience",
        "_task",
        "cancelled",
        "freed",
        "job",
        "left",
        "stop_reason",
    )

    def __init__(self, job: ClaimedJob) -> None:
        self.job = job
        self.stop_reason: StopReason | None = StopReason.CANCEL if job.stop else None
        self.cancelled = Flag()
        self.left = False
        """Its code did not end when it was told to: it runs on without the job."""
        self.freed = False
        """Its slot was given back."""
        self._task: asyncio.Task[Any] | None = None
        self._give_up: Callable[[], None] | None = None
        self._patience = self._cancelling = 0
        self._again: asyncio.TimerHandle | None = None

    def stop(self, reason: StopReason) -> None:
        """Stop the attempt. The first reason counts, but a lost lease overrides: nothing may be written then.

        While the function does not end it is told again, every `AGAIN_SECONDS`.
        """
        if self.stop_reason is None or reason is StopReason.LOST:
            self.stop_reason = reason
        if self._task is not None:
            self._task.cancel()
            if self._again is None and not self.left:
                self._again = self._task.get_loop().call_later(AGAIN_SECONDS, self._tell_again)

    def _tell_again(self) -> None:
        """Patience is counted in tellings, not in time: a loop that was blocked has had none."""
        self._again = None
        self._patience -= 1
        if self._give_up is not None and self._patience < 1 and self.stop_reason is not StopReason.SHUTDOWN:
            self.left = True
            self.cancelled.set()
            self._give_up()
        elif self._task is not None and self.stop_reason is not None:
            self.stop(self.stop_reason)

    def begin(self, *, patience: float = 0, give_up: Callable[[], None] | None = None) -> None:
        """From now on, until `end`, `stop` reaches the asyncio task that calls this.

        `give_up` is called once when `end` is not called within `patience` seconds after the task was told to stop, a
        shutdown apart.
        """
        self._patience, self._give_up = math.ceil(patience / AGAIN_SECONDS), give_up
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()

    def end(self) -> None:
        """`stop` reaches the task no more, and what it asked for is done with.

        A cancellation is delivered at the task's next step, and that step came before: none is left over for what is
        written afterwards. Anybody else's cancellation stays.
        """
        task = self._task
        assert task is not None
        self._task = self._give_up = None  # it refers to this object: a circle that only the garbage collector ends
        if self._again is not None:
            self._again.cancel()
        if self.stop_reason is not None:
            while task.cancelling() > self._cancelling:
                task.uncancel()


class Deadlines:
    """When running jobs have had their time. One timer for all: most jobs end long before theirs, at no cost."""

    def __init__(self) -> None:
        self._at: dict[RunningJob, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, running: RunningJob, seconds: float) -> None:
        """Stop it after this time, unless it is forgotten before."""
        loop = asyncio.get_running_loop()
        at = self._at[running] = loop.time() + seconds
        if self._timer is None or at < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(at, self._look)

    def forget(self, running: RunningJob) -> None:
        """It has ended."""
        self._at.pop(running, None)

    def _look(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        now = loop.time()
        for running in [running for running, at in self._at.items() if at <= now]:
            del self._at[running]
            running.stop(StopReason.TIMEOUT)
        if self._at:
            self._timer = loop.call_at(min(self._at.values()), self._look)


class Burial(NamedTuple):
    """What it takes to end a job without its code."""

    task: Task
    payload: Payload
    started_ms: int
    left_behind: Callable[[], None]


class Runner:
    """Runs claimed jobs; holds what all of them need."""

    def __init__(
        self,
        client: Redis,
        tasks: Mapping[str, Task],
        executors: Executors,
        *,
        keep_arq_result: float = 3600.0,
        max_crashes: int = 3,
        kill_grace: float = 5.0,
        meter: Meter,
        spill: Spill | None = None,
    ) -> None:
        self._client = client
        self._tasks = tasks
        self._executors = executors
        self._endings = Endings(client, keep_arq_result=keep_arq_result)
        self._max_crashes = max_crashes
        self._patience = kill_grace + LEAVE_SECONDS
        self._deadlines = Deadlines()
        self._burials: set[asyncio.Task[None]] = set()
        self._meter = meter
        self._spill = spill
        self._tracer = traces.tracer()

    async def run(self, running: RunningJob, left_behind: Callable[[], None] = lambda: None) -> None:
        """Make the attempt and write its end. Never raises for anything that the job did.

        `left_behind` is called when a coroutine does not end although it was told to, and its job has ended without it.
        This method returns when the coroutine does.
        """
        job = running.job
        line = JobLine(job.id, job.attempt)
        job_line.set(line)  # this coroutine has a task, and so a context, of its own
        started_ms = _now_ms()
        payload = Payload(task="<unknown>", data=None, args=(), kwargs={}, enqueued_ms=started_ms)
        task: Task | None = None
        result: bytes | None = None
        error: JobstreamError | Retry | None = None
        try:
            payload = read_payload(job)
            if payload.spilled is not None:
                payload = await self._restored(job, payload.spilled)
            line.task = payload.task
            if payload.trace is not None:
                line.trace_id = traces.trace_id(payload.trace)
            task = self._tasks.get(payload.task)
            if not job.known and await self._adopt(job, task, payload):
                return
            if running.stop_reason is None:  # else it runs no more, and only ends
                if task is None:
                    raise TaskMissing(f"No worker that is heard of has a task {payload.task[:64]!r}")
                if job.crashes >= self._max_crashes:
                    raise WorkerCrashed(f"{job.crashes} workers died while they ran the job")
                run = self._attempt if self._tracer is None else self._traced
                result = await run(running, Burial(task, payload, started_ms, left_behind))
        except (JobstreamError, Retry) as problem:
            error = problem
        except Exception:
            logger.exception("job %s: the runner failed", job.id)
            error = InternalError("See the worker's log.")
        if running.left:
            logger.warning("job %s: its code, which was left behind, has ended", job.id)
            return
        if running.stop_reason is StopReason.LOST:
            self._meter.lost()
            logger.warning("job %s: lease lost, another worker has it", job.id)
            return
        if result is None and error is None and running.stop_reason is StopReason.SHUTDOWN:
            if await AttemptWriter(self._client, job).release():
                self._meter.released(payload.task)
            logger.info("job %s released: %s", job.id, StopReason.SHUTDOWN)
            return
        if isinstance(error, Postponed):
            await AttemptWriter(self._client, job).postpone(error.lane, most=error.most)
            return
        if isinstance(error, TaskCrashed):
            self._meter.crashed(payload.task)
        if error is not None:
            wait, error = next_attempt(error, task, job)
            if wait is not None:
                if await AttemptWriter(self._client, job).retry(job_problem(error, attempt=job.attempt), after=wait):
                    self._meter.retried(payload.task)
                    logger.info("job %s %s again in %.1f s: %s", job.id, payload.task, wait, error.detail)
                    return
                error = None  # it was told to stop meanwhile: cancelled
        await self._end(job, payload, result, error, started_ms=started_ms)

    async def _end(
        self,
        job: ClaimedJob,
        payload: Payload,
        result: bytes | None,
        error: JobstreamError | None,
        *,
        started_ms: int,
    ) -> None:
        if result is not None and error is None and self._spill is not None and self._spill.limit:
            result = await self._spill.result(job.id, result)
        outcome = _outcome(job, payload, result, error, started_ms=started_ms)
        if await self._endings.finish(job, outcome):
            seconds = (_now_ms() - started_ms) / 1000
            self._meter.ended(payload.task, outcome.status, seconds)
            _log_end(job, payload, outcome, error, seconds=seconds)
        else:
            self._meter.lost()
            logger.warning("job %s: its end was refused, another worker has it", job.id)

    async def _restored(self, job: ClaimedJob, reference: object) -> Payload:
        try:
            if self._spill is None:
                raise ValueError("this worker keeps no files")
            whole = await self._spill.restore(job.id, reference)
        except ValueError as error:
            raise PayloadUnreadable("The job's input is elsewhere, and cannot be found there") from error
        return read_payload(job._replace(payload=whole))

    async def _adopt(self, job: ClaimedJob, task: Task | None, payload: Payload) -> bool:
        """Complete the record of a stock client's job. True when it was given back: the next claim knows its task."""
        writer = AttemptWriter(self._client, job)
        announced = announcement(task) if task is not None else await writer.announced(payload.task)
        if announced is None:
            return False
        await writer.adopt(
            task=announced.name,
            data=payload.data,
            enqueued_ms=payload.enqueued_ms,
            ttl=announced.ttl,
            max_attempts=announced.max_attempts,
        )
        # Another worker may have the task, or there is a limit to keep to.
        released = not job.stop and (task is None or task.max_running is not None)
        return released and await writer.release()

    async def _traced(self, running: RunningJob, burial: Burial) -> bytes | None:
        """The same, and a span of it."""
        assert self._tracer is not None
        job, payload = running.job, burial.payload
        attributes: dict[str, str | int | float] = {
            "messaging.system": "jobstream",
            "messaging.operation.type": "process",
            "messaging.destination.name": job.queue,
            "messaging.message.id": job.id,
            "jobstream.task": payload.task,
            "jobstream.attempt": job.attempt,
            "jobstream.waited": job.waited,
        }
        with traces.attempt_span(self._tracer, f"run {payload.task}", payload.trace, attributes) as span:
            if (line := job_line.get()) is not None:
                line.trace_id = format(span.get_span_context().trace_id, "032x")
            try:
                result = await self._attempt(running, burial)
            except JobstreamError as error:
                traces.note_failure(span, error.code)
                raise
            except Retry:
                span.set_attribute("jobstream.outcome", "retry")
                raise
            if result is None and running.stop_reason is not None:
                span.set_attribute("jobstream.outcome", running.stop_reason.value)
            return result

    async def _attempt(self, running: RunningJob, burial: Burial) -> bytes | None:
        """The task's result as JSON, or None when the attempt was stopped. Raises JobstreamError or Retry."""
        task, job = burial.task, running.job
        reporter = _Reporter(running, AttemptWriter(self._client, job), self._meter) if speaks(task) else None
        limit = job.timeout or task.timeout
        execution = Execution(
            task=task,
            data=burial.payload.data,
            job_id=job.id,
            attempt=job.attempt,
            max_attempts=task.retry.attempts,
            outbox=None if reporter is None else reporter.outbox,
            cancelled=running.cancelled,
            begun=partial(self._deadlines.watch, running, limit),
            trace=burial.payload.trace,
        )
        # A thread cannot be left: it would keep its place in the pool. A process need not be: it is killed.
        give_up = partial(self._leave, running, burial, limit) if task.executor == "loop" else None
        running.begin(patience=self._patience, give_up=give_up)
        try:
            return await self._executors.run(execution)
        except asyncio.CancelledError:
            if running.stop_reason is None:
                raise
        finally:
            running.end()
            self._deadlines.forget(running)
            if reporter is not None:
                await reporter.finish()
        if running.stop_reason is StopReason.TIMEOUT:
            raise TaskTimeout(f"timeout {limit:g} s")
        return None

    def _leave(self, running: RunningJob, burial: Burial, limit: float) -> None:
        """End the job of a coroutine that cannot be ended, without it."""
        reason = running.stop_reason
        running.stop_reason = StopReason.LOST  # nothing that it still does is written
        logger.error("job %s %s: its code does not stop (%s); left behind", running.job.id, burial.payload.task, reason)
        funeral = asyncio.create_task(self._bury(running.job, burial, reason, limit), name=f"bury-{running.job.id}")
        self._burials.add(funeral)
        funeral.add_done_callback(self._burials.discard)

    async def _bury(self, job: ClaimedJob, burial: Burial, reason: StopReason | None, limit: float) -> None:
        """No further attempt, whatever the RetryPolicy says: two would run at once, and neither could be stopped."""
        error: JobstreamError
        if reason is StopReason.TIMEOUT:
            error = TaskTimeout(f"timeout {limit:g} s, and the code did not stop")
        else:
            error = CancelledByClient(f"{StopReason.CANCEL}, and the code did not stop")
        if reason is StopReason.LOST:
            self._meter.lost()
        else:
            await self._end(job, burial.payload, None, error, started_ms=burial.started_ms)
        burial.left_behind()


class _Reporter:
    """Writes what a job says, coalesced, and its last words. Costs next to nothing for a job that says nothing."""

    def __init__(self, running: RunningJob, writer: AttemptWriter, meter: Meter) -> None:
        self.outbox = Outbox(self._notify, never_block=threading.get_ident())
        self._running = running
        self._writer = writer
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self._now: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    async def finish(self) -> None:
        """Write the last words. The task is awaited, not cancelled: it may hold them."""
        self._ended = True
        if self._now is not None and self._task is not None:
            self._now.set()
            await self._task
        if self._running.stop_reason is not StopReason.LOST and self.outbox.waiting:
            await self._write()

    def _notify(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: the process is ending
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        """Only what is said after the last batch was taken notifies: so at most one task at a time is begun."""
        if self._task is None and self.outbox.waiting:
            self._now = asyncio.Event()
            self._task = asyncio.create_task(self._report(self._now), name=f"report-{self._running.job.id}")
        elif self._now is not None and self.outbox.full:  # somebody is held back
            self._now.set()

    async def _report(self, now: asyncio.Event) -> None:
        while self.outbox.waiting and await self._write() and not self._ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_SECONDS):
                    await now.wait()
            now.clear()
        self._task = None

    async def _write(self) -> bool:
        """False when the lease is lost."""
        try:
            batch = self.outbox.take()
            held = await self._writer.emit(batch)
        except Exception:
            logger.exception("job %s: progress not written", self._running.job.id)
            return True
        if held:
            self._meter.said(batch)
        else:
            self._running.stop(StopReason.LOST)
        return held


def next_attempt(
    error: JobstreamError | Retry, task: Task | None, job: ClaimedJob
) -> tuple[float | None, JobstreamError]:
    """Seconds until the next attempt, or None when this was the last, and the error to note for this one.

    Attempts that ended because their worker died are not the task's fault: they are counted apart, as crashes.
    """
    if task is None:
        assert isinstance(error, JobstreamError)
        return None, error
    tries = job.attempt - job.crashes - job.spent
    left = tries < task.retry.attempts
    if isinstance(error, Retry):
        detail = error.detail or "the task asked to be tried again"
        if not left:
            detail += f"; attempt {tries} of {task.retry.attempts} was the last"
        noted: JobstreamError = TaskError(detail, status=500, code="retry", retryable=True)
        again, after = True, error.after
    else:
        noted, again, after = error, _worth_another(error, task), None
    if not (again and left):
        return None, noted
    return task.retry.delay(tries) if after is None else after, noted


def _worth_another(error: JobstreamError, task: Task) -> bool:
    match error:
        case TaskError() | TaskRaised():
            return error.retryable
        case TaskTimeout():
            return task.retry.admits(TimeoutError())
        case TaskCrashed() | StorageFull() | StorageUnavailable():
            return task.retry.admits(error)
        case _:
            return False


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
    trace = traces.checked(stored["trace"]) if "trace" in stored else None
    spilled = stored.get(MARK)
    return Payload(task=task, data=data, args=args, kwargs=kwargs, enqueued_ms=enqueued, trace=trace, spilled=spilled)


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
    if result is not None and error is None:
        status, value = JobStatus.SUCCEEDED, msgspec.json.decode(result)
    elif error is None or isinstance(error, CancelledByClient):
        status, value = JobStatus.CANCELLED, asyncio.CancelledError(StopReason.CANCEL)
        error = error or CancelledByClient(StopReason.CANCEL)
    else:
        status, value = JobStatus.FAILED, TaskFailure(f"{error.code}: {error.detail}")
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


def _log_end(
    job: ClaimedJob, payload: Payload, outcome: Outcome, error: JobstreamError | None, *, seconds: float
) -> None:
    if not logger.isEnabledFor(logging.INFO):
        return
    if isinstance(error, TaskRaised):
        logger.info("job %s %s failed after %.3f s\n%s", job.id, payload.task, seconds, error.traceback_text)
    elif error is not None:
        logger.info("job %s %s failed after %.3f s: %s", job.id, payload.task, seconds, error.detail)
    else:
        logger.info("job %s %s %s after %.3f s", job.id, payload.task, outcome.status, seconds)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
