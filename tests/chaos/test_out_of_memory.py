"""The kernel kills for want of memory: a whole worker, or the child process that took too much. For real where we may.

A control group with a limit needs root and a writable mount. Elsewhere the test does what the kernel would: SIGKILL,
and one more in the file where the kernel counts.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from arq.connections import ArqRedis

from jobstream.embedded import ChildRedis
from jobstream.job import Job, JobStatus
from jobstream.queue import Queue
from jobstream.redis import UrlSource
from jobstream_workers import processes
from jobstream_workers.loader import load_tasks
from jobstream_workers.oom import oom_kills
from jobstream_workers.worker import Worker
from tests.chaos.fleet import Fleet, ready, until
from tests.chaos.ledger import Ledger, notes
from tests.chaos.memory_group import MemoryGroup, memory_group
from tests.working import ended, error_of, quick_settings

LIMIT = 192 << 20
"""Bytes: enough for a child that is modest, far from what a hog takes."""
RECOVERY_MS = 5_000
KILLED = "killed: out of memory"


@pytest.fixture
def fleet(redis_server: ChildRedis, real_source: UrlSource, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, redis_server.url, processes="1")
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(params=["kernel", "stand-in"])
def group(request: pytest.FixtureRequest) -> Iterator[MemoryGroup | None]:
    """A real group, if there can be one; then none, so that the other way is known to work too.

    It outlives the fleet, which must be asked for after it.
    """
    if request.param == "stand-in":
        yield None
        return
    with memory_group() as group:
        yield group


async def test_a_workers_jobs_run_elsewhere_when_the_kernel_has_killed_it(
    group: MemoryGroup | None, fleet: Fleet, real_source: UrlSource, real_client: ArqRedis, tmp_path: Path
) -> None:
    queue, where, gates = Queue(real_client), tmp_path / "notes", [tmp_path / "feast", tmp_path / "gate"]
    victim = fleet.start_worker()
    await ready(real_client, victim)
    if group is not None:
        group.take_in(victim.pid, limit=LIMIT)
    hog = await queue.submit("hog", {"where": str(where), "gate": str(gates[0])})
    others = [await queue.submit("gated", {"where": str(where), "gate": str(gates[1])}) for _ in range(5)]

    async def all_began() -> bool:
        return sum(notes(where).values()) == 6

    await until(all_began, "not all jobs have begun")
    heir = fleet.start_worker()
    await ready(real_client, heir)

    gates[0].touch()
    if group is None:
        victim.signal(signal.SIGKILL)
    assert await asyncio.to_thread(victim.wait, 30) == 128 + signal.SIGKILL
    seconds, microseconds = await real_client.time()
    died_at = int(seconds) * 1000 + int(microseconds) // 1000
    if group is not None:
        assert group.kills == 1
    gates[1].touch()
    for job in [hog, *others]:
        found = await ended(queue, job)
        assert (found.status, found.result) == (JobStatus.SUCCEEDED, 2)
    with real_source.sync_client() as client:
        ledger = Ledger(client, where)
        ledger.check(job.id for job in [hog, *others])
        for job in [hog, *others]:
            account = ledger.account(job.id)
            assert [run.pid for run in account.claims] == [victim.pid, heir.pid]
            assert account.claim_times[1] - died_at <= RECOVERY_MS
    assert heir.alive


@pytest.fixture
async def hungry_worker(
    group: MemoryGroup | None,
    redis_server: ChildRedis,
    real_source: UrlSource,
    real_client: ArqRedis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[None]:
    """A worker with one child process, both within the limit; or one whose children are killed by the test."""
    if group is not None:
        fleet = Fleet(tmp_path, redis_server.url, processes="1")
        try:
            member = fleet.start_worker()
            await ready(real_client, member)
            group.take_in(member.pid, limit=LIMIT)
            yield
            assert member.alive
        finally:
            await asyncio.to_thread(fleet.close)
        return
    counter = tmp_path / "root/proc/vmstat"
    counter.parent.mkdir(parents=True)
    counter.write_text("oom_kill 0\n")
    monkeypatch.setattr(processes, "oom_kills", partial(oom_kills, tmp_path / "root"))
    tasks = load_tasks(["tests.chaos.chaos_tasks"], entry_points=False)
    worker = Worker(real_source, tasks, quick_settings(tmp_path))
    running = asyncio.create_task(worker.async_run())
    killer = asyncio.create_task(_kills_who_feasts(tmp_path / "notes", counter))
    try:
        await worker.ready.wait()
        yield
    finally:
        killer.cancel()
        worker.stop()
        await running
        await worker.close()


async def _kills_who_feasts(where: Path, counter: Path) -> None:
    """As the kernel does: it counts, then it kills."""
    killed: set[int] = set()
    while True:
        for run in set(notes(where, "feasts")):
            if run.pid not in killed and run.attempt == 1:
                killed.add(run.pid)
                counter.write_text(f"oom_kill {len(killed)}\n")  # noqa: ASYNC240 (no file system is slow here)
                os.kill(run.pid, signal.SIGKILL)
        await asyncio.sleep(0.02)


@pytest.mark.usefixtures("hungry_worker")
async def test_a_child_process_that_the_kernel_has_killed_fails_its_job_and_the_pool_goes_on(
    real_client: ArqRedis, tmp_path: Path
) -> None:
    queue, where = Queue(real_client), str(tmp_path / "notes")

    async def run(task: str) -> Job:
        return await ended(queue, await queue.submit(task, {"where": where}, max_attempts=2))

    modest = await run("process")
    assert modest.status is JobStatus.SUCCEEDED
    for _ in range(2):
        job = await run("hog-process")
        error = error_of(job)
        assert (job.status, error["code"]) == (JobStatus.FAILED, "task-crashed")
        assert error["detail"].startswith(KILLED)
    again = await run("hog-again")
    assert (again.status, again.attempt) == (JobStatus.SUCCEEDED, 2)
    assert [error.model_dump()["detail"].startswith(KILLED) for error in again.errors] == [True]
    assert (await run("process")).status is JobStatus.SUCCEEDED
