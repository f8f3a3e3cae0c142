"""taskiq with Redis streams and results in Redis."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis
from taskiq.api import run_receiver_task  # type: ignore[import-not-found, unused-ignore]
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker  # type: ignore[import-not-found, unused-ignore]

from benchmarks.marks import MARKS
from benchmarks.system import System


async def noop() -> None:
    """Do nothing."""
    MARKS.noop()


async def stamp(sent_ns: int) -> None:
    """Say when it began."""
    MARKS.stamp(sent_ns)


class Taskiq(System):
    """Defaults, but for the slots; the group reads the stream from its beginning, to find what was submitted before."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        # Idle workers wait in a read of 2 s: the default timeout of redis-py 8 (5 s) is not reached.
        broker = RedisStreamBroker(url, consumer_id="0").with_result_backend(RedisAsyncResultBackend(url))
        self._broker = broker
        self._noop = broker.register_task(noop, task_name="noop")
        self._stamp = broker.register_task(stamp, task_name="stamp")

    def run_worker(self, slots: int) -> None:
        asyncio.run(run_receiver_task(self._broker, max_async_tasks=slots, run_startup=True))

    async def open(self) -> None:
        await self._broker.startup()
        self._redis = Redis.from_url(self.url)

    async def enqueue(self) -> None:
        await self._noop.kiq()

    async def enqueue_stamped(self, sent_ns: int) -> None:
        await self._stamp.kiq(sent_ns)

    async def result(self, sent_ns: int) -> None:
        job = await self._stamp.kiq(sent_ns)
        await job.wait_result(check_interval=0.002)

    async def left(self) -> int:
        group = (await self._redis.xinfo_groups("taskiq"))[0]
        return int(group["lag"] or 0) + int(group["pending"])
