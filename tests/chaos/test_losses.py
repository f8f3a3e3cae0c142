"""The loss test: lines are cut, processes restarted, messages dropped; every watcher is told everything, once.

The watchers are the tests' own and read bare sockets, so that it is the service that loses nothing, not a client that
makes up for it. They go through a proxy that cuts, halves and silences connections, to either of two API processes,
which hear Redis through a way that loses messages.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal, get_args

import httpx2
import pytest

from jobstream import keys
from jobstream.embedded import ServerProgram
from jobstream.events import JobEvent
from jobstream.redis import UrlSource
from tests.chaos.deaf import DeafWay
from tests.chaos.fleet import Fleet, Member, ready, until
from tests.chaos.ledger import Ledger
from tests.chaos.load import Kind, Load
from tests.chaos.mortal_redis import MortalRedis
from tests.chaos.watchers import FORMATS, SocketWatcher, Told, Watcher, faults_of_many, faults_of_one
from tests.ports import free_port
from tests.proxy import NOTICED, End, Proxy, harmless, trouble

SHORT_CUTS, LONG_CUTS = 150, 1_000
SHORT_JOBS, LONG_JOBS = 12, 200
SHORT_SECONDS, LONG_SECONDS = 110, 8 * 60
AT_ONCE = 12
"""Jobs that run at a time."""

LOST_SHARE = 0.03
"""Of the messages that Redis publishes to the APIs."""

ENDS = (*NOTICED * 4, End.HALF_UP, End.SWALLOW_DOWN, End.SWALLOW_UP)

Deed = Literal[
    "cut everything", "drop subscriptions", "deploy api", "kill api", "restart redis", "kill redis", "kill worker"
]
WEIGHTS = (4, 6, 3, 3, 1, 1, 1)


class Stage:
    """Redis, two workers, two APIs, and the bad lines between them."""

    def __init__(self, program: ServerProgram, directory: Path, chance: random.Random) -> None:
        self.redis = MortalRedis(program, directory)
        self.chance = chance
        self.ports = (free_port(), free_port())
        self.apis: list[Member] = []
        self.workers: list[Member] = []
        self.proxy = Proxy(*self.ports, seed=chance.getrandbits(32))
        self.way = DeafWay(self.redis.port, random.Random(chance.getrandbits(32)))
        self.fleet = Fleet(
            directory,
            self.redis.url,
            heartbeat_seconds="0.5",
            shutdown_seconds="0",
            kill_seconds="0.5",
            processes="1",
            max_jobs=str(AT_ONCE),
        )
        self.notes = directory / "notes"
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Return when both APIs know the tasks."""
        self._stack.push_async_callback(asyncio.to_thread, self.redis.stop)
        self._stack.push_async_callback(asyncio.to_thread, self.fleet.close)
        await asyncio.to_thread(self.redis.start)
        await self._stack.enter_async_context(self.way)
        self._stack.enter_context(self.proxy)
        self.workers = [self.fleet.start_worker() for _ in range(2)]
        self.apis = [self.start_api(number) for number in range(2)]
        client = UrlSource(self.redis.url).client()
        self._stack.push_async_callback(client.aclose)
        await ready(client, *self.workers)
        await self._both_apis_answer()

    async def close(self) -> None:
        """End it all."""
        await self._stack.aclose()

    def start_api(self, number: int) -> Member:
        """One of the two; the process that was at its port must have ended."""
        return self.fleet.start_api(port=str(self.ports[number]), redis_url=f"redis://127.0.0.1:{self.way.port}")

    async def do(self, deed: Deed) -> None:
        """Something bad."""
        number = self.chance.randrange(2)
        match deed:
            case "cut everything":
                await asyncio.to_thread(self.proxy.cut, self.chance.choice((End.RESET, End.CLOSE, End.HALF_DOWN)))
            case "drop subscriptions":
                with self.redis.client() as client:
                    client.client_kill_filter(_type="pubsub")
            case "deploy api" | "kill api":
                await self._both_apis_answer()  # the one that was started last, too: watchers go on at the other
                self.apis[number].signal(signal.SIGTERM if deed == "deploy api" else signal.SIGKILL)
                await asyncio.to_thread(self.apis[number].wait, 30)
                self.apis[number] = await asyncio.to_thread(self.start_api, number)
            case "restart redis" | "kill redis":
                deadly = signal.SIGTERM if deed == "restart redis" else signal.SIGKILL
                await asyncio.to_thread(self.redis.signal, deadly)
                await asyncio.to_thread(self.redis.start)
            case "kill worker":
                await asyncio.to_thread(self.workers[number].signal, signal.SIGKILL)
                self.workers[number] = await asyncio.to_thread(self.fleet.start_worker)

    def logs(self, jobs: list[str]) -> dict[str, list[JobEvent]]:
        """What Redis keeps of each."""
        with self.redis.client() as client:
            ledger = Ledger(client, self.notes)
            return {job_id: ledger.account(job_id).entries for job_id in jobs}

    def epoch(self) -> str:
        """The name of Redis's history."""
        with self.redis.client() as client:
            return str(client.get(keys.EPOCH), "ascii").partition(" ")[0]

    async def _both_apis_answer(self) -> None:
        async def both_know() -> bool:
            return all([await _knows(port) for port in self.ports])

        await until(both_know, "the APIs do not know the tasks")


async def _knows(port: int) -> bool:
    try:
        async with httpx2.AsyncClient() as http:
            return (await http.get(f"http://127.0.0.1:{port}/tasks/speaking")).is_success
    except httpx2.TransportError:
        return False


class Run:
    """Jobs that are submitted as others end, and their watchers."""

    def __init__(self, stage: Stage, load: Load, group: asyncio.TaskGroup) -> None:
        self.watchers: dict[str, list[Watcher]] = {}
        self.all_jobs = [stage_watcher(stage, path, 0) for path in ("/events", "/events?task=speaking")]
        self.deeds: Counter[Deed] = Counter()
        self._stage, self._load, self._group = stage, load, group
        self._free = asyncio.Semaphore(AT_ONCE)
        self._following = [group.create_task(watcher.follow()) for watcher in self.all_jobs]

    @property
    def cuts(self) -> int:
        """Streams that have begun and were ended before their time."""
        of_one = sum(watcher.broken for watchers in self.watchers.values() for watcher in watchers)
        return of_one + sum(watcher.broken for watcher in self.all_jobs)

    async def submit_until(self, enough: asyncio.Event) -> None:
        """Hand over a job whenever one has been told to its end; returns when all have been."""
        async with asyncio.TaskGroup() as group:
            while not enough.is_set():
                await self._free.acquire()
                group.create_task(self._one())

    async def _one(self) -> None:
        chance = self._stage.chance
        job_id = await self._load.submit(Kind("speaking", data={"steps": chance.randrange(25, 60)}))
        watchers = [stage_watcher(self._stage, f"/jobs/{job_id}/events", number) for number in range(2)]
        watchers.append(stage_watcher(self._stage, f"/jobs/{job_id}/ws", 0, kind=SocketWatcher))
        self.watchers[job_id] = watchers
        async with asyncio.TaskGroup() as group:
            for watcher in watchers:
                group.create_task(watcher.follow())
        self._free.release()

    async def wreak(self, *, cuts: int, jobs: int) -> None:
        """One bad thing after the other, each at least once, until so many streams were cut and jobs handed over."""
        chance = self._stage.chance
        deeds: list[Deed] = chance.sample(get_args(Deed), len(get_args(Deed)))
        while deeds or self.cuts < cuts or len(self._load.accepted) < jobs:
            await asyncio.sleep(chance.uniform(0.1, 0.8))
            deed = deeds.pop() if deeds else chance.choices(get_args(Deed), WEIGHTS)[0]
            self.deeds[deed] += 1
            await self._stage.do(deed)

    async def told_all(self) -> None:
        """Return when those who follow all jobs were told of every job's end; they need not follow any more."""
        for watcher in self.all_jobs:
            while not self._load.accepted.keys() <= {each.data["job"] for each in watcher.told if each.event == "done"}:
                watcher.changed.clear()
                await watcher.changed.wait()
        for task in self._following:
            task.cancel()

    def faults(self) -> Iterator[str]:
        """All that was not told as it is in the logs."""
        logs, epoch = self._stage.logs(list(self._load.accepted)), self._stage.epoch()
        for job_id, watchers in self.watchers.items():
            for watcher in watchers:
                yield from (f"{job_id}: {fault}" for fault in faults_of_one(watcher.told, logs[job_id], epoch))
        for watcher in self.all_jobs:
            yield from (f"{watcher.path}: {fault}" for fault in faults_of_many(watcher.told, logs))

    def report(self, began: float) -> str:
        """What the run was worth."""
        told: list[Told] = [
            each for watchers in self.watchers.values() for watcher in watchers for each in watcher.told
        ]
        stage = self._stage
        return "\n".join(
            (
                f"{time.monotonic() - began:.0f} s, {len(self.watchers)} jobs, {self.cuts} streams cut: "
                f"{dict(stage.proxy.happened)} of {stage.proxy.connections} connections",
                f"deeds: {dict(self.deeds)}; {stage.way.lost} messages lost",
                f"told of one job: {dict(Counter(each.event for each in told))}",
                *(f"told by {each.path}: {dict(Counter(told.event for told in each.told))}" for each in self.all_jobs),
            )
        )


def stage_watcher(stage: Stage, path: str, number: int, *, kind: type[Watcher] = Watcher) -> Watcher:
    return kind(stage.proxy.port, path, FORMATS[number % 2], random.Random(stage.chance.getrandbits(32)))


@pytest.fixture
async def stage(server_program: ServerProgram, tmp_path: Path, chaos_seed: int) -> AsyncIterator[Stage]:
    stage = Stage(server_program, tmp_path, random.Random(chaos_seed))
    try:
        await stage.start()
        yield stage
    finally:
        await stage.close()


@pytest.mark.timeout(LONG_SECONDS + 60)
async def test_every_watcher_is_told_everything_once(stage: Stage, *, chaos_long: bool, chaos_seed: int) -> None:
    """The ids that a watcher was told are those of the log: no gap, nothing twice, `done` once and last."""
    cuts, jobs = (LONG_CUTS, LONG_JOBS) if chaos_long else (SHORT_CUTS, SHORT_JOBS)
    began = time.monotonic()
    run: Run | None = None
    try:
        async with (
            asyncio.timeout(LONG_SECONDS if chaos_long else SHORT_SECONDS),
            Load(stage.proxy.url, stage.notes) as load,
            asyncio.TaskGroup() as group,
        ):
            run = Run(stage, load, group)
            for watcher in run.all_jobs:
                await watcher.changed.wait()  # it was listed: from here on it is told of every job
            stage.proxy.fates, stage.way.share = trouble(ends=ENDS, after=5_000), LOST_SHARE
            enough = asyncio.Event()
            submitting = group.create_task(run.submit_until(enough))
            await run.wreak(cuts=cuts, jobs=jobs)
            enough.set()
            stage.way.share = 0.0  # what was lost stays lost: the service finds it by itself
            await submitting
            stage.proxy.fates = harmless
            await run.told_all()
        faults = list(run.faults())
        assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:20])
        assert run.cuts >= cuts
        assert len(load.accepted) >= jobs
    except BaseException:
        print(f"repeat it with --chaos-seed {chaos_seed}", stage.fleet.log_tails(), sep="\n")
        raise
    finally:
        if run is not None:
            print(f"seed {chaos_seed}", run.report(began), sep="\n")
