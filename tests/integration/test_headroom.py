"""Headroom: a worker's last slots are kept for tenants that have less than their share of it."""

from __future__ import annotations

from collections import Counter

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis

from jobstream import keys
from jobstream.limits import TenantLimits, set_limits
from jobstream.queue import Queue, Submission, SubmitOptions
from jobstream.redis import UrlSource
from jobstream_workers.claim import ClaimedJob, Room, claim
from tests.integration.test_turns import backlog
from tests.working import Settings, event_of, working

SLOTS, KEPT = 10, 2


class Slots:
    """A worker's slots, by hand: what it claims runs until `end`."""

    def __init__(self, client: Redis, *, slots: int = SLOTS, kept: int = KEPT, queue: str = "default") -> None:
        self._client, self._slots, self._kept, self._queue = client, slots, kept, queue
        self._running: list[ClaimedJob] = []

    @property
    def owners(self) -> Counter[str]:
        """How many jobs of whom run."""
        return Counter(job.owner or "" for job in self._running)

    async def fill(self) -> Counter[str]:
        """Claim for all free slots, and again while there is something to be had."""
        while free := self._slots - len(self._running):
            tenants = {owner: count for owner, count in self.owners.items() if owner}
            room = Room(free, self._kept, self._slots, self._queue, tenants) if self._kept else None
            jobs, _ = await claim(
                self._client, queue=self._queue, worker_id="w", slots=free, lease=60, room=room, limits={"limited": 1}
            )
            if not jobs:
                break
            self._running += jobs
        return self.owners

    def end(self, owner: str, count: int = 1) -> None:
        """So many of its jobs have ended, as far as slots go."""
        for _ in range(count):
            self._running.remove(next(job for job in self._running if job.owner == owner))


async def seen(queue: Queue, client: Redis, *owners: str) -> None:
    """These owners have had a job each, and have no more."""
    for owner in owners:
        await queue.submit("words", {}, owner=owner)
    await Slots(client, slots=len(owners), kept=1).fill()


@pytest.fixture
def queue(client: ArqRedis) -> Queue:
    return Queue(client)


async def test_alone_a_tenant_gets_all_slots(queue: Queue, client: ArqRedis) -> None:
    await backlog(queue, "a", 30)
    assert await Slots(client).fill() == {"a": SLOTS}


async def test_jobs_of_nobody_get_all_slots_and_nothing_is_remembered(queue: Queue, client: ArqRedis) -> None:
    await queue.submit_many([Submission("words", {}) for _ in range(30)])
    assert await Slots(client).fill() == {"": SLOTS}
    assert await client.keys(keys.ACTIVE + "*") == []


async def test_beside_another_one_the_last_slots_stay_free(queue: Queue, client: ArqRedis) -> None:
    await seen(queue, client, "b")
    await backlog(queue, "a", 30)
    slots = Slots(client)
    assert await slots.fill() == {"a": SLOTS - KEPT}
    await backlog(queue, "b", 1)
    assert await slots.fill() == {"a": SLOTS - KEPT, "b": 1}
    slots.end("a")
    assert await slots.fill() == {"a": SLOTS - KEPT - 1, "b": 1}  # the next one of B has a slot, too


async def test_what_is_kept_is_for_whoever_has_less_than_its_share(queue: Queue, client: ArqRedis) -> None:
    await seen(queue, client, "b", "c")
    await backlog(queue, "a", 30)
    slots = Slots(client)
    await slots.fill()
    await backlog(queue, "b", 30)
    assert await slots.fill() == {"a": 8, "b": 2}
    slots.end("a", 5)
    # A third of ten is three: above that both wait for what is not kept, and take turns.
    assert await slots.fill() == {"a": 5, "b": 3}
    await backlog(queue, "c", 1)
    assert await slots.fill() == {"a": 5, "b": 3, "c": 1}


async def test_a_share_is_by_weight(queue: Queue, client: ArqRedis) -> None:
    await set_limits(client, "a", TenantLimits(weight=9))
    await seen(queue, client, "b")
    await backlog(queue, "a", 30)
    assert await Slots(client).fill() == {"a": 9}


async def test_without_headroom_all_slots_are_dealt(queue: Queue, client: ArqRedis) -> None:
    await seen(queue, client, "b")
    await backlog(queue, "a", 30)
    assert await Slots(client, kept=0).fill() == {"a": SLOTS}


async def test_a_worker_of_one_slot_runs_everybodys_jobs(queue: Queue, client: ArqRedis) -> None:
    await seen(queue, client, "b")
    await backlog(queue, "a", 3)
    assert await Slots(client, slots=1, kept=1).fill() == {"a": 1}


async def test_a_tenant_that_was_not_seen_for_long_is_forgotten(queue: Queue, client: ArqRedis) -> None:
    await seen(queue, client, "b")
    [active] = await client.keys(keys.ACTIVE + "*")
    assert 0 < await client.ttl(active) <= 86_400
    seconds, _ = await client.time()
    await client.zadd(active, {"b": (seconds - 601) * 1000})
    await backlog(queue, "a", 30)
    assert await Slots(client).fill() == {"a": SLOTS}
    assert await client.zrange(active, 0, -1) == [b"a"]


async def test_a_tenant_whose_job_runs_for_long_is_not_forgotten(queue: Queue, client: ArqRedis) -> None:
    slots = Slots(client)
    await backlog(queue, "b", 1)
    await slots.fill()
    [active] = await client.keys(keys.ACTIVE + "*")
    await client.zadd(active, {"b": 0})
    await backlog(queue, "a", 30)
    assert await slots.fill() == {"a": 7, "b": 1}


async def test_tenants_of_other_workers_do_not_count(queue: Queue, client: ArqRedis) -> None:
    await seen(queue, client, "b")
    options = SubmitOptions(queue="gpu")
    await queue.submit_many([Submission("words", {}, options, owner="a") for _ in range(30)])
    assert await Slots(client, queue="gpu").fill() == {"a": SLOTS}


async def test_with_more_tenants_than_slots_nothing_is_held_up(queue: Queue, client: ArqRedis) -> None:
    owners = [f"t{number}" for number in range(150)]
    await queue.submit_many([Submission("words", {}, owner=owner) for owner in owners for _ in range(2)])
    slots, done = Slots(client), Counter[str]()
    while running := await slots.fill():
        assert sum(running.values()) == SLOTS
        done += running
        for owner, count in running.items():
            slots.end(owner, count)
    assert done == dict.fromkeys(owners, 2)


async def test_what_a_task_may_run_counts_besides(queue: Queue, client: ArqRedis) -> None:
    await seen(queue, client, "b")
    await backlog(queue, "a", 30)
    slots = Slots(client)
    await slots.fill()
    await queue.submit("limited", {}, owner="b", job_id="b1")
    await queue.submit("limited", {}, owner="b", job_id="b2")
    assert await slots.fill() == {"a": 8, "b": 1}


async def test_a_job_starts_behind_ten_thousand_while_none_of_them_ends(
    real_client: ArqRedis, real_source: UrlSource, settings: Settings
) -> None:
    client, queue = real_client, Queue(real_client)
    async with working(real_source, settings(max_jobs=SLOTS)):
        await queue.submit("add", {"a": 1}, owner="b", job_id="before")
        await event_of(client, "before", "done")
        await backlog(queue, "a", 10_000, task="waits")
        for number in range(SLOTS - 1):
            await event_of(client, f"a{number:05}", "log")
        await queue.submit("add", {"a": 1}, owner="b", job_id="b")
        assert (await event_of(client, "b", "done")).data == b"succeeded"
        running = await client.zrange(keys.index(status="running"), 0, -1)
        assert sorted(running) == [f"a{number:05}".encode() for number in range(SLOTS - 1)]
