"""What a running job asks of the worker: to store its children, and to say when they have ended."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from jobstream import keys
from jobstream.catalogue import read_announcement
from jobstream.children import Order
from jobstream.errors import JobConflict, JobGone, UnknownTask
from jobstream.job import Job, JobStatus, child_id, from_ms, job_from_record
from jobstream.queue import LEVELS_MAX, Parent, Queue, SubmitOptions
from jobstream.redis import is_unavailable
from jobstream.store import is_job, read_records

logger = logging.getLogger("jobstream.children")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
"""Between two looks at the children, in seconds. A look reads one field, until one of them has moved."""

T = TypeVar("T")


class Wanted(msgspec.Struct):
    """A child to be, as code has asked for it."""

    task: str
    input: dict[str, Any]
    key: str | None
    options: dict[str, Any]


class Awaited(msgspec.Struct):
    """Children to wait for (none: all that this attempt has), and for how long (seconds)."""

    ids: list[str]
    timeout: float | None


class _About(NamedTuple):
    """What the parent's record says of it."""

    parent: Parent
    owner: str | None
    started_ms: int


class Family:
    """One attempt and its children. `waits` is called with 1 when its code waits for them, and with -1 afterwards."""

    def __init__(self, queue: Queue, job_id: str, waits: Callable[[int], None]) -> None:
        self._queue = queue
        self._job_id = job_id
        self._waits = waits
        self._about: _About | None = None
        self._ids: dict[str, None] = {}
        self._alike: Counter[str] = Counter()
        self._asked: set[asyncio.Task[bytes]] = set()

    async def serve(self, order: Order, body: bytes) -> bytes:
        """Do what was asked. Raises UnknownTask, InvalidParameter, JobConflict, JobGone and TimeoutError."""
        task = asyncio.create_task(self._submit(body) if order == "submit" else self._wait(body))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        return await task

    def abandon(self) -> None:
        """The attempt is over, and nothing more is to come of it."""
        for task in self._asked:
            task.cancel()

    async def _submit(self, body: bytes) -> bytes:
        wanted = msgspec.json.decode(body, type=Wanted)
        key = wanted.key
        if key is None:  # what is the same, and asked for as often, is the same child in every attempt
            same = msgspec.json.encode([wanted.task, wanted.input], order="deterministic")
            digest = hashlib.sha256(same).hexdigest()
            self._alike[digest] += 1
            key = f"{digest}#{self._alike[digest]}"
        job = await self._patiently(lambda: self._store(wanted, key))
        self._ids[job.id] = None
        return job.model_dump_json().encode()

    async def _store(self, wanted: Wanted, key: str) -> Job:
        about = await self._read()
        if about.parent.depth >= LEVELS_MAX - 1:
            raise JobConflict(f"Jobs descend from one another over {LEVELS_MAX} levels at most")
        task = await read_announcement(self._queue.client, wanted.task)
        if task is None:
            raise UnknownTask(f"There is no task {wanted.task[:64]!r}")
        job, _ = await self._queue.submit_once(
            wanted.task,
            wanted.input,
            options=SubmitOptions(**wanted.options),
            default_queue=task.queue,
            default_ttl=task.ttl,
            max_attempts=task.max_attempts,
            job_id=child_id(self._job_id, f"child {key}"),
            owner=about.owner,
            parent=about.parent,
        )
        ended = round(job.finished_at.timestamp() * 1000) if job.finished_at else None
        if ended is not None and ended < about.started_ms and job.status is not JobStatus.SUCCEEDED:
            return await self._queue.retry(job.id, owner=about.owner, ended_before=from_ms(about.started_ms))
        return job

    async def _read(self) -> _About:
        if self._about is None:
            fields = ["owner", "root", "depth", "ttl", "started_at"]
            stored = await cast(
                "Awaitable[list[bytes | None]]", self._queue.client.hmget(keys.record(self._job_id), fields)
            )
            owner, root, depth, ttl, started = (value.decode() if value is not None else None for value in stored)
            if started is None:
                raise JobGone(f"Job {self._job_id} has lost its record")
            parent = Parent(self._job_id, root or self._job_id, int(depth or 0), int(ttl or 86_400_000))
            self._about = _About(parent, owner, int(started))
        return self._about

    async def _wait(self, body: bytes) -> bytes:
        wanted = msgspec.json.decode(body, type=Awaited)
        ids = wanted.ids or list(self._ids)
        self._waits(1)
        try:
            async with asyncio.timeout(wanted.timeout):
                jobs = await self._ended(ids)
        finally:
            self._waits(-1)
        return b"[" + b",".join(job.model_dump_json().encode() for job in jobs) + b"]"

    async def _ended(self, ids: Sequence[str]) -> list[Job]:
        """The jobs, when all have ended."""
        ends: dict[str, Job] = {}
        group, seen, pause = keys.record(child_id(self._job_id, "children")), b"", FIRST_PAUSE
        while True:
            version = await self._patiently(
                lambda: cast("Awaitable[bytes | None]", self._queue.client.hget(group, "version"))
            )
            if version is None or version != seen:
                seen, pause = version or b"", FIRST_PAUSE
                left = [job_id for job_id in ids if job_id not in ends]
                records = await self._patiently(lambda left=left: read_records(self._queue.client, left))  # type: ignore[misc]
                for job_id, record in zip(left, records, strict=True):
                    if not is_job(record) or record.get(b"parent") != self._job_id.encode():
                        raise JobGone(f"Job {job_id} is no child of this one, or is gone")
                    job = job_from_record(record)
                    if job.done:
                        ends[job_id] = job
                if len(ends) == len(ids):
                    return [ends[job_id] for job_id in ids]
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Until Redis answers: the ids make a repeated submit harmless."""
        pause = 0.05
        while True:
            try:
                return await call()
            except Exception as error:
                if not is_unavailable(error):
                    raise
                logger.warning("job %s: Redis is away (%s), trying again", self._job_id, type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
