"""Every write of an attempt, fenced by its token: what it says while it runs, its end, its release."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

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
_finish = Script("finish", uses=["turns", "after"])
_postpone = Script("postpone")
_release = Script("release")
_retry = Script("retry")

_EMIT_MAX = 500
"""Entries per call: a script blocks Redis while it runs."""

_ENDS_MAX = 16
"""Ends per call that do not wait for the turn's other ones: Redis writes them while the next jobs run."""

_ENDS_BYTES = 1 << 18
"""The same by the size of results."""


class Outcome(msgspec.Struct, frozen=True):
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
        return await _patiently(lambda: read_announcement(self._client, task), f"job {self._job.id}")

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
        """End the job, in a call of its own. `keep_arq_result` in seconds."""
        return await Endings(self._client, keep_arq_result=keep_arq_result).finish(self._job, outcome)

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
            await _patiently(
                lambda: script(self._client, key_names=[keys.queue(job.queue)], args=[job.id, job.token, *args]),
                f"job {job.id}",
            )
        )


class Endings:
    """Writes the ends of attempts: those of one turn of the event loop travel in one call, each fenced by its token."""

    def __init__(self, client: Redis, *, keep_arq_result: float) -> None:
        """`keep_arq_result` in seconds."""
        self._client = client
        self._keep_ms = round(keep_arq_result * 1000)
        self._arguments: list[Argument] = []
        self._answers: list[asyncio.Future[bool]] = []
        self._bytes = 0
        self._calls: set[asyncio.Task[None]] = set()

    async def finish(self, job: ClaimedJob, outcome: Outcome) -> bool:
        """End the job. False when the attempt has lost it: then nothing was written.

        Until Redis takes it: the fence makes a repeated write harmless when only the answer was lost. Raises redis-py's
        ResponseError for what it never will.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()
        if not self._answers:
            loop.call_soon(self._send)
        self._answers.append(answer)
        result, arq_result = outcome.result, outcome.arq_result
        error = msgspec.json.encode(outcome.error) if outcome.error else b""
        self._arguments += (job.id, job.token, keys.queue(job.queue), outcome.status, result, error, arq_result)
        self._bytes += len(result) + len(arq_result)
        if len(self._answers) >= _ENDS_MAX or self._bytes >= _ENDS_BYTES:
            self._send()
        return await answer

    def _send(self) -> None:
        if not self._answers:
            return
        call = asyncio.create_task(self._write(self._arguments, self._answers), name="finish")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        self._arguments, self._answers, self._bytes = [], [], 0

    async def _write(self, arguments: list[Argument], answers: list[asyncio.Future[bool]]) -> None:
        said: list[int | bytes | Exception]
        try:
            said = await _patiently(
                lambda: _finish(self._client, hurry=True, args=[self._keep_ms, *arguments]), f"{len(answers)} ends"
            )
        except Exception as error:
            said = [error] * len(answers)
        for answer, verdict in zip(answers, said, strict=True):
            if answer.done():  # whoever waited for it was cancelled
                continue
            if isinstance(verdict, int):
                answer.set_result(bool(verdict))
            elif isinstance(verdict, bytes):
                answer.set_exception(ResponseError(verdict.decode()))
            else:
                answer.set_exception(verdict)


async def _patiently(call: Callable[[], Awaitable[T]], what: str) -> T:
    pause = 0.05
    while True:
        try:
            return await call()
        except Exception as error:
            if not is_unavailable(error):
                raise
            logger.warning("%s: Redis is away (%s), trying again", what, type(error).__name__)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 1.0)
