"""arq as it is, and with a faster poll."""

from __future__ import annotations

from typing import Any

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker, func

from benchmarks.marks import MARKS
from benchmarks.system import System


async def noop(ctx: dict[str, Any]) -> None:
    """Do nothing."""
    MARKS.noop()


async def stamp(ctx: dict[str, Any], sent_ns: int) -> None:
    """Say when it began."""
    MARKS.stamp(sent_ns)


class Arq(System):
    """Defaults, but for the slots."""

    poll_delay = 0.5

    def run_worker(self, slots: int) -> None:
        worker = Worker(
            [func(noop, name="noop"), func(stamp, name="stamp")],
            redis_settings=RedisSettings(unix_socket_path=self.socket),
            max_jobs=slots,
            poll_delay=self.poll_delay,
        )
        worker.run()

    async def open(self) -> None:
        self._redis: ArqRedis = await create_pool(RedisSettings(unix_socket_path=self.socket))

    async def enqueue(self) -> None:
        await self._redis.enqueue_job("noop")

    async def enqueue_stamped(self, sent_ns: int) -> None:
        await self._redis.enqueue_job("stamp", sent_ns)

    async def result(self, sent_ns: int) -> None:
        job = await self._redis.enqueue_job("stamp", sent_ns)
        assert job is not None
        await job.result(poll_delay=0.002)  # its default of 0.5 s would be all that is seen

    async def left(self) -> int:
        return int(await self._redis.zcard("arq:queue"))


class TunedArq(Arq):
    """With the poll that is its best."""

    poll_delay = 0.01
