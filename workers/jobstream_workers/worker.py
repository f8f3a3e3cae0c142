"""The worker: claims jobs as they fall due, runs them, keeps their leases, tells that it lives.

A subclass of arq's Worker, so that it is configured, started and closed as one; the loops are our own. They survive
whatever Redis does: each waits and tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from arq.worker import Worker as ArqWorker
from arq.worker import func
from redis.asyncio.client import PubSub

from jobstream import catalogue, keys, store
from jobstream.cancellation import cancel
from jobstream.catalogue import WorkerInfo
from jobstream.errors import ConfigurationError, StorageUnavailable
from jobstream.files import FileStore
from jobstream.job import WEBHOOKS_QUEUE
from jobstream.queue import Queue
from jobstream.redis import RedisSource, is_unavailable
from jobstream.serialize import deserialize, serialize
from jobstream.spill import Spill
from jobstream.task import Task
from jobstream.version import VERSION
from jobstream.webhooks.deliveries import DELIVERY_TASK
from jobstream_workers.claim import (
    ANY_SUSPECTS,
    CLAIM_MAX,
    ClaimedJob,
    Numbers,
    Room,
    StaleClaim,
    Suspects,
    claim,
    task_list,
)
from jobstream_workers.courier import Courier
from jobstream_workers.executors import Executors
from jobstream_workers.file_sweeper import FileSweeper
from jobstream_workers.health import HealthServer, Pulse
from jobstream_workers.lease import LeaseKeeper, Verdict
from jobstream_workers.meter import Meter
from jobstream_workers.rotation import Rotation
from jobstream_workers.runner import Runner, RunningJob, StopReason
from jobstream_workers.scheduler import Scheduler
from jobstream_workers.settings import WorkerSettings
from jobstream_workers.writer import AttemptWriter

logger = logging.getLogger("jobstream.worker")

BEAT_SECONDS = 5.0
BEAT_LIFE_SECONDS = 15.0
MAIL_SECONDS = 2.0
"""Fallback poll for webhooks whose wake-up was lost."""
SWEEP_SECONDS = 60.0


def new_worker_id() -> str:
    """`host:pid:random`: says where to look, and is never reused."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


async def _run_by_runner(ctx: dict[Any, Any]) -> None:
    """Stands for every task in arq's table of functions, which takes coroutines only; the runner does the work."""
    raise RuntimeError("arq's own run_job is not used")


class Worker(ArqWorker):
    """Runs jobs until `stop()`."""

    def __init__(self, source: RedisSource, tasks: Mapping[str, Task], settings: WorkerSettings) -> None:
        client = source.client()
        super().__init__(
            [func(_run_by_runner, name=name, timeout=task.timeout) for name, task in tasks.items()],
            redis_pool=client,
            queue_name=keys.queue(settings.queue_names[0]),
            max_jobs=settings.max_jobs,
            keep_result=settings.arq_keep_result_seconds,
            handle_signals=False,
            job_serializer=serialize,
            job_deserializer=deserialize,
        )
        self.id = new_worker_id()
        self._source = source
        self._tasks = tasks
        self._settings = settings
        self._meter = Meter((*tasks, DELIVERY_TASK), (*settings.queue_names, WEBHOOKS_QUEUE))
        self._courier = Courier(client, settings, self._meter)
        if self._courier.task.name in tasks:
            raise ConfigurationError(f"the task {self._courier.task.name!r} is the service's own; choose another name")
        self._all_tasks = {**tasks, self._courier.task.name: self._courier.task}
        self._delivering = 0
        self._mail = asyncio.Event()
        self._files = FileStore.at(settings.files_place)
        self._spill = Spill(self._files, settings.spill_bytes)
        self._sweeper = FileSweeper(self._files, client)
        self._rotation = Rotation(settings.queue_weights)
        self._limits = {name: task.max_running for name, task in tasks.items() if task.max_running is not None}
        self._task_list = task_list(tasks)
        self._numbers = Numbers(this=0, heard=0)
        self._suspects = 0
        self._tenants: Counter[str] = Counter()
        self._kept = settings.kept_slots
        self._queues = ",".join(sorted(settings.queue_names))
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._running: dict[str, RunningJob] = {}
        self._executors: Executors | None = None
        self._started_ms = time.time_ns() // 1_000_000
        self._left_behind: set[RunningJob] = set()
        self._pulse = Pulse(tasks.values(), poll_seconds=settings.poll_seconds, slots=settings.max_jobs)
        self._meter.watch(
            slots=settings.max_jobs,
            running=lambda: len(self._running) - self._delivering,
            left=lambda: len(self._left_behind),
        )
        self.ready = asyncio.Event()
        """Set when the first heartbeat was written: the tasks are announced."""

    def stop(self) -> None:
        """Claim no more; `main` gives running jobs their time, releases what is left, and returns."""
        self._stopping.set()
        self._pulse.stopping = True
        self._wake.set()
        self._mail.set()

    async def main(self) -> None:
        """Run until `stop()`. A worker that is cancelled instead releases its jobs at once."""
        settings = self._settings
        executors = Executors(
            threads=2 * settings.max_jobs,  # half of them for jobs that wait for their children
            processes=settings.processes,
            files=self._files,
            kill_grace=settings.kill_seconds,
            queue=Queue(self.pool, spill=self._spill),
            on_wait=self._wake.set,
        )
        self._executors = executors
        loop = asyncio.get_running_loop()

        def on_verdict(job_id: str, token: str, verdict: Verdict) -> None:
            loop.call_soon_threadsafe(self._heed, job_id, token, verdict)

        async with executors:
            leases = LeaseKeeper(self._source, lease=settings.lease_seconds, on_verdict=on_verdict)
            with leases, self._health():
                runner = Runner(
                    self.pool,
                    self._all_tasks,
                    executors,
                    keep_arq_result=settings.arq_keep_result_seconds,
                    max_crashes=settings.max_crashes,
                    kill_grace=settings.kill_seconds,
                    meter=self._meter,
                    spill=self._spill,
                )
                scheduler = Scheduler(self.pool, self._tasks.values())
                loops = [
                    asyncio.create_task(self._surviving(beat), name=f"worker-{beat.__name__}")
                    for beat in (self._listen, self._beat, self._sweep, scheduler.run, self._pulse.beat)
                ]
                try:
                    await asyncio.gather(
                        self._surviving(lambda: self._claim(runner, leases), failed=self._pulse.failed),
                        self._surviving(lambda: self._deliver(runner, leases)),
                    )
                    await self._drain(settings.shutdown_seconds)
                finally:
                    await self._release_all()
                    await self._settle()
                    await cancel(*loops)
                    with contextlib.suppress(Exception):  # the heartbeat expires by itself
                        await catalogue.part(self.pool, self.id)

    def _health(self) -> contextlib.AbstractContextManager[object]:
        host, port = self._settings.worker_host, self._settings.worker_port
        if port is None:
            return contextlib.nullcontext()
        return HealthServer(self._pulse, self._meter, self._source, host=host, port=port)

    async def close(self) -> None:
        """Close the connections."""
        await self._courier.aclose()
        if self._pool is not None:
            await self.pool.aclose()
            self._pool = None

    async def _surviving(
        self, loop: Callable[[], Awaitable[None]], *, failed: Callable[[Exception], None] | None = None
    ) -> None:
        """Run a loop again whenever Redis, or a mistake of ours, has thrown it out; until it ends by itself."""
        pause = 0.05
        while True:
            began = time.monotonic()
            try:
                await loop()
                return
            except Exception as error:
                if failed is not None:
                    failed(error)
                if is_unavailable(error):
                    self._meter.redis.failed()
                    logger.warning("Redis is away (%s), trying again", type(error).__name__)
                else:
                    logger.exception("a worker's loop failed, starting it again")
            if time.monotonic() - began > 5:
                pause = 0.05
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _claim(self, runner: Runner, leases: LeaseKeeper) -> None:
        while not self._stopping.is_set():
            # Cleared before the claim: a wake-up that comes while we look makes us look again.
            self._wake.clear()
            next_due = await self._claim_from_all(runner, leases)
            self._pulse.reached()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(next_due, 0.001)):
                    await self._wake.wait()
        await self._retire(*self._settings.queue_names)

    async def _deliver(self, runner: Runner, leases: LeaseKeeper) -> None:
        """Webhooks have slots of their own: receivers that do not answer hold up no job, and jobs no webhook."""
        while not self._stopping.is_set():
            self._mail.clear()
            await self._courier.collect()
            free, next_due = self._settings.webhook_slots - self._delivering, MAIL_SECONDS
            if free > 0:
                asked_at = time.monotonic()
                jobs, due = await claim(
                    self.pool,
                    queue=WEBHOOKS_QUEUE,
                    worker_id=self.id,
                    slots=free,
                    lease=self._settings.lease_seconds,
                    tasks=task_list([self._courier.task.name]),
                )
                if time.monotonic() - asked_at > self._settings.lease_seconds:
                    continue  # frozen meanwhile: these leases have ended, and the jobs may be somebody else's
                self._meter.claimed(jobs)
                for job in jobs:
                    self._start(job, runner, leases)
                if free > len(jobs) == CLAIM_MAX:
                    due = 0.0  # there may be more
                next_due = min(next_due, MAIL_SECONDS if due is None else due)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(next_due, 0.001)):
                    await self._mail.wait()
        await self._retire(WEBHOOKS_QUEUE)

    async def _retire(self, *queues: str) -> None:
        """Be woken no more. Should that have happened already, somebody else is woken instead."""
        with contextlib.suppress(Exception):  # Redis is away: whoever polls finds the jobs
            async with asyncio.timeout(1):
                for queue in queues:
                    await claim(self.pool, queue=queue, worker_id=self.id, slots=0, lease=self._settings.lease_seconds)

    @property
    def free(self) -> int:
        """Slots for which a job may be claimed."""
        # So many coroutines that were left behind have had a slot of their own; further ones keep theirs.
        too_many = max(0, len(self._left_behind) - self.max_jobs)
        waiting = min(self._executors.waiting, self.max_jobs) if self._executors is not None else 0
        return max(0, self.max_jobs - len(self._running) + self._delivering + waiting - too_many)

    async def _claim_from_all(self, runner: Runner, leases: LeaseKeeper) -> float:
        """Fill the slots that are free now; the seconds until the queues should be looked at again.

        A slot that is freed meanwhile is dealt in the next round: else the queue that is asked last would get it.
        """
        queues, free, next_due = self._rotation.queues, self.free, self._settings.poll_seconds
        while queues:
            # A full worker asks too: for when the next job is due, and to know that Redis is there.
            dealt = self._rotation.deal(free, queues) or dict.fromkeys(queues, 0)
            had = {}
            for queue, slots in dealt.items():
                had[queue], due = await self._claim_from(queue, slots, runner, leases)
                next_due = min(next_due, due)
            # What a queue had no work for goes to the others.
            free = sum(slots - had[queue] for queue, slots in dealt.items())
            if not free:
                break
            queues = tuple(queue for queue in queues if had.get(queue, 0) == dealt.get(queue, 0))
        return next_due

    async def _claim_from(self, queue: str, slots: int, runner: Runner, leases: LeaseKeeper) -> tuple[int, float]:
        """Claim and start; how many, and the seconds until the queue should be looked at again."""
        asked_at = time.monotonic()
        settings, last_crash = self._settings, self._settings.max_crashes - 1
        numbers = self._numbers = Numbers(this=self._numbers.this + 1, heard=self._numbers.heard)
        try:
            claimed, due = await claim(
                self.pool,
                queue=queue,
                worker_id=self.id,
                slots=slots,
                lease=settings.lease_seconds,
                limits=self._limits,
                numbers=numbers,
                tasks=self._task_list,
                owner_running=settings.tenant_running,
                room=self._room(),
                missing=settings.missing_task_seconds,
                # One more crash would be the last. Of those together in one worker one is guilty, and all would fail.
                suspects=Suspects(last_crash, int(not self._suspects)) if last_crash else ANY_SUSPECTS,
            )
        except StaleClaim:  # sent twice, and the answer to the first is lost
            return 0, 0.0
        took = time.monotonic() - asked_at
        self._meter.redis.took("claim", took)
        if took > settings.lease_seconds:
            # Frozen meanwhile: these leases have ended, and the jobs may be somebody else's. The others are given back.
            return 0, 0.0
        self._numbers = numbers._replace(heard=numbers.this)
        self._meter.claimed(claimed)
        for job in claimed:
            self._start(job, runner, leases)
        if slots > len(claimed) == CLAIM_MAX:
            due = 0.0  # there may be more
        return len(claimed), self._settings.poll_seconds if due is None else due

    def _room(self) -> Room | None:
        if not self._kept:
            return None
        return Room(self.free, self._kept, self.max_jobs, self._queues, self._tenants)

    def _start(self, job: ClaimedJob, runner: Runner, leases: LeaseKeeper) -> None:
        running = RunningJob(job)
        if (lost := self._running.get(job.id)) is not None:
            lost.stop(StopReason.LOST)  # frozen for longer than its lease, and nobody else was free to take it over
        self._running[job.id] = running
        self._count(job, 1)
        leases.hold(job)
        self.tasks[job.id] = self.loop.create_task(self._run(running, runner, leases), name=f"run-{job.id}")

    async def _run(self, running: RunningJob, runner: Runner, leases: LeaseKeeper) -> None:
        try:
            await runner.run(running, partial(self._leave_behind, running, leases))
        except Exception:
            logger.exception("job %s: its end could not be written", running.job.id)
        finally:
            self._left_behind.discard(running)
            self._free(running, leases)

    def _leave_behind(self, running: RunningJob, leases: LeaseKeeper) -> None:
        """Its job has ended without it: the slot is the next one's."""
        if not running.freed:
            self._left_behind.add(running)
            self._free(running, leases)

    def _free(self, running: RunningJob, leases: LeaseKeeper) -> None:
        job = running.job
        if not running.freed:
            running.freed = True
            leases.drop(job)
            self._count(job, -1)
            if self._running.get(job.id) is running:
                del self._running[job.id]
                del self.tasks[job.id]
        self._pulse.left_behind = len(self._left_behind)
        self._wake.set()

    def _count(self, job: ClaimedJob, by: int) -> None:
        """What is counted of the jobs that run."""
        if 0 < self._settings.max_crashes - 1 <= job.crashes:
            self._suspects += by
        if job.queue == WEBHOOKS_QUEUE:
            self._delivering += by
            if by < 0:
                self._mail.set()
        if job.owner is not None:
            self._tenants[job.owner] += by
            if not self._tenants[job.owner]:
                del self._tenants[job.owner]

    def _heed(self, job_id: str, token: str, verdict: Verdict) -> None:
        running = self._running.get(job_id)
        if running is not None and running.job.token == token:
            running.stop(StopReason.LOST if verdict == "lost" else StopReason.CANCEL)

    async def _listen(self) -> None:
        """Wake-ups and cancels. Both are only bells: the fallback poll and the lease keeper find what was missed."""
        client = self._source.subscriber()
        try:
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(keys.control(self.id))
                self._wake.set()
                self._mail.set()
                await self._hear(pubsub)
        finally:
            await client.aclose()

    async def _hear(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=BEAT_SECONDS)
            if message is None:
                continue
            order, _, subject = message["data"].decode().partition(" ")
            if order == "claim":
                (self._mail if subject == WEBHOOKS_QUEUE else self._wake).set()
            elif order == "cancel" and (running := self._running.get(subject)) is not None:
                running.stop(StopReason.CANCEL)

    async def _beat(self) -> None:
        while True:
            info = WorkerInfo(
                id=self.id,
                tasks=tuple(sorted(self._tasks)),
                queues=self._settings.queue_names,
                slots=self._settings.max_jobs,
                running=len(self._running) - self._delivering,
                started_at=self._started_ms,
                version=VERSION,
                clock=time.time_ns() // 1_000_000,
                unreached=self._pulse.unreached,
                drain=self._settings.drain_seconds,
            )
            asked_at = time.monotonic()
            await catalogue.beat(self.pool, info, list(self._tasks.values()), life=BEAT_LIFE_SECONDS)
            self._meter.redis.took("beat", time.monotonic() - asked_at)
            self.ready.set()
            self._pulse.announced = True
            await asyncio.sleep(BEAT_SECONDS)

    async def _sweep(self) -> None:
        """Expired records leave the indexes, and their uploads the disk; so do uploads that no job owns."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            gone = await store.sweep(self.pool, queues=(*self._settings.queue_names, WEBHOOKS_QUEUE))
            try:
                await self._sweeper.tidy(gone)
            except StorageUnavailable as error:
                logger.warning("files are tidied up later: %s", error.detail)

    async def _drain(self, seconds: float) -> None:
        """Give running jobs their time."""
        if self.tasks:
            logger.info("shutting down: waiting up to %g s for %d jobs", seconds, len(self.tasks))
            await asyncio.wait(set(self.tasks.values()), timeout=seconds)

    async def _release_all(self) -> None:
        """Stop what still runs and give it back. A function in a thread cannot be forced: its job goes without it."""
        for running in list(self._running.values()):
            running.stop(StopReason.SHUTDOWN)
        if self.tasks:
            await asyncio.wait(set(self.tasks.values()), timeout=self._settings.kill_seconds + 2)
        for running in list(self._running.values()):
            logger.warning("job %s: its function does not end; released without it", running.job.id)
            running.stop(StopReason.LOST)
            with contextlib.suppress(Exception):  # Redis is away: the lease ends by itself
                async with asyncio.timeout(2):
                    await AttemptWriter(self.pool, running.job).release()

    async def _settle(self) -> None:
        """Give back what a claim took whose answer was lost. Should Redis execute that one later, it takes nothing."""
        if self._numbers.heard == self._numbers.this:
            return
        with contextlib.suppress(Exception):  # Redis is away: the leases end by themselves
            async with asyncio.timeout(2):
                await claim(
                    self.pool,
                    queue=self._settings.queue_names[0],
                    worker_id=self.id,
                    slots=0,
                    lease=self._settings.lease_seconds,
                    numbers=self._numbers._replace(this=self._numbers.this + 1),
                )

    @property
    def illness(self) -> str | None:
        """Why a restart would help, as `/livez` says."""
        return self._pulse.illness

    def exposition(self) -> bytes:
        """The worker's metrics, as `/metrics` says."""
        return self._meter.exposition()

    @property
    def stuck(self) -> int:
        """How many functions still run after `main`: the process can only end by `os._exit`."""
        return len(self._running) + len(self._left_behind)
