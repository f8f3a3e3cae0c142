"""A replica takes over: what it has is kept and ends once. Replication is asynchronous: what it has not, is lost."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from jobstream import keys
from jobstream.embedded import ServerProgram
from tests.chaos.fleet import until
from tests.chaos.ledger import Ledger
from tests.chaos.load import Kind
from tests.chaos.mortal_redis import MortalRedis
from tests.chaos.proxy import Proxy
from tests.chaos.rig import Rig
from tests.chaos.watchers import FORMATS, SocketWatcher, Watcher, faults_of_one


class Pair:
    """A primary, its replica, the address of whichever is the primary, and a service that knows only that address."""

    def __init__(self, rig: Rig, replica: MortalRedis, address: Proxy, replication: Proxy) -> None:
        self.rig = rig
        self.primary, self.replica = rig.redis, replica
        self.address, self.replication = address, replication

    def replicated(self) -> None:
        """Return when the replica has all that was answered until now."""
        with self.primary.client() as client:
            client.publish("mark", "")  # WAIT waits for what its own connection has written
            assert client.wait(1, 10_000) == 1

    def promote(self) -> None:
        """Make the replica the primary, also for those who connect from now on."""
        with self.replica.client() as client:
            client.replicaof("NO", "ONE")
        self._change()

    async def hand_over(self) -> None:
        """Change the roles, in agreement: the primary holds writes back until its replica has everything."""
        with self.primary.client() as client:
            client.execute_command("FAILOVER")
        with self.replica.client() as client:

            async def promoted() -> bool:
                return bool(client.info("replication")["role"] == "master")

            await until(promoted, "the replica does not take over")
        self._change()

    def _change(self) -> None:
        self.address.target = self.replica.port
        self.primary = self.rig.redis = self.replica


@pytest.fixture
async def pair(server_program: ServerProgram, tmp_path: Path) -> AsyncIterator[Pair]:
    (tmp_path / "replica").mkdir()
    replica = MortalRedis(server_program, tmp_path / "replica")
    async with AsyncExitStack() as stack:
        address, replication = Proxy(0), Proxy(0)
        rig = Rig(server_program, tmp_path, redis_url=f"redis://127.0.0.1:{address.port}")
        for server in (rig.redis, replica):
            stack.push_async_callback(asyncio.to_thread, server.stop)
        address.target = replication.target = rig.redis.port
        await stack.enter_async_context(address)
        await stack.enter_async_context(replication)
        stack.push_async_callback(asyncio.to_thread, rig.close)
        await rig.start(workers=2)
        await asyncio.to_thread(replica.start)
        with replica.client() as client:
            client.replicaof("127.0.0.1", str(replication.port))

            async def linked() -> bool:
                return bool(client.info("replication")["master_link_status"] == "up")

            await until(linked, "the replica does not find its primary")
        yield Pair(rig, replica, address, replication)


async def test_when_the_primary_is_lost_what_was_replicated_ends_once_and_the_rest_is_gone(pair: Pair) -> None:
    """The primary dies after its replica has lost touch; jobs run on all the time."""
    rig, lost = pair.rig, pair.primary
    async with rig.load() as load, httpx2.AsyncClient(base_url=rig.fleet.url, timeout=20) as http:
        kept = [await load.submit(Kind("talking", data={"seconds": 6.0})) for _ in range(4)]
        kept += [await load.submit(Kind("coroutine", params={"delay": "4"})) for _ in range(10)]

        async def talking() -> bool:
            return len(rig.runs()) == 4

        await until(talking, "the jobs do not begin")
        await asyncio.to_thread(pair.replicated)
        pair.replication.target = 1  # nobody
        await pair.replication.cut()
        gone = [await load.submit(Kind("coroutine", params={"delay": "60"})) for _ in range(5)]
        await asyncio.to_thread(lost.signal, signal.SIGKILL)
        await asyncio.to_thread(pair.promote)
        kept += [await load.submit(Kind("coroutine")) for _ in range(5)]

        assert [(await http.get(f"/jobs/{job_id}")).status_code for job_id in gone] == [404] * 5
        accounts = await rig.balanced({job_id: load.accepted[job_id] for job_id in kept})
        assert {account.status for account in accounts.values()} == {"succeeded"}
        assert rig.runs() == dict.fromkeys(kept, 1)
        assert all(process.alive for process in (*rig.workers, rig.api))


async def test_streams_that_are_open_end_with_the_log_of_the_primary_that_took_over(
    pair: Pair, chaos_seed: int
) -> None:
    """They were told what the replica never had: a snapshot under another epoch, and the log there, replace it."""
    rig, lost, chance = pair.rig, pair.primary, random.Random(chaos_seed)

    def epoch() -> str:
        with pair.primary.client() as client:
            return str(client.get(keys.EPOCH), "ascii").partition(" ")[0]

    async def told_more(watchers: list[Watcher], events: int) -> None:
        wanted = [len(watcher.told) + events for watcher in watchers]

        async def told() -> bool:
            return all(len(watcher.told) >= number for watcher, number in zip(watchers, wanted, strict=True))

        await until(told, "the watchers are told nothing")

    async with rig.load() as load, asyncio.timeout(90), asyncio.TaskGroup() as following:
        watched: dict[str, list[Watcher]] = {}
        for _ in range(4):
            job_id = await load.submit(Kind("speaking", data={"steps": 80}))
            watched[job_id] = [Watcher(rig.fleet.port, f"/jobs/{job_id}/events", way, chance) for way in FORMATS]
            watched[job_id].append(SocketWatcher(rig.fleet.port, f"/jobs/{job_id}/ws", FORMATS[1], chance))
        watchers = [watcher for some in watched.values() for watcher in some]
        for watcher in watchers:
            following.create_task(watcher.follow())
        await told_more(watchers, 5)
        await asyncio.to_thread(pair.replicated)
        pair.replication.target = 1  # nobody
        await pair.replication.cut()
        await told_more(watchers, 5)
        before = epoch()
        await asyncio.to_thread(lost.signal, signal.SIGKILL)
        await asyncio.to_thread(pair.promote)

    assert epoch() != before
    with pair.primary.client() as client:
        for job_id, some in watched.items():
            log = Ledger(client, rig.notes).account(job_id).entries
            for watcher in some:
                fresh = max(at for at, each in enumerate(watcher.told) if each.event == "snapshot")
                assert fresh > 0
                assert not list(faults_of_one(watcher.told[fresh:], log, epoch())), watcher.path
                earlier = {each.id.partition("-")[0] for each in watcher.told[:fresh] if each.id is not None}
                assert earlier == {before}, watcher.path


async def test_when_the_primary_is_changed_on_purpose_nothing_is_lost(pair: Pair, chaos_seed: int) -> None:
    """The old primary lives on as a replica and keeps its connections, on which it refuses every write."""
    rig = pair.rig
    async with rig.load() as load:
        for _ in range(3):
            await load.submit(Kind("talking", data={"seconds": 6.0}))
        async with load.flowing(random.Random(chaos_seed)):
            await asyncio.sleep(1)
            await pair.hand_over()
            await asyncio.sleep(2)
        accounts = await rig.balanced(load.accepted)
        runs = rig.runs()
        for job_id, kind in load.accepted.items():
            assert accounts[job_id].status is load.end_of(job_id), str(accounts[job_id])
            assert runs[job_id] <= kind.runs, str(accounts[job_id])
        assert all(process.alive for process in (*rig.workers, rig.api))
