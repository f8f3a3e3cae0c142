"""Waiting for a job on behalf of one request: it costs Redis a read when something has happened, and no polling.

The record is read after the hub's subscription stands, and again when the hub has news: no change is missed. The wait
ends early when the process shuts down (the answer is then what a request without a wait would get) and when the client
goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from redis.asyncio import Redis
from starlette.requests import ClientDisconnect, Request

from jobstream.cancellation import cancel
from jobstream.job import FINAL, Record
from jobstream.store import read_record
from jobstream_api.live.frame import Frame
from jobstream_api.live.page import Page
from jobstream_api.service import Service

T = TypeVar("T")

ReadRecord = Callable[[Redis, str], Awaitable[Record | None]]


async def until_done(service: Service, request: Request, job_id: str, *, seconds: float) -> Record | None:
    """The record when the job is done, or as it is after `seconds`; None when there is none (any more).

    Raises what `_watch` raises.
    """

    def done(record: Record) -> bool:
        return record[b"status"].decode() in FINAL

    return await _while_there(request, _watch(service, job_id, done, seconds=seconds, only_end=True))


async def until_moved(
    service: Service, request: Request, job_id: str, version: int, *, seconds: float, read: ReadRecord = read_record
) -> Record | None:
    """The record when its version is another one, or as it is after `seconds`; None when there is none (any more).

    `read`: how it is read, for a record that is no job's. Raises what `_watch` raises.
    """

    def moved(record: Record) -> bool:
        return int(record[b"version"]) != version

    return await _while_there(request, _watch(service, job_id, moved, seconds=seconds, only_end=False, read=read))


class _Waiter:
    """What the hub tells of a job, for somebody who only wants to know when to look."""

    def __init__(self, job_id: str, *, only_end: bool) -> None:
        self.job_id = job_id
        self.version = 0
        self.closed = False
        self._only_end = only_end
        self._news = asyncio.Event()

    async def news(self, timeout: float) -> None:
        """Return when there is something to look at, or after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._news.wait()
        self._news.clear()

    def hear(self, frame: Frame) -> None:
        if frame.event == "done" or not self._only_end:
            self._news.set()

    def make_stale(self) -> None:
        self._news.set()

    def begin_anew(self) -> None:
        self._news.set()

    def close(self) -> None:
        self.closed = True
        self._news.set()

    def read_done(self, page: Page) -> None:
        """It never asks the hub to read."""

    def read_failed(self, error: Exception) -> None:
        """It never asks the hub to read."""


async def _watch(
    service: Service,
    job_id: str,
    reached: Callable[[Record], bool],
    *,
    seconds: float,
    only_end: bool,
    read: ReadRecord = read_record,
) -> Record | None:
    """Raises TimeoutError or redis-py's errors when Redis is away."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    waiter = _Waiter(job_id, only_end=only_end)
    try:
        await service.hub.subscribe(job_id, waiter)
        while True:
            record = await read(service.client, job_id)
            left = deadline - clock()
            if record is None or reached(record) or left <= 0 or waiter.closed or service.hub.draining:
                return record
            waiter.version = int(record[b"version"])
            await waiter.news(left)
    finally:
        service.hub.leave(job_id, waiter)


async def _while_there(request: Request, wait: Coroutine[Any, Any, T]) -> T:
    """The wait's outcome. Raises ClientDisconnect as soon as there is nobody to be answered."""
    waiting = asyncio.create_task(wait, name="wait")
    gone = asyncio.create_task(_disconnected(request), name="wait-gone")
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        await cancel(waiting, gone)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
