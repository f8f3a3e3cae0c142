"""The schedule: each tick once in the whole fleet, whoever dies, whatever the clock does; and none that was missed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from arq.connections import ArqRedis

from jobstream import JobContext, keys, task
from jobstream.cron import Cron
from jobstream.embedded import ChildRedis
from jobstream.errors import JobGone
from jobstream.job import JobStatus
from jobstream.queue import Queue
from jobstream.redis import RedisSource, UrlSource
from jobstream.schedules import of_task
from jobstream.task import Task
from jobstream_workers.scheduler import LOOK_SECONDS, Scheduler, tick_id
from jobstream_workers.settings import WorkerSettings
from jobstream_workers.worker import Worker

YEARLY = Cron("0 0 1 1 *")
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Every(Cron):
    """A tick every so many seconds: tests cannot wait for minutes."""

    seconds: int = 1

    def next_tick(self, after: datetime) -> datetime:
        seconds = int(after.timestamp()) // self.seconds * self.seconds + self.seconds
        return datetime.fromtimestamp(seconds, UTC)


@task
async def plain(job: JobContext, greeting: str = "hello") -> str:
    """Has no cron."""
    return f"{greeting} from {job.id}"


def with_cron(cron: Cron | None, *, ttl: float = 3600.0) -> Task:
    """The task `ticking`."""
    return dataclasses.replace(plain, name="ticking", cron=cron, ttl=ttl)


ticking = with_cron(Every("* * * * *"), ttl=0.3)
"""Runs each second; its record is gone before the next one."""


class Hands:
    """A clock that is as far ahead of Redis's as it is told."""

    def __init__(self, client: ArqRedis) -> None:
        self._client = client
        self.ahead = timedelta()

    async def __call__(self) -> datetime:
        seconds, microseconds = await self._client.time()
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds) + self.ahead


@pytest.fixture
def clock(client: ArqRedis) -> Hands:
    return Hands(client)


@pytest.fixture
def queue(client: ArqRedis) -> Queue:
    return Queue(client)


class Schedules:
    """Workers' schedules; each one made later knows its cron since later."""

    def __init__(self, client: ArqRedis, clock: Hands) -> None:
        self._client, self._clock = client, clock

    async def look(self, cron: Cron | None) -> Scheduler:
        """A new worker with this cron, that has looked once."""
        self._clock.ahead += timedelta(milliseconds=5)
        schedule = Scheduler(self._client, [with_cron(cron)], clock=self._clock)
        await schedule.look()
        return schedule


@pytest.fixture
def schedules(client: ArqRedis, clock: Hands) -> Schedules:
    return Schedules(client, clock)


async def waiting(queue: Queue) -> list[str]:
    """The ids of the jobs that wait for their time."""
    jobs, _ = await queue.list()
    return sorted(job.id for job in jobs if job.status is JobStatus.SCHEDULED)


async def next_id(clock: Hands, cron: Cron) -> str:
    return tick_id("ticking", cron.next_tick(await clock()))


async def test_many_workers_queue_one_job_for_the_next_tick(client: ArqRedis, queue: Queue) -> None:
    many = [Scheduler(client, [with_cron(YEARLY)]) for _ in range(10)]
    pauses = await asyncio.gather(*(schedule.look() for schedule in [*many, *many]))
    jobs, _ = await queue.list()
    assert len(jobs) == 1
    [job] = jobs
    tick = YEARLY.next_tick(datetime.now(UTC))
    assert (job.id, job.task, job.run_at) == (f"cron-ticking-{tick.timestamp():.0f}", "ticking", tick)
    assert (job.status, job.tags) == (JobStatus.SCHEDULED, ["cron"])
    assert set(pauses) == {LOOK_SECONDS}


async def test_a_worker_looks_again_right_after_the_tick(client: ArqRedis, clock: Hands) -> None:
    cron = Every("* * * * *", seconds=3)
    schedule = Scheduler(client, [with_cron(YEARLY), dataclasses.replace(with_cron(cron), name="other")], clock=clock)
    now = await clock()
    assert 0 < await schedule.look() <= (cron.next_tick(now) - now).total_seconds() + 0.1


async def test_a_tick_that_was_cancelled_or_purged_is_not_queued_again(queue: Queue, schedules: Schedules) -> None:
    schedule = await schedules.look(YEARLY)
    [job_id] = await waiting(queue)
    await queue.cancel(job_id)
    await schedule.look()
    await schedules.look(YEARLY)
    assert (await queue.get(job_id)).status is JobStatus.CANCELLED
    await queue.purge(job_id)
    await schedule.look()
    await schedules.look(YEARLY)
    with pytest.raises(JobGone):
        await queue.get(job_id)
    assert await waiting(queue) == []


async def test_a_tick_that_has_passed_is_not_queued(queue: Queue, clock: Hands, schedules: Schedules) -> None:
    """As if the call had been sent before Redis froze, and read afterwards."""
    clock.ahead = -5 * MINUTE
    await schedules.look(Every("* * * * *"))
    assert await queue.list() == ([], None)


async def test_a_clock_that_steps_back_queues_nothing_that_was_queued(
    queue: Queue, clock: Hands, schedules: Schedules
) -> None:
    cron = Every("* * * * *", seconds=60)
    clock.ahead = timedelta(hours=2)
    schedule = await schedules.look(cron)
    [job_id] = await waiting(queue)
    await queue.purge(job_id)
    clock.ahead = MINUTE
    await schedule.look()
    await schedules.look(cron)
    assert await waiting(queue) == []


async def test_a_clock_that_stood_days_ahead_does_not_silence_the_schedule(
    queue: Queue, clock: Hands, schedules: Schedules
) -> None:
    cron = Every("* * * * *", seconds=60)
    clock.ahead = timedelta(days=30)
    schedule = await schedules.look(cron)
    [far] = await waiting(queue)
    clock.ahead = MINUTE
    await schedule.look()
    assert await waiting(queue) == [await next_id(clock, cron)] != [far]
    assert (await queue.get(far)).status is JobStatus.CANCELLED


async def test_what_was_queued_for_an_old_expression_is_cancelled(
    queue: Queue, client: ArqRedis, schedules: Schedules
) -> None:
    old = await schedules.look(YEARLY)
    [withdrawn] = await waiting(queue)
    new = await schedules.look(Cron("0 0 2 1 *"))
    [job_id] = await waiting(queue)
    assert job_id != withdrawn
    job = await queue.get(withdrawn)
    assert job.status is JobStatus.CANCELLED
    assert job.error is not None
    assert job.error.detail == "the task's schedule has changed"
    assert await client.zrange(keys.queue("default"), 0, -1) == [job_id.encode()]
    for schedule in (old, new, old):  # workers of both kinds, side by side
        await schedule.look()
        assert await waiting(queue) == [job_id]


async def test_an_old_expression_that_comes_back_gets_its_tick(queue: Queue, schedules: Schedules) -> None:
    await schedules.look(YEARLY)
    first = await waiting(queue)
    await schedules.look(Cron("0 0 2 1 *"))
    await schedules.look(YEARLY)
    assert await waiting(queue) == first
    job = await queue.get(first[0])
    assert (job.error, job.finished_at, job.version) == (None, None, 1)


async def test_a_tick_of_both_expressions_stays_as_it_is(queue: Queue, schedules: Schedules) -> None:
    await schedules.look(YEARLY)
    [job_id] = await waiting(queue)
    await schedules.look(Cron("0 0 1 JAN *"))
    assert await waiting(queue) == [job_id]
    await queue.purge(job_id)
    await schedules.look(Cron("00 0 1 JAN *"))
    assert await waiting(queue) == []


async def test_a_task_that_loses_its_cron_loses_its_tick(queue: Queue, schedules: Schedules) -> None:
    old = await schedules.look(YEARLY)
    new = await schedules.look(None)
    assert await waiting(queue) == []
    for schedule in (old, new, old):
        await schedule.look()
    assert await waiting(queue) == []
    await schedules.look(YEARLY)
    assert len(await waiting(queue)) == 1


async def test_a_tick_that_a_stock_worker_has_begun_is_left_alone(
    queue: Queue, client: ArqRedis, schedules: Schedules
) -> None:
    await schedules.look(YEARLY)
    [job_id] = await waiting(queue)
    await client.set(keys.in_progress(job_id), "1", px=60_000)
    await schedules.look(Cron("0 0 2 1 *"))
    assert (await queue.get(job_id)).status is JobStatus.SCHEDULED


async def test_a_tick_farther_away_than_a_year_is_not_queued_yet(queue: Queue, schedules: Schedules) -> None:
    leap = Cron("0 0 29 2 *")
    far = leap.next_tick(datetime.now(UTC)) - datetime.now(UTC) > timedelta(days=365)
    await schedules.look(leap)
    assert len(await waiting(queue)) == (0 if far else 1)


async def test_the_marker_expires_two_days_after_its_tick(client: ArqRedis, schedules: Schedules) -> None:
    await schedules.look(YEARLY)
    left = timedelta(milliseconds=await client.pttl(keys.schedule(of_task("ticking").stored)))
    tick = YEARLY.next_tick(datetime.now(UTC))
    assert abs(datetime.now(UTC) + left - tick - timedelta(days=2)) < MINUTE


class Ends:
    """Hears which jobs end, and when (ms of Redis's time)."""

    def __init__(self, client: ArqRedis) -> None:
        self.heard: list[tuple[str, int]] = []
        self._pubsub = client.pubsub()

    async def next(self) -> tuple[str, int]:
        """The next job that ends."""
        async with asyncio.timeout(30):
            while True:
                message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=30)
                if message is None:
                    continue
                _, kind, time_ms, data = message["data"].decode().split(" ", 3)
                if kind == "done":
                    assert data == "succeeded"
                    self.heard.append((message["channel"].decode().removeprefix(keys.EVENTS), int(time_ms)))
                    return self.heard[-1]

    async def more(self, number: int) -> None:
        """Wait for so many."""
        for _ in range(number):
            await self.next()

    @property
    def seconds(self) -> list[int]:
        """The ticks of the jobs that have ended, sorted."""
        return sorted(int(job_id.removeprefix("cron-ticking-")) for job_id, _ in self.heard)

    async def __aenter__(self) -> Ends:
        await self._pubsub.psubscribe(keys.EVENTS + "*")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]


def consecutive(seconds: list[int]) -> bool:
    return all(later - earlier == 1 for earlier, later in itertools.pairwise(seconds))


@contextlib.asynccontextmanager
async def fleet(source: RedisSource, directory: Path, *, workers: int) -> AsyncIterator[None]:
    """Workers that run `ticking` each second."""
    settings = WorkerSettings(files_dir=directory, processes=1, shutdown_seconds=0, kill_seconds=1, max_jobs=3)
    members = [Worker(source, {"ticking": ticking}, settings) for _ in range(workers)]
    running = [asyncio.create_task(member.async_run()) for member in members]
    try:
        yield
    finally:
        for member in members:
            member.stop()
        await asyncio.gather(*running)
        for member in members:
            await member.close()


async def test_a_fleet_runs_every_tick_once_and_in_time(source: RedisSource, client: ArqRedis, tmp_path: Path) -> None:
    async with Ends(client) as ends, fleet(source, tmp_path, workers=3):
        await ends.more(4)
    assert consecutive(ends.seconds), ends.heard
    for job_id, time_ms in ends.heard:
        assert 0 <= time_ms - 1000 * int(job_id.rpartition("-")[2]) < 500, ends.heard


async def test_a_redis_that_was_frozen_brings_no_burst_of_ticks(
    real_source: UrlSource, real_client: ArqRedis, redis_server: ChildRedis, tmp_path: Path
) -> None:
    assert redis_server.pid is not None
    async with Ends(real_client) as ends, fleet(real_source, tmp_path, workers=2):
        await ends.more(2)
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(6)  # several ticks, and longer than any of the workers' calls waits
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        seconds, _ = await real_client.time()
        while ends.seconds[-1] <= seconds + 1:
            await ends.next()
    frozen = ends.seconds[1]
    assert len(set(ends.seconds)) == len(ends.seconds), "a tick ran twice"
    late = [second for second in ends.seconds if frozen < second <= seconds - 1]
    assert late in ([], [frozen + 1]), "more than the tick that waited already"
    assert len(ends.seconds) <= 6


async def test_a_worker_that_is_killed_takes_no_tick_with_it(
    real_source: UrlSource, real_client: ArqRedis, redis_server: ChildRedis, tmp_path: Path
) -> None:
    environment = os.environ | {
        "JOBSTREAM_REDIS_URL": redis_server.url,
        "JOBSTREAM_TASKS": __name__,
        "JOBSTREAM_FILES_DIR": str(tmp_path),
        "JOBSTREAM_SHUTDOWN_SECONDS": "0",
    }
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "jobstream_workers.main", env=environment, stderr=asyncio.subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    try:
        async with Ends(real_client) as ends:
            await ends.more(2)
            processes[0].kill()
            await ends.more(3)
        assert consecutive(ends.seconds), ends.heard
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
