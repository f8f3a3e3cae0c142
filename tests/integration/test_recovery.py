"""Workers die, freeze, are deployed anew: their jobs run again elsewhere, soon and once. Real processes and signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis

from jobstream import keys
from jobstream.embedded import ChildRedis
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue
from jobstream.redis import UrlSource
from jobstream_workers.claim import NOT_NUMBERED, ClaimedJob, claim
from jobstream_workers.loader import load_tasks
from jobstream_workers.worker import Worker
from tests.chaos.fleet import Fleet, Member, ready, until
from tests.chaos.ledger import Account, Ledger, Run, notes
from tests.working import quick_settings

RECOVERY_MS = 5_000
"""What the defaults promise: a dead worker's jobs start again elsewhere within this time."""


@pytest.fixture
def fleet(redis_server: ChildRedis, real_source: UrlSource, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, redis_server.url)
    try:
        yield fleet
    finally:
        fleet.close()


class Bench:
    """Jobs, and what becomes of them."""

    def __init__(self, client: ArqRedis, ledger: Ledger, directory: Path) -> None:
        self.client, self.ledger = client, ledger
        self.notes = directory / "notes"
        self._queue = Queue(client)
        self._gate = directory / "gate"

    async def submit(self, task: str, **data: float) -> Job:
        """A job that notes what it does."""
        return await self._queue.submit(task, {"where": str(self.notes), **data})

    async def gated(self, number: int) -> list[Job]:
        """Jobs that talk until the gate is opened."""
        data = {"where": str(self.notes), "gate": str(self._gate)}
        return [await self._queue.submit("gated", data) for _ in range(number)]

    def open_gate(self) -> None:
        """Let the gated jobs end."""
        self._gate.touch()

    async def until(self, job: Job, condition: Callable[[Account], bool]) -> Account:
        """The job's account when the condition holds; looked at again at each of its events."""
        async with asyncio.timeout(60), self.client.pubsub() as pubsub:
            await pubsub.subscribe(keys.events(job.id))
            while not condition(account := self.ledger.account(job.id)):
                await pubsub.get_message(timeout=60)
        return account

    async def claimed(self, jobs: list[Job], times: int) -> list[Account]:
        """The jobs' accounts when workers have taken each of them so many times, and it has said a word since."""

        def begun(account: Account) -> bool:
            return len(account.claims) >= times and account.entries[-1].kind == "chunk"

        return [await self.until(job, begun) for job in jobs]

    async def noted(self, word: str, run: Run) -> None:
        """Wait until the task has noted it."""

        async def there() -> bool:
            return run in notes(self.notes, word)

        await until(there, f"no {word} of {run}")

    async def ended(self, jobs: list[Job]) -> list[Account]:
        """The jobs' accounts at their end."""
        return [await self.until(job, lambda account: account.status.done) for job in jobs]

    async def redis_ms(self) -> int:
        """Redis's time."""
        seconds, microseconds = await self.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


@pytest.fixture
def bench(real_source: UrlSource, real_client: ArqRedis, tmp_path: Path) -> Iterator[Bench]:
    with real_source.sync_client() as client:
        yield Bench(real_client, Ledger(client, tmp_path / "notes"), tmp_path)


async def first_to_end(workers: Sequence[Member]) -> Member:
    """The worker that ends first."""
    ended: list[Member] = []

    async def one() -> bool:
        ended.extend(worker for worker in workers if not worker.alive)
        return bool(ended)

    await until(one, "no worker has ended")
    return ended[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_workers_jobs_start_elsewhere_within_five_seconds(
    fleet: Fleet, bench: Bench, number: signal.Signals
) -> None:
    """With default settings; a frozen worker that comes back finds its jobs taken and can write no word more."""
    victim = fleet.start_worker()
    await ready(bench.client, victim)
    jobs = await bench.gated(10)
    await bench.claimed(jobs, 1)
    heir = fleet.start_worker()
    await ready(bench.client, heir)

    lost_at = await bench.redis_ms()
    victim.signal(number)
    accounts = await bench.claimed(jobs, 2)
    assert max(account.claim_times[1] for account in accounts) - lost_at <= RECOVERY_MS
    runs = [Run(job.id, attempt, pid) for job in jobs for attempt, pid in ((1, victim.pid), (2, heir.pid))]

    if number is signal.SIGSTOP:
        victim.signal(signal.SIGCONT)
        zombies = {run for run in runs if run.pid == victim.pid}

        async def stopped() -> bool:
            return set(notes(bench.notes, "stopped")) == zombies

        await until(stopped, "the zombie's runs are not stopped")
        assert victim.alive
    bench.open_gate()
    for account in await bench.ended(jobs):
        assert (account.status, account.record["result"]) == (JobStatus.SUCCEEDED, "2")
        assert [run.pid for run in account.claims] == [victim.pid, heir.pid]
    assert notes(bench.notes) == Counter(runs)
    bench.ledger.check(job.id for job in jobs)


async def test_a_job_that_kills_its_workers_fails_after_three_of_them(fleet: Fleet, bench: Bench) -> None:
    workers = [fleet.start_worker(lease_seconds="1") for _ in range(2)]
    await ready(bench.client, *workers)
    job = await bench.submit("poison")
    for _ in range(3):
        victim = await first_to_end(workers)
        workers.remove(victim)
        workers.append(fleet.start_worker(lease_seconds="1"))
    [account] = await bench.ended([job])
    assert (account.status, account.code) == (JobStatus.FAILED, "worker-crashed")
    assert sum(notes(bench.notes).values()) == 3
    assert all(worker.alive for worker in workers)
    bench.ledger.check([job.id])


async def test_jobs_that_ran_beside_one_that_kills_its_workers_are_not_blamed(fleet: Fleet, bench: Bench) -> None:
    """Twice they are in the worker that dies; the third time no two of them are in the same one."""
    bench.open_gate()
    killer = await bench.submit("poison")  # the first that a worker begins
    jobs = await bench.gated(6)
    workers = [fleet.start_worker(lease_seconds="1")]
    for _ in range(3):
        victim = await first_to_end(workers)
        workers.remove(victim)
        workers.append(fleet.start_worker(lease_seconds="1"))
    [account] = await bench.ended([killer])
    assert (account.status, account.code) == (JobStatus.FAILED, "worker-crashed")
    for account in await bench.ended(jobs):
        assert account.status is JobStatus.SUCCEEDED
    bench.ledger.check([killer.id, *(job.id for job in jobs)])


async def test_deploys_cost_a_long_job_no_attempt(fleet: Fleet, bench: Bench) -> None:
    """Each SIGTERM gives the job back to its queue, and the next worker takes it, at once."""
    worker = fleet.start_worker(shutdown_seconds="0")
    jobs = await bench.gated(1)
    for deploy in range(1, 7):
        await bench.claimed(jobs, deploy)
        heir = fleet.start_worker(shutdown_seconds="0")
        await ready(bench.client, heir)
        sent_at = await bench.redis_ms()
        worker.signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, 10) == 0
        [account] = await bench.claimed(jobs, deploy + 1)
        assert account.claim_times[-1] - sent_at < 2_000
        worker = heir
    bench.open_gate()
    [account] = await bench.ended(jobs)
    assert (account.status, account.record["attempt"]) == (JobStatus.SUCCEEDED, "1")
    assert [run.attempt for run in account.claims] == [1] * 7
    assert notes(bench.notes) == Counter(account.claims)
    bench.ledger.check([account.job_id])


async def test_a_worker_whose_event_loop_is_blocked_is_not_robbed(fleet: Fleet, bench: Bench) -> None:
    """For more than three leases, beside a worker that has nothing to do."""
    workers = [fleet.start_worker(lease_seconds="1") for _ in range(2)]
    await ready(bench.client, *workers)
    job = await bench.submit("blocks-loop", seconds=3.5)
    [account] = await bench.ended([job])
    assert (account.status, len(account.claims)) == (JobStatus.SUCCEEDED, 1)
    assert notes(bench.notes) == Counter(account.claims)


@contextlib.asynccontextmanager
async def worker_here(source: UrlSource, directory: Path, *, lease_seconds: float) -> AsyncIterator[Worker]:
    """A worker in this event loop."""
    quick = quick_settings(directory, lease_seconds=lease_seconds)
    worker = Worker(source, load_tasks(["tests.chaos.chaos_tasks"], entry_points=False), quick)
    running = asyncio.create_task(worker.async_run())
    try:
        await worker.ready.wait()
        yield worker
    finally:
        worker.stop()
        await running
        await worker.close()


async def test_a_worker_that_gets_its_own_job_back_ends_the_run_that_it_lost(
    real_source: UrlSource, bench: Bench, tmp_path: Path
) -> None:
    """It was frozen, and all others were busy: nobody but itself takes its job over. The lost run says nothing."""
    async with worker_here(real_source, tmp_path, lease_seconds=60) as worker:
        job = await bench.submit("silent")
        await bench.noted("began", Run(job.id, 1, os.getpid()))
        async with bench.client.pipeline(transaction=True) as pipe:  # the lease runs out
            pipe.delete(keys.in_progress(job.id))
            pipe.zadd(keys.queue("default"), {job.id: 1})
            pipe.publish(keys.control(worker.id), "claim default")
            await pipe.execute()
        await bench.noted("began", Run(job.id, 2, os.getpid()))
        await bench.noted("stopped", Run(job.id, 1, os.getpid()))
        assert Run(job.id, 2, os.getpid()) not in notes(bench.notes, "stopped")


async def test_a_claim_that_is_answered_after_its_lease_starts_nothing(
    real_source: UrlSource, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is frozen between question and answer; meanwhile somebody else takes the job."""
    asked_again = asyncio.Event()
    taken: list[ClaimedJob] = []

    async def late(client: ArqRedis, **options: Any) -> tuple[list[ClaimedJob], float | None]:
        if taken:
            asked_again.set()
        jobs, due = await claim(client, **options)
        while jobs and not taken:
            taken.extend(
                (
                    await claim(
                        bench.client, **(options | {"worker_id": "other", "lease": 60.0, "numbers": NOT_NUMBERED})
                    )
                )[0]
            )
        return jobs, due

    monkeypatch.setattr("jobstream_workers.worker.claim", late)
    async with worker_here(real_source, tmp_path, lease_seconds=1):
        await bench.submit("silent")
        await asyncio.wait_for(asked_again.wait(), 20)
    assert len(taken) == 1
    assert not notes(bench.notes)
