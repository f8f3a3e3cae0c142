"""Every write of an attempt, fenced by its token: what it says while it runs, its end, its release."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis

from jobstream import keys
from jobstream.catalogue import Announcement, read_announcement
from jobstream.job import JobStatus
from jobstream.outbox import Batch
from jobstream.progress import Eta, Progress, percent
from jobstream.queue import LIVE_SECONDS
from jobstream.redis import is_unavailable
from jobstream.scripts import Argument, Script
from jobstream.search import words_of
from jobstream_workers.claim import ClaimedJob

T = TypeVar("T")

logger = logging.getLogger("jobstream.writer")

_adopt = Script("adopt")
_emit = Script("emit")
_finish = Script("finish")
_postpone = Script("postpone")
_release = Script("release")
_retry = Script("retry")

_EMIT_MAX = 500
"""Entries per call: a script blocks Redis while it runs."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: `result` is JSON, `error` a problem object, `arq_result` what stock arq clients read."""

    status: JobStatus
    arq_result: bytes
    result: bytes = b""
    error: dict[str, Any] | None = None


class AttemptWriter:
    """Writes for one attempt. Each method gives False when the attempt has lost its job: then nothing was written."""

    def __init__(self, client: Redis, job: ClaimedJob) -> None:
        self._client = client
        self._job = job
        self._eta = Eta()

    async def adopt(self, *, task: str, data: object, enqueued_ms: int, ttl: float, max_attempts: int) -> bool:
        """Complete the record of a job that a stock arq client enqueued. `ttl` in seconds."""
        return await self._write(_adopt, task, enqueued_ms, round(ttl * 1000), max_attempts, " ".join(words_of(data)))

    async def announced(self, task: str) -> Announcement | None:
        """What other workers have announced of a task."""
        return await self._patiently(lambda: read_announcement(self._client, task))

    async def emit(self, batch: Batch) -> bool:
        """Write progress, log lines and chunks, in the order in which they were said."""
        said: list[Argument] = []
        if batch.logs_dropped:
            note = {"level": "warning", "message": f"{batch.logs_dropped} log lines were dropped: too many at once"}
            said += ["log", msgspec.json.encode(note)]
        for entry in batch.entries:
            said += [entry.kind, entry.data]
        if batch.progress is not None:
            state = batch.progress
            progress = Progress(
                current=state.current,
                total=state.total,
                percent=percent(state.current, state.total),
                message=state.message,
                eta_s=self._eta.update(state.current, state.total),
                items=state.items,
            )
            said += ["progress", msgspec.json.encode(progress)]
        for start in range(0, len(said), 2 * _EMIT_MAX):
            if not await self._write(_emit, *said[start : start + 2 * _EMIT_MAX]):
                return False
        return True

    async def finish(self, outcome: Outcome, *, keep_arq_result: float) -> bool:
        """End the job. `keep_arq_result` in seconds."""
        error = msgspec.json.encode(outcome.error) if outcome.error else b""
        keep_ms = round(keep_arq_result * 1000)
        return await self._write(_finish, outcome.status, outcome.result, error, outcome.arq_result, keep_ms)

    async def retry(self, error: dict[str, Any], *, after: float) -> bool:
        """Let the job wait `after` seconds for its next attempt; `error`: what ended this one.

        False also when the job was told to stop meanwhile.
        """
        live_ms = round(LIVE_SECONDS * 1000)
        return await self._write(_retry, round(after * 1000), msgspec.json.encode(error), self._job.queue, live_ms)

    async def release(self) -> bool:
        """Give the job back to its queue at once; the attempt does not count."""
        return await self._write(_release, self._job.queue)

    async def postpone(self, lane: str, *, most: int) -> bool:
        """Give a delivery back, uncounted, until fewer than `most` are under way in its lane."""
        return await self._write(_postpone, self._job.queue, lane, most)

    async def _write(self, script: Script, *args: Argument) -> bool:
        """Until Redis takes it: the fence makes a repeated write harmless when only the answer was lost.

        A repeated `emit` after a lost answer can say a batch twice; it never loses one.
        """
        job = self._job
        return bool(
            await self._patiently(
                lambda: script(self._client, key_names=[keys.queue(job.queue)], args=[job.id, job.token, *args])
            )
        )

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        job, pause = self._job, 0.05
        while True:
            try:
                return await call()
            except Exception as error:
                if not is_unavailable(error):
                    raise
                logger.warning("job %s: Redis is away (%s), trying again", job.id, type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
