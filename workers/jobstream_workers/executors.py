"""Runs functions where they belong: coroutines on the event loop, `def` in a thread, CPU-bound `def` in a process."""

from __future__ import annotations

import asyncio
import contextvars
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from jobstream.cancellation import Flag
from jobstream.children import Order, Question
from jobstream.context import JobContext
from jobstream.errors import ConfigurationError, JobCancelled
from jobstream.files import FileStore
from jobstream.outbox import Outbox
from jobstream.owned import OwnedQueue
from jobstream.queue import Queue
from jobstream.task import Task
from jobstream.traces import Carrier, current
from jobstream_workers.call import call, call_async
from jobstream_workers.children import Family
from jobstream_workers.frames import Start
from jobstream_workers.loader import check_importable
from jobstream_workers.processes import ProcessPool, settled, uninterrupted


class Execution(msgspec.Struct, frozen=True):
    """One attempt to run a task's function."""

    task: Task
    data: object
    """The input: decoded JSON."""
    job_id: str
    attempt: int
    max_attempts: int
    outbox: Outbox | None
    """For what it says; None: `speaks(task)` is not true."""
    cancelled: Flag
    """Set when the job must stop."""
    begun: Callable[[], None] = lambda: None
    """Called when the function begins: a process task may have to wait for a free child before."""
    trace: Carrier | None = None
    """The trace that the job was submitted in."""

    def stop(self) -> None:
        """Tell the function to stop; it hears of it when it next looks or speaks."""
        self.cancelled.set()
        if self.outbox is not None:
            self.outbox.interrupt()


def speaks(task: Task) -> bool:
    """Whether its function can say anything. What it takes to listen is not made for those that cannot."""
    return task.job_parameter is not None or task.executor == "process"


class Executors:
    """The event loop, a pool of threads and a pool of processes. `kill_grace`: seconds from SIGTERM to SIGKILL."""

    def __init__(
        self,
        *,
        threads: int,
        processes: int,
        files: FileStore,
        kill_grace: float = 5.0,
        queue: Queue | None = None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """`queue`: where children go, and what coroutines reach by `JobContext.queue`. `on_wait`: a job has begun to
        wait for its children.
        """
        self.waiting = 0
        """Jobs whose code waits for their children."""
        self._on_wait = on_wait
        self._families: dict[str, Family] = {}
        self._asked: dict[str, list[Question]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._files = files
        self._queue = queue
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="jobstream")
        self._threads_busy = 0
        self._scratch = Path(tempfile.mkdtemp(prefix="jobstream-")) if files.storage.place.url else None
        self._processes = ProcessPool(processes, place=files.storage.place, kill_grace=kill_grace)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._processes.close()
        # A thread that runs cannot be ended, and waiting for it here would stop the event loop.
        self._threads.shutdown(wait=not self._threads_busy, cancel_futures=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    async def run(self, execution: Execution) -> bytes:
        """Run the attempt; give the result as JSON.

        Raises InvalidInput, InvalidOutput, TaskError (the task's own), TaskRaised (any other exception of the task),
        TaskCrashed (its process died), ConfigurationError (its process cannot find it). Cancelling the asyncio task
        that awaits this stops the attempt: CancelledError is raised as soon as the function has really ended.
        """
        try:
            result = await self._run(execution)
        except JobCancelled:
            self._abandon(execution.job_id)
            raise asyncio.CancelledError from None
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                execution.stop()  # for threads that the task started
            self._abandon(execution.job_id)
            raise
        if execution.job_id in self._asked or execution.job_id in self._families:
            try:
                for question in self._asked.get(execution.job_id, ()):
                    if not question.looked_at:
                        await asyncio.wrap_future(question.answer)
            finally:
                self._abandon(execution.job_id)
        return result

    def _abandon(self, job_id: str) -> None:
        self._asked.pop(job_id, None)
        if (family := self._families.pop(job_id, None)) is not None:
            family.abandon()

    def _ask(self, job_id: str, order: Order, body: bytes) -> Question:
        """What a `JobContext` asks by, from any thread."""
        if self._loop is None:
            raise RuntimeError("the worker has not begun")
        question = Question(asyncio.run_coroutine_threadsafe(self._serve(job_id, order, body), self._loop))
        if order == "submit":  # it is stored before the job ends
            self._asked.setdefault(job_id, []).append(question)
        return question

    async def _serve(self, job_id: str, order: Order, body: bytes) -> bytes:
        if (family := self._families.get(job_id)) is None:
            if self._queue is None:
                raise ConfigurationError("there is no queue for the job's children here")
            family = self._families[job_id] = Family(self._queue, job_id, self._count_waiting)
        return await family.serve(order, body)

    def _count_waiting(self, more: int) -> None:
        self.waiting += more
        if more > 0:
            self._on_wait()

    async def _run(self, execution: Execution) -> bytes:
        match execution.task.executor:
            case "loop":
                execution.begun()
                job = self._context(execution)
                try:
                    return await call_async(execution.task, execution.data, job, execution.cancelled)
                finally:
                    if job is not None:
                        job.files.close()
            case "thread":
                execution.begun()
                return await self._in_thread(execution)
            case "process":
                return await self._in_process(execution)

    async def _in_thread(self, execution: Execution) -> bytes:
        job = self._context(execution)
        work = self._threads.submit(
            contextvars.copy_context().run,
            call,
            execution.task,
            execution.data,
            job,
            execution.cancelled,
        )
        ended = asyncio.wrap_future(work)
        self._threads_busy += 1
        try:
            await asyncio.wait([ended])
            return ended.result()
        except asyncio.CancelledError:
            execution.stop()
            if not work.cancel():  # it runs already
                await uninterrupted(settled(ended))
            raise
        finally:
            self._threads_busy -= 1
            if job is not None:
                job.files.close()

    async def _in_process(self, execution: Execution) -> bytes:
        task = execution.task
        check_importable(task.reference, task.name)
        # A child that is killed cannot tidy up. Without a directory, files of this machine have paths already.
        scratch = self._scratch / f"{execution.job_id}-{execution.attempt}" if self._scratch else None
        start = Start(
            reference=task.reference,
            task=task.name,
            data=msgspec.json.encode(execution.data),
            job_id=execution.job_id,
            attempt=execution.attempt,
            max_attempts=execution.max_attempts,
            scratch=str(scratch or ""),
            trace=current() or (dict(execution.trace) if execution.trace else None),
        )
        assert execution.outbox is not None
        try:
            serve = partial(self._serve, execution.job_id)
            return await self._processes.run(start, execution.outbox, execution.begun, serve)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def _context(self, execution: Execution) -> JobContext | None:
        if execution.outbox is None:
            return None
        on_loop = execution.task.executor == "loop"
        return JobContext(
            execution.job_id,
            task=execution.task.name,
            attempt=execution.attempt,
            max_attempts=execution.max_attempts,
            outbox=execution.outbox,
            files=self._files.of(execution.job_id),
            cancelled=execution.cancelled,
            queue=OwnedQueue(self._queue, execution.job_id) if self._queue is not None and on_loop else None,
            ask=self._ask,
        )
