"""JobContext: what running code may know and say, in plain calls from a coroutine, a thread or a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Literal, TypeVar, overload

import msgspec
import pydantic_core
from pydantic import BaseModel, TypeAdapter

from jobstream.cancellation import Flag
from jobstream.children import Ask, Order, Pending
from jobstream.errors import JobCancelled
from jobstream.files import FileStore, JobFile, Source
from jobstream.gauge import AsyncTracked, Gauge, Tracked, plain_number
from jobstream.job import Job
from jobstream.outbox import Outbox, Room
from jobstream.progress import ITEMS_KEPT

if TYPE_CHECKING:  # a child process starts without redis-py
    from jobstream.owned import OwnedQueue
    from jobstream.task import Task

T = TypeVar("T")

_JOBS = TypeAdapter(list[Job])

LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LINE_BYTES = 16_384
"""A longer log line is cut: a stream of megabyte lines is a file, not a log."""


class JobContext(Gauge):
    """The job a task is running for.

    Handed to the task by the runner; tasks only name it as a parameter's type. Nothing here blocks or needs `await`
    (but see `chunk`): words are put into an outbox, coalesced, and written by the worker.
    """

    __slots__ = ("_ask", "_cancelled", "_outbox", "_queue", "attempt", "files", "id", "max_attempts", "task")

    def __init__(
        self,
        job_id: str,
        *,
        task: str,
        attempt: int,
        max_attempts: int,
        outbox: Outbox,
        files: FileStore,
        cancelled: Flag | None = None,
        queue: OwnedQueue | None = None,
        ask: Ask | None = None,
    ) -> None:
        self.id = job_id
        """The job's id."""
        self.task = task
        """The task's name."""
        self.attempt = attempt
        """Which try this is, counted from 1."""
        self.max_attempts = max_attempts
        """How many tries the task's policy allows."""
        self.files = files
        """Opens the uploaded files that the input names, and makes new ones."""
        super().__init__()
        self._outbox = outbox
        outbox.gauge = self
        self._cancelled = cancelled or Flag()
        self._queue = queue
        self._ask = ask

    @property
    def cancelled(self) -> bool:
        """True as soon as the job was told to stop. Long `def` tasks look at it; `progress` and `track` do so too."""
        return self._cancelled.is_set()

    @property
    def queue(self) -> OwnedQueue:
        """Other jobs: those of this job's owner. For `async def` tasks only; elsewhere it raises RuntimeError."""
        if self._queue is None:
            raise RuntimeError("job.queue speaks to Redis on the worker's event loop: it is for `async def` tasks")
        return self._queue

    def submit(
        self,
        task: str | Task,
        input: Mapping[str, object] | BaseModel | None = None,
        *,
        key: str | None = None,
        queue: str | None = None,
        delay: float = 0.0,
        priority: int = 0,
        tags: Sequence[str] = (),
        timeout: float | None = None,
        ttl: float | None = None,
    ) -> Pending[Job]:
        """Submit a child: a job of the same owner, which is cancelled with this one and counts for its progress.

        `child = await job.submit(…)` in a coroutine, `job.submit(…).get()` in a thread or a process; it is stored
        before this job ends, also when nobody waits for that. Every attempt of this job has the same children: one with
        the same `key`, or without one the same task and input, is submitted once, and what it has returned stays; if it
        failed or was cancelled in an attempt before, it is run again. Raises UnknownTask, InvalidParameter, and
        JobConflict for more than 10,000 descendants, more than 5 levels, or a job that is to stop.
        """
        options = {
            "queue": queue,
            "delay": delay,
            "priority": priority,
            "tags": list(tags),
            "timeout": timeout,
            "ttl": ttl,
        }
        name = task if isinstance(task, str) else task.name
        wanted = {"task": name, "input": input or {}, "key": key, "options": options}
        return self._pending("submit", pydantic_core.to_json(wanted), Job.model_validate_json)

    def wait(self, *children: Job | str, timeout: float | None = None) -> Pending[list[Job]]:
        """Wait until these children have ended, or all that this attempt has submitted: the jobs as they ended.

        `await job.wait()` in a coroutine, `job.wait().get()` in a thread or a process. While it waits the job keeps its
        lease, and its thread or process, but not its slot: others run meanwhile. Raises TimeoutError after `timeout`
        seconds, JobGone for what is no child of this job.
        """
        wanted = {"ids": [each if isinstance(each, str) else each.id for each in children], "timeout": timeout}
        return self._pending("wait", msgspec.json.encode(wanted), _JOBS.validate_json)

    def _pending(self, order: Order, body: bytes, read: Callable[[bytes], T]) -> Pending[T]:
        if self._cancelled.is_set():
            raise JobCancelled(self.id)
        if self._ask is None:
            raise RuntimeError("there is no worker that could be asked for children")
        return Pending(self._ask(self.id, order, body), read, self.id, self._cancelled)

    def raise_if_cancelled(self) -> None:
        """Raise `JobCancelled` if the job was told to stop."""
        if self._cancelled.is_set():
            raise JobCancelled(self.id)

    def items(self, names: Iterable[str]) -> None:
        """Name what has been processed so far, all of it; the latest 1,000 names are kept.

        Raises `JobCancelled` when the job was told to stop.
        """
        self.raise_if_cancelled()
        self._outbox.set_progress(items=tuple(map(text, tuple(names)[-ITEMS_KEPT:])))

    def _say(self, current: float | None, total: float | None, message: str | None) -> None:
        self.raise_if_cancelled()
        self._outbox.set_progress(
            None if current is None else plain_number(current),
            None if total is None else plain_number(total),
            None if message is None else _cut(text(message)),
        )

    def log(self, message: str, *, level: LogLevel = "info") -> None:
        """Add a line to the job's log: an event that every watcher sees, in order."""
        data = msgspec.json.encode({"level": level, "message": _cut(text(message))})
        self._outbox.add_log(data)

    def chunk(self, data: object) -> Room:
        """Emit partial output: anything that JSON can say, pydantic models too. Never dropped, never merged.

        While a megabyte of it waits to be written (Redis is away, or slower than the task), a thread or a process is
        held back here; a coroutine is when it awaits what this gives: `await job.chunk(…)`. One that does not is
        refused at 16 MB, with OutboxFull. Raises JobCancelled when there is no room and the job was told to stop.
        """
        if not self._outbox.add_chunk(msgspec.json.encode(data, enc_hook=_encode_model)):
            raise JobCancelled(self.id)
        return Room(self._outbox)

    def save(self, source: Source, name: str | None = None, content_type: str | None = None) -> JobFile:
        """Keep a file with the job, for a task to return: alone, its result's URL leads to a download.

        `source`: a path, bytes, a file that is open for reading, or pieces of bytes. `name`: what a download is called;
        a path has one. `content_type`: guessed from the name unless it is given. It goes with the job's record. Raises
        StorageFull and StorageUnavailable, RuntimeError in an `async def` task (`await job.save_async(…)` there).
        """
        if _on_event_loop():
            raise RuntimeError("job.save blocks, and this is an event loop: `await job.save_async(…)`")
        return self.files.save(source, name, content_type)

    async def save_async(
        self, source: Source | AsyncIterable[bytes], name: str | None = None, content_type: str | None = None
    ) -> JobFile:
        """`save` for `async def` tasks; `source` may also be an async iterable of bytes."""
        return await self.files.save_async(source, name, content_type)

    @overload
    def track(self, items: Iterable[T], total: float | None = None, message: str | None = None) -> Tracked[T]: ...
    @overload
    def track(
        self, items: AsyncIterable[T], total: float | None = None, message: str | None = None
    ) -> AsyncTracked[T]: ...
    def track(
        self, items: Iterable[T] | AsyncIterable[T], total: float | None = None, message: str | None = None
    ) -> Tracked[T] | AsyncTracked[T]:
        """Wrap a `for` or an `async for`: progress counts the items finished; `total` defaults to `len(items)`."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        if isinstance(items, AsyncIterable):
            return AsyncTracked(self, items, total, message)
        return Tracked(self, items, total, message)


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def text(value: object) -> str:
    """The value as a string that UTF-8 can say: a file name that is not text (PEP 383) must not fail a job."""
    string = str(value)
    return string if string.isascii() else string.encode(errors="replace").decode()


def _encode_model(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not something that JSON can say")


def _cut(message: str) -> str:
    return message if len(message) <= LOG_LINE_BYTES else message[:LOG_LINE_BYTES] + "…"
