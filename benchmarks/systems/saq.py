"""SAQ on Redis."""

from __future__ import annotations

import asyncio
from typing import Any

from saq import Worker  # type: ignore[import-not-found, unused-ignore]
from saq.queue.redis import RedisQueue  # type: ignore[import-not-found, unused-ignore]

from benchmarks.marks import MARKS
from benchmarks.system import System


async def noop(ctx: dict[str, Any]) -> None:
    """Do nothing."""
    MARKS.noop()


async def stamp(ctx: dict[str, Any], *, sent_ns: int) -> None:
    """Say when it began."""
    MARKS.stamp(sent_ns)


class Saq(System):
    """Defaults, but for the slots."""

    def run_worker(self, slots: int) -> None:
        asyncio.run(Worker(RedisQueue.from_url(self.url), [noop, stamp], concurrency=slots).start())

    async def open(self) -> None:
        self._queue = RedisQueue.from_url(self.url)

    async def enqueue(self) -> None:
        await self._queue.enqueue("noop")

    async def enqueue_stamped(self, sent_ns: int) -> None:
        await self._queue.enqueue("stamp", sent_ns=sent_ns)

    async def result(self, sent_ns: int) -> None:
        await self._queue.apply("stamp", sent_ns=sent_ns, poll_interval=0.002)

    async def left(self) -> int:
        return int(await self._queue.count("incomplete"))
