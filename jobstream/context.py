"""JobContext: what running code may know and say, in plain calls from a coroutine, a thread or a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Sized
from typing import TYPE_CHECKING, Literal, TypeVar, overload

import msgspec
from pydantic import BaseModel

from jobstream.cancellation import Flag
from jobstream.errors import JobCancelled
from jobstream.files import FileStore, JobFile, Source
from jobstream.gauge import AsyncTracked, Gauge, Tracked, plain_number
from jobstream.outbox import Outbox, Room
from jobstream.progress import ITEMS_KEPT

if TYPE_CHECKING:  # a child process starts without redis-py
    from jobstream.owned import OwnedQueue

T = TypeVar("T")

LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LINE_BYTES = 16_384
"""A longer log line is cut: a stream of megabyte lines is a file, not a log."""


class JobContext(Gauge):
    """The job a task is running for.

    Handed to the task by the runner; tasks only name it as a parameter's type. Nothing here blocks or needs `await`
    (but see `chunk`): words are put into an outbox, coalesced, and written by the worker.
    """

    __slots__ = ("_cancelled", "_outbox", "_queue", "attempt", "files", "id", "max_attempts", "task")

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

    def raise_if_cancelled(self) -> None:
        """Raise `JobCancelled` if the job was told to stop."""
        if self._cancelled.is_set():
            raise JobCancelled(self.id)

    def _say(
        self, current: float | None, total: float | None, message: str | None, items: Iterable[str] | None
    ) -> None:
        if self._cancelled.is_set():
            raise JobCancelled(self.id)
        self._outbox.set_progress(
            None if current is None else plain_number(current),
            None if total is None else plain_number(total),
            None if message is None else _cut(text(message)),
            None if items is None else tuple(map(text, tuple(items)[-ITEMS_KEPT:])),
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
