"""jobstream: its worker by its own entry point, its Queue as the client."""

from __future__ import annotations

from benchmarks.marks import MARKS
from benchmarks.system import System
from jobstream import keys, task
from jobstream.events import parse_message
from jobstream.job import new_job_id
from jobstream.queue import Queue, Submission
from jobstream.redis import UrlSource
from jobstream_workers.main import main
from jobstream_workers.settings import WorkerSettings


@task
async def noop() -> None:
    """Do nothing."""
    MARKS.noop()


@task
async def stamp(sent_ns: int) -> None:
    """Say when it began."""
    MARKS.stamp(sent_ns)


class Jobstream(System):
    """Defaults, but for the slots, and for the log line per job, which the other libraries do not print either."""

    def run_worker(self, slots: int) -> None:
        main(WorkerSettings(redis_url=self.url, tasks=__name__, max_jobs=slots, log_level="WARNING"))

    async def open(self) -> None:
        source = UrlSource(self.url)
        self._queue = Queue(source.client())
        self._pubsub = source.subscriber().pubsub()

    async def enqueue(self) -> None:
        await self._queue.submit("noop", {})

    async def enqueue_many(self, jobs: int) -> bool:
        await self._queue.submit_many([Submission("noop", {})] * jobs)
        return True

    async def enqueue_stamped(self, sent_ns: int) -> None:
        await self._queue.submit("stamp", {"sent_ns": sent_ns})

    async def result(self, sent_ns: int) -> None:
        job_id = new_job_id()
        channel = keys.events(job_id)
        await self._pubsub.subscribe(channel)  # before the submit, so that no event can be missed
        await self._queue.submit("stamp", {"sent_ns": sent_ns}, job_id=job_id)
        while True:
            message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=10)
            if message is not None and parse_message(message["data"]).kind == "done":
                break
        await self._queue.get(job_id)
        await self._pubsub.unsubscribe(channel)

    async def left(self) -> int:
        return int(await self._queue.client.zcard(keys.queue("default")))
