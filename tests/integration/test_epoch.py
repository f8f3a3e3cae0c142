"""The epoch of event ids changes when Redis's history may have forked, and only then."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from jobstream import keys
from jobstream.embedded import ServerProgram
from jobstream.events import read_epoch
from jobstream.fake import FakeSource
from jobstream.redis import UrlSource
from tests.chaos.mortal_redis import MortalRedis


@pytest.fixture
def servers(server_program: ServerProgram, tmp_path: Path) -> Iterator[tuple[MortalRedis, MortalRedis]]:
    """A server on its append-only file, and another one that is not started."""
    with ExitStack() as stack:
        made = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            server = MortalRedis(server_program, tmp_path / name)
            stack.callback(server.stop)
            made.append(server)
        made[0].start()
        yield made[0], made[1]


@asynccontextmanager
async def client_of(server: MortalRedis) -> AsyncIterator[Redis]:
    client = UrlSource(server.url, kind="external").client()
    try:
        yield client
    finally:
        await client.aclose()


async def epoch_of(server: MortalRedis) -> str:
    async with client_of(server) as client:
        return await read_epoch(client)


async def test_all_who_ask_get_the_same_name(servers: tuple[MortalRedis, MortalRedis]) -> None:
    names = await asyncio.gather(*[epoch_of(servers[0]) for _ in range(10)])
    assert len(set(names)) == 1


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_on_the_append_only_file_changes_nothing(
    servers: tuple[MortalRedis, MortalRedis], by: signal.Signals
) -> None:
    server, _ = servers
    before = await epoch_of(server)
    for _ in range(2):
        await asyncio.to_thread(server.signal, by)
        await asyncio.to_thread(server.start)
        assert await epoch_of(server) == before


async def test_a_promoted_replica_has_another_name_and_keeps_it(servers: tuple[MortalRedis, MortalRedis]) -> None:
    primary, replica = servers
    before = await epoch_of(primary)
    await asyncio.to_thread(replica.start)
    with replica.client() as blocking:
        blocking.replicaof("127.0.0.1", str(primary.port))
        async with asyncio.timeout(20):
            while blocking.info("replication")["master_link_status"] != "up":  # noqa: ASYNC110  # the server's own pace
                await asyncio.sleep(0.01)
        with pytest.raises(ReadOnlyError):
            await epoch_of(replica)
        blocking.replicaof("NO", "ONE")
    after = await asyncio.gather(*[epoch_of(replica) for _ in range(5)])
    assert len(set(after)) == 1
    assert after[0] != before
    assert await epoch_of(replica) == after[0]
    assert await epoch_of(primary) == before


async def test_an_empty_server_has_another_name(servers: tuple[MortalRedis, MortalRedis]) -> None:
    server, _ = servers
    before = await epoch_of(server)
    with server.client() as client:
        client.flushall()
    assert await epoch_of(server) != before


async def test_a_server_restored_from_a_dump_has_another_name(
    servers: tuple[MortalRedis, MortalRedis], tmp_path: Path
) -> None:
    server, _ = servers
    before = await epoch_of(server)
    with server.client() as client:
        client.config_set("appendonly", "no")
        client.save()
        client.set("lost", "by the restore")
    await asyncio.to_thread(server.signal, signal.SIGKILL)
    shutil.rmtree(tmp_path / "a" / "appendonlydir")
    await asyncio.to_thread(server.start, appendonly="no")
    with server.client() as client:
        assert client.get("lost") is None
        assert client.exists(keys.EPOCH)
    assert await epoch_of(server) != before


async def test_history_that_was_seen_to_go_back_gets_one_new_name(servers: tuple[MortalRedis, MortalRedis]) -> None:
    server, _ = servers
    before = await epoch_of(server)
    async with client_of(server) as client:
        after = await asyncio.gather(*[read_epoch(client, other_than=before) for _ in range(5)])
        assert len(set(after)) == 1
        assert after[0] != before
        assert await read_epoch(client) == after[0]
        assert await read_epoch(client, other_than=before) == after[0]


async def test_a_name_of_an_earlier_release_stays() -> None:
    client = FakeSource().client()
    await client.set(keys.EPOCH, "0123abcd")
    assert await read_epoch(client) == "0123abcd"
    await client.aclose()
