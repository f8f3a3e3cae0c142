"""The chaos run: processes are killed, frozen and restarted at random under load; at the end the books must balance."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pytest

from jobstream.embedded import ServerProgram
from jobstream.job import JobStatus
from tests.chaos.fleet import Member
from tests.chaos.ledger import Account
from tests.chaos.load import Kind
from tests.chaos.mortal_redis import MortalRedis
from tests.chaos.rig import Rig

WORKERS = 3
SHORT_KILLS, LONG_KILLS = 22, 210
SHORT_SECONDS, LONG_SECONDS = 100, 12 * 60
MAX_CRASHES = 3
"""The default: so many workers may die with a job."""

Deed = Literal[
    "kill worker", "deploy worker", "freeze worker", "kill api", "kill redis", "restart redis", "freeze redis"
]
WEIGHTS = (8, 4, 4, 2, 2, 1, 2)


class Step(NamedTuple):
    """Something bad, a while after the step before."""

    pause: float
    deed: Deed
    victim: int
    """Which worker, if it is one."""
    seconds: float
    """How long it stays frozen, if it is frozen."""


def schedule(rng: random.Random, *, kills: int) -> Iterator[Step]:
    """Steps with so many kills among them: all but a freeze end a process."""
    while kills > 0:
        [deed] = rng.choices(get_args(Deed), WEIGHTS)
        longest = 3.0 if deed == "freeze redis" else 7.0  # a worker's lease has ended by then
        yield Step(rng.uniform(0.1, 1.2), deed, rng.randrange(WORKERS), rng.uniform(0.1, longest))
        kills -= not deed.startswith("freeze")


class Recovery(NamedTuple):
    """A job was taken over from a lost worker."""

    ms: int
    """From the loss until it ran again."""
    redis_well: bool
    last_chance: bool
    """With so many crashes behind it that a worker runs one such job at a time: it may have waited for its turn."""


class Chaos:
    """Does what the schedule says to a rig."""

    def __init__(self, rig: Rig) -> None:
        self.done: list[tuple[float, Step]] = []
        """What was done, and after how many seconds."""
        self.losses: dict[int, list[int]] = {}
        """Worker's pid → when (ms) it was killed or frozen."""
        self.redis_troubles: list[int] = []
        self._rig = rig
        self._began = time.monotonic()

    async def wreak(self, steps: Iterable[Step]) -> None:
        """All steps, one after the other; returns when what was frozen is thawed and what was deployed has ended."""
        async with asyncio.TaskGroup() as later:
            for step in steps:
                await asyncio.sleep(step.pause)
                self.done.append((time.monotonic() - self._began, step))
                await self._do(step, later)

    async def _do(self, step: Step, later: asyncio.TaskGroup) -> None:
        rig = self._rig
        worker = rig.workers[step.victim]
        match step.deed:
            case "kill worker":
                self._lose(worker)
                await asyncio.to_thread(worker.signal, signal.SIGKILL)
                rig.workers[step.victim] = await asyncio.to_thread(rig.fleet.start_worker)
            case "deploy worker":
                rig.workers[step.victim] = await asyncio.to_thread(rig.fleet.start_worker)
                worker.signal(signal.SIGTERM)
                later.create_task(asyncio.to_thread(worker.wait, 30))
            case "freeze worker":
                self._lose(worker)
                worker.signal(signal.SIGSTOP)
                later.create_task(_thaw(worker, step.seconds))
            case "kill api":
                await asyncio.to_thread(rig.api.signal, signal.SIGKILL)
                await asyncio.to_thread(rig.start_api)
            case "kill redis" | "restart redis":
                self.redis_troubles.append(_now_ms())
                deadly = signal.SIGKILL if step.deed == "kill redis" else signal.SIGTERM
                await asyncio.to_thread(rig.redis.signal, deadly)
                await asyncio.to_thread(rig.redis.start)
            case "freeze redis":
                self.redis_troubles.append(_now_ms())
                rig.redis.signal(signal.SIGSTOP)
                later.create_task(_thaw(rig.redis, step.seconds))

    def _lose(self, worker: Member) -> None:
        self.losses.setdefault(worker.pid, []).append(_now_ms())

    def recoveries(self, accounts: Iterable[Account]) -> Iterator[Recovery]:
        """Each time that a job was taken over from a lost worker."""
        for account in accounts:
            for crashes, (run, since, until) in enumerate(account.takeovers, start=1):
                if lost := [at for at in self.losses.get(run.pid, []) if since <= at <= until]:
                    well = not any(since <= at <= until for at in self.redis_troubles)
                    yield Recovery(until - lost[-1], well, crashes >= MAX_CRASHES - 1)


@pytest.fixture
async def rig(server_program: ServerProgram, tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(server_program, tmp_path)
    try:
        await rig.start(workers=WORKERS)
        yield rig
    finally:
        await asyncio.to_thread(rig.close)


@pytest.mark.timeout(LONG_SECONDS + 60)
async def test_the_books_balance_after_chaos(rig: Rig, *, chaos_long: bool, chaos_seed: int) -> None:
    """Every job that was accepted ends exactly once, and everything that was done and said is accounted for."""
    rng = random.Random(chaos_seed)
    steps = list(schedule(rng, kills=LONG_KILLS if chaos_long else SHORT_KILLS))
    chaos = Chaos(rig)
    try:
        async with asyncio.timeout(LONG_SECONDS if chaos_long else SHORT_SECONDS), rig.load() as load:
            async with load.flowing(rng, pause=0.3 if chaos_long else 0.15):
                await chaos.wreak(steps)
            accounts = await rig.balanced(load.accepted)
        for job_id, kind in load.accepted.items():
            if kind.follows:
                assert ends_like(accounts[job_id], accounts[load.after[job_id]]), str(accounts[job_id])
            else:
                assert ends_as_it_should(accounts[job_id], kind), str(accounts[job_id])
        assert all(process.alive for process in (*rig.workers, rig.api))
    except BaseException:
        print(f"repeat it with --chaos-seed {chaos_seed}", *chaos.done, rig.fleet.log_tails(), sep="\n")
        raise
    print(f"seed {chaos_seed}", report(chaos, accounts.values(), rig.runs()), sep="\n")


def ends_as_it_should(account: Account, kind: Kind) -> bool:
    """As its kind does, or because too many of its workers died: then they did."""
    if account.status is JobStatus.FAILED and account.code == "worker-crashed":
        return len(account.claims) > MAX_CRASHES
    return account.status is kind.status


def ends_like(account: Account, first: Account) -> bool:
    """As the job that it was to run after; unless its own workers died."""
    if account.code == "worker-crashed":
        return first.status is JobStatus.SUCCEEDED and len(account.claims) > MAX_CRASHES
    without_a_run = first.status is JobStatus.SUCCEEDED or not account.claims
    return account.status is first.status and without_a_run


def report(chaos: Chaos, accounts: Iterable[Account], runs: Counter[str]) -> str:
    """What the run was worth."""
    accounts = list(accounts)
    deeds = Counter(step.deed for _, step in chaos.done)
    lines = [
        f"{sum(deeds.values())} deeds: {dict(deeds)}",
        f"{len(accounts)} jobs: {dict(Counter(str(account.status) for account in accounts))}, "
        f"{sum(runs.values())} runs, {sum(account.code == 'worker-crashed' for account in accounts)} given up",
    ]
    recoveries = list(chaos.recoveries(accounts))
    kinds = {
        "Redis well": [each.ms for each in recoveries if each.redis_well and not each.last_chance],
        "Redis in trouble": [each.ms for each in recoveries if not each.redis_well and not each.last_chance],
        "on their last chance": [each.ms for each in recoveries if each.last_chance],
    }
    for kind, unsorted in kinds.items():
        if times := sorted(unsorted):
            middle, last = times[len(times) // 2], times[int(len(times) * 0.99)]
            lines.append(
                f"{len(times)} jobs taken over from lost workers, {kind}: "
                f"p50 {middle} ms, p99 {last} ms, longest {times[-1]} ms"
            )
    return "\n".join(lines)


async def _thaw(frozen: Member | MortalRedis, seconds: float) -> None:
    await asyncio.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):  # a later step has killed it
        frozen.signal(signal.SIGCONT)


def _now_ms() -> int:
    """Redis's clock: it runs on this machine."""
    return time.time_ns() // 1_000_000
