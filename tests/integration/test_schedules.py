"""Schedules of clients: each tick once in the fleet, whoever dies; what is changed, paused and deleted; no burst."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from arq.connections import ArqRedis

from jobstream import keys, task
from jobstream.catalogue import announcement, read_catalogue
from jobstream.cron import Cron
from jobstream.embedded import ChildRedis
from jobstream.errors import InvalidInput, PreconditionFailed, ScheduleConflict, ScheduleNotFound
from jobstream.job import JobStatus
from jobstream.queue import Queue
from jobstream.redis import RedisSource, UrlSource
from jobstream.schedules import (
    Definition,
    Found,
    ScheduleId,
    delete,
    get_schedule,
    last_run,
    list_schedules,
    next_ticks,
    note_run,
    of_task,
    pause,
    put_schedule,
    queue_next,
    resume,
    take_due,
    view,
)
from jobstream_workers.scheduler import Scheduler
from tests.acceptance.guarded import announce
from tests.integration.test_cron import Ends, Schedules, waiting
from tests.integration.test_cron import clock as clock
from tests.integration.test_cron import schedules as schedules
from tests.working import Settings, working

NIGHTLY = ScheduleId("acme", "nightly")
EACH_SECOND = "JOBSTREAM_TEST_EACH_SECOND"


@task(ttl=0.3)
async def chime(text: str = "") -> str:
    """Is told by a schedule when to run; its record is gone before the next tick."""
    return text


def each_second(cron: Cron, after: datetime) -> datetime:
    """In the place of `Cron.next_tick`: tests cannot wait for minutes."""
    return datetime.fromtimestamp(int(after.timestamp()) + 1, UTC)


if os.environ.get(EACH_SECOND):  # this module gives a worker process its task
    Cron.next_tick = each_second  # type: ignore[assignment, method-assign]


def plan(cron: str = "0 0 1 1 *", **more: object) -> Definition:
    return Definition(task="chime", cron=cron, **more)  # type: ignore[arg-type]


async def put(client: ArqRedis, definition: Definition, schedule: ScheduleId = NIGHTLY) -> Found:
    found, _ = await put_schedule(client, schedule, definition, most=3, words=8)
    return found


@pytest.fixture
async def announced(client: ArqRedis) -> None:
    """A worker has said that it has the task."""
    await announce(client, [chime])


async def test_the_next_tick_waits_as_soon_as_a_schedule_is_made(
    client: ArqRedis, queue: Queue, announced: None
) -> None:
    found = await put(client, plan(input={"text": "ding"}, tags=("bells",), priority=3, timeout=5.0, ttl=60.0))
    await asyncio.gather(*(Scheduler(client, []).look() for _ in range(10)))
    await asyncio.gather(*(queue_next(client, found, now=datetime.now(UTC)) for _ in range(10)))
    [job] = (await queue.list())[0]
    tick = Cron("0 0 1 1 *").next_tick(datetime.now(UTC))
    assert (job.task, job.run_at, job.status, job.owner) == ("chime", tick, JobStatus.SCHEDULED, "acme")
    assert job.tags == ["bells", "schedule:nightly"]
    assert (await queue.get(job.id, owner="acme")).id.endswith(f"-{tick.timestamp():.0f}")


async def test_what_is_waiting_follows_the_definition(client: ArqRedis, queue: Queue, announced: None) -> None:
    old = await put(client, plan())
    [first] = await waiting(queue)
    assert (await put(client, plan())).version == old.version
    assert await waiting(queue) == [first]
    changed = await put(client, plan(input={"text": "dong"}))
    assert changed.version == old.version + 1
    [second] = await waiting(queue)
    assert first == second, "the tick is the same"
    record = await client.hgetall(keys.record(second))  # type: ignore[misc]
    assert b"dong" in record[b"words"]
    await put(client, plan("0 0 2 1 *"))
    [third] = await waiting(queue)
    assert third != second
    job = await queue.get(second)
    assert job.error is not None
    assert (job.status, job.error.detail) == (JobStatus.CANCELLED, "the schedule has changed")
    for stale in (old, changed):  # read by workers before it was changed
        await queue_next(client, stale, now=datetime.now(UTC))
    assert await waiting(queue) == [third]


async def test_a_paused_schedule_has_no_tick_and_a_resumed_one_has_the_next(
    client: ArqRedis, queue: Queue, announced: None
) -> None:
    found = await put(client, plan())
    ticks = await waiting(queue)
    for _ in range(2):
        await pause(client, found)
        await queue_next(client, found, now=datetime.now(UTC))
        await Scheduler(client, []).look()
        assert await waiting(queue) == []
        assert (await get_schedule(client, NIGHTLY)).paused
        assert (await put(client, plan())).paused, "a definition that is put again does not resume it"
        await resume(client, found)
        assert await waiting(queue) == ticks
    job = await queue.get(ticks[0])
    assert (job.version, job.error, job.finished_at) == (1, None, None)


async def test_a_deleted_schedule_takes_only_its_waiting_tick_with_it(
    client: ArqRedis, queue: Queue, announced: None
) -> None:
    found = await put(client, plan())
    [tick] = await waiting(queue)
    ran = await queue.submit("chime", {}, options=found.definition.options("nightly"), owner="acme")
    with pytest.raises(PreconditionFailed):
        await delete(client, NIGHTLY, if_match="7")
    await delete(client, NIGHTLY, if_match="1")
    await queue_next(client, found, now=datetime.now(UTC))
    await Scheduler(client, []).look()
    assert (await queue.get(tick)).status is JobStatus.CANCELLED
    assert (await queue.get(ran.id)).status is JobStatus.QUEUED
    for gone in (get_schedule(client, NIGHTLY), delete(client, NIGHTLY), pause(client, found)):
        with pytest.raises(ScheduleNotFound):
            await gone
    left = {key async for key in client.scan_iter(keys.SCHEDULE + "*")}
    left |= {key async for key in client.scan_iter(keys.SCHEDULES + "*")}
    assert left == set()
    await put(client, plan())
    assert len(await waiting(queue)) == 1
    assert await waiting(queue) != [tick], "another schedule of the same name has jobs of its own"


async def test_who_takes_a_schedule_and_dies_holds_it_up_no_longer_than_its_lease(
    client: ArqRedis, queue: Queue, announced: None
) -> None:
    found = await put(client, plan())
    [tick] = await waiting(queue)
    await queue.purge(tick)
    await client.hdel(keys.schedule(NIGHTLY.stored), "tick", "id")  # type: ignore[misc]
    await client.zadd(keys.SCHEDULES_DUE, {NIGHTLY.stored: 0})
    taken, _ = await take_due(client, lease=0.3)  # and is killed
    assert [each.id for each in taken] == [found.id]
    others, until = await take_due(client, lease=0.3)
    assert (others, await waiting(queue)) == ([], [])
    assert until is not None
    assert 0 <= until <= 0.3
    async with asyncio.timeout(10):
        while not await waiting(queue):
            pause = await Scheduler(client, []).look()
            await asyncio.sleep(min(0.1, pause))


async def test_a_tick_that_has_not_begun_holds_up_the_next_so_that_there_is_no_burst(
    real_client: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as no worker has the task; others go on queueing ticks."""
    monkeypatch.setattr(Cron, "next_tick", each_second)
    client, queue = real_client, Queue(real_client)
    await announce(client, [chime])
    await put(client, plan())
    [first] = await waiting(queue)
    scheduler, due = Scheduler(client, []), int(first.rpartition("-")[2])
    while (await client.time())[0] < due + 3:
        pause = await scheduler.look()
        await asyncio.sleep(min(0.2, pause))
    assert await waiting(queue) == [first]
    await queue.purge(first)
    async with asyncio.timeout(10):
        while not await waiting(queue):
            pause = await scheduler.look()
            await asyncio.sleep(min(0.2, pause))
    [second] = await waiting(queue)
    assert int(second.rpartition("-")[2]) > due + 2, "what was missed is not made up for"


async def test_a_task_that_nobody_announces_gets_no_ticks_until_somebody_does(client: ArqRedis, queue: Queue) -> None:
    found = await put(client, plan())
    assert await waiting(queue) == []
    now = datetime.now(UTC)
    shown = view(found, now=now, statuses={}, alive=frozenset(), known=lambda task: False)
    assert (shown.state, shown.next_at) == ("task-missing", None)
    [(_, due)] = await client.zrange(keys.SCHEDULES_DUE, 0, -1, withscores=True)
    assert due / 1000 > now.timestamp() + 30, "it is looked at again, but not all the time"
    await announce(client, [chime])
    await client.zadd(keys.SCHEDULES_DUE, {NIGHTLY.stored: 0})
    await Scheduler(client, []).look()
    assert len(await waiting(queue)) == 1
    shown = view(found, now=now, statuses={}, alive=frozenset({"chime"}), known=lambda task: True)
    assert (shown.state, shown.next_at) == ("active", Cron("0 0 1 1 *").next_tick(now))


async def test_one_that_cannot_be_read_holds_up_no_other(client: ArqRedis, queue: Queue, announced: None) -> None:
    await put(client, plan())
    [tick] = await waiting(queue)
    await queue.purge(tick)
    marker = keys.schedule(NIGHTLY.stored)
    await client.hdel(marker, "tick", "id")  # type: ignore[misc]
    for number, text in enumerate([b"{", b'{"task":"chime","cron":"61 * * * *"}', b'{"task":"chime","timezone":3}']):
        broken = f"acme broken{number}"
        await client.hset(keys.schedule(broken), mapping={"definition": text, "version": 1, "uid": "x"})  # type: ignore[misc]
        await client.zadd(keys.SCHEDULES_DUE, {broken: number})
    await client.zadd(keys.SCHEDULES_DUE, {NIGHTLY.stored: 9})
    await Scheduler(client, []).look()
    assert len(await waiting(queue)) == 1
    assert (await take_due(client))[0] == []


async def test_a_tenant_has_as_many_as_it_may_and_sees_its_own(client: ArqRedis, announced: None) -> None:
    for name in ("c", "a", "b"):
        await put(client, plan(), ScheduleId("acme", name))
    await put(client, plan("0 0 2 1 *"), ScheduleId("acme", "a"))
    for owner in ("acm", "acme2", None):
        await put(client, plan(), ScheduleId(owner, "z"))
    with pytest.raises(ScheduleConflict):
        await put(client, plan(), NIGHTLY)
    for owner, names in {
        "acme": ["a", "b", "c"],
        "acm": ["z"],
        "": ["z"],
        None: ["z", "z", "a", "b", "c", "z"],
    }.items():
        found, behind = await list_schedules(client, {}, owner=owner, limit=10)
        assert ([each.id.name for each in found], behind) == (names, None)
    seen: list[ScheduleId] = []
    after = ""
    while True:
        found, behind = await list_schedules(client, {}, owner=None, limit=2, after=after)
        seen += [each.id for each in found]
        if behind is None:
            break
        after = behind
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.parametrize(
    ("definition", "pointer"),
    [(plan("61 * * * *"), "/cron"), (plan("* * * *"), "/cron"), (plan(timezone="Europe/Atlantis"), "/timezone")],
)
async def test_what_is_no_cron_makes_no_schedule(
    client: ArqRedis, announced: None, definition: Definition, pointer: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await put(client, definition)
    assert [error["pointer"] for error in caught.value.errors] == [pointer]
    with pytest.raises(ScheduleNotFound):
        await get_schedule(client, NIGHTLY)


async def test_a_tasks_own_schedule_is_one_too_and_can_be_paused(
    client: ArqRedis, queue: Queue, schedules: Schedules
) -> None:
    scheduler = await schedules.look(cron := Cron("0 0 1 1 *"))
    ticks = await waiting(queue)
    own = scheduler._tasks[0]
    await announce(client, [own])
    _, catalogue = await read_catalogue(client)
    [found], _ = await list_schedules(client, catalogue, owner=None, limit=10)
    assert found.id == of_task("ticking")
    assert (found.definition.cron, found.definition.task) == (cron.expression, "ticking")
    await pause(client, found)
    assert await waiting(queue) == []
    for looks in (scheduler.look(), schedules.look(cron), schedules.look(Cron("0 0 2 1 *"))):
        await looks
        assert await waiting(queue) == [], "paused, also for a worker that came later"
    assert await client.ttl(keys.schedule(found.id.stored)) > 29 * 86_400
    await resume(client, found)
    await schedules.look(cron)
    assert await waiting(queue) == ticks
    with pytest.raises(ScheduleConflict):
        await delete(client, found.id)
    assert announcement(own).cron == cron.expression


async def test_the_last_run_is_known(client: ArqRedis, queue: Queue, announced: None) -> None:
    found = await put(client, plan())
    assert last_run(found, now=datetime.now(UTC)) is None
    asked = (datetime.now(UTC) - timedelta(seconds=1)).replace(microsecond=0)
    await note_run(client, found, job_id="j1", at=asked)
    found = await get_schedule(client, NIGHTLY)
    assert last_run(found, now=datetime.now(UTC)) == ("j1", asked)
    [tick] = next_ticks(found, now=datetime.now(UTC), count=1)
    [job] = await waiting(queue)
    assert last_run(found, now=tick + timedelta(seconds=1)) == (job, tick)


@contextlib.asynccontextmanager
async def worker_processes(
    redis: ChildRedis, files: Path, count: int
) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Real ones, to which every cron is one of seconds."""
    environment = os.environ | {
        "JOBSTREAM_REDIS_URL": redis.url,
        "JOBSTREAM_TASKS": __name__,
        "JOBSTREAM_FILES_DIR": str(files),
        "JOBSTREAM_SHUTDOWN_SECONDS": "0",
        EACH_SECOND: "1",
    }
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "jobstream_workers.main", env=environment, stderr=asyncio.subprocess.DEVNULL
        )
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def seconds(ends: Ends) -> list[int]:
    return sorted(int(job_id.rpartition("-")[2]) for job_id, _ in ends.heard)


async def test_a_worker_that_is_killed_takes_no_tick_with_it(
    real_source: UrlSource, real_client: ArqRedis, redis_server: ChildRedis, tmp_path: Path
) -> None:
    await announce(real_client, [chime])
    await put(real_client, plan(), schedule := ScheduleId(None, "each-second"))
    # To be a matter of seconds from now on, not of years.
    await real_client.hdel(keys.schedule(schedule.stored), "tick", "id")  # type: ignore[misc]
    await real_client.zadd(keys.SCHEDULES_DUE, {schedule.stored: 0})
    async with Ends(real_client) as ends, worker_processes(redis_server, tmp_path, 2) as processes:
        await ends.more(2)
        processes[0].kill()
        await ends.more(3)
    assert len(set(seconds(ends))) == len(ends.heard), "a tick ran twice"


async def test_a_worker_runs_what_a_schedule_says(
    source: RedisSource, client: ArqRedis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cron, "next_tick", each_second)
    async with working(source, settings(), tasks={"chime": chime}), Ends(client) as ends:
        await put(client, plan(input={"text": "ding"}))
        await ends.more(2)
        found = await get_schedule(client, NIGHTLY)
        last = last_run(found, now=datetime.now(UTC))
        assert last is not None
        assert last[0] in {job_id for job_id, _ in ends.heard}
