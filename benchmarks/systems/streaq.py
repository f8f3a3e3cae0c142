"""streaq."""

from __future__ import annotations

from streaq import Worker  # type: ignore[import-not-found, unused-ignore]

from benchmarks.marks import MARKS
from benchmarks.system import System


async def noop() -> None:
    """Do nothing."""
    MARKS.noop()


async def stamp(sent_ns: int) -> None:
    """Say when it began."""
    MARKS.stamp(sent_ns)


class Streaq(System):
    """Defaults, but for the slots."""

    def run_worker(self, slots: int) -> None:
        self._worker(slots).run_sync()

    def _worker(self, slots: int) -> Worker:
        worker = Worker(redis_url=self.url, concurrency=slots)
        self._noop = worker.task(name="noop")(noop)
        self._stamp = worker.task(name="stamp")(stamp)
        return worker

    async def open(self) -> None:
        self._client = self._worker(1)
        await self._client.__aenter__()

    async def enqueue(self) -> None:
        await self._noop.enqueue()

    async def enqueue_stamped(self, sent_ns: int) -> None:
        await self._stamp.enqueue(sent_ns)

    async def result(self, sent_ns: int) -> None:
        await (await self._stamp.enqueue(sent_ns)).result(10)

    async def left(self) -> int:
        return int(await self._client.queue_size())
