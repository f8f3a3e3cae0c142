"""Redis behind Sentinels: they choose another primary, and API, worker and streams find it by themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx2
import pytest
import redis

from jobstream.embedded import ServerProgram
from jobstream.errors import ConfigurationError
from jobstream.guard import GuardedProcess, start_guarded
from jobstream.job import Job
from jobstream.queue import Queue
from jobstream.redis import UrlSource, is_unavailable
from tests.acceptance.service import running
from tests.ports import free_port
from tests.working import ended, quick_settings, working

PATIENCE = 60.0
PASSWORD = "se:cr/et"


class Watched:
    """A primary with a replica, both with a password, and three Sentinels that watch them."""

    def __init__(self, program: ServerProgram, directory: Path, stack: ExitStack) -> None:
        self._program, self._stack = program, stack
        self.servers: dict[int, GuardedProcess] = {}
        self._start_server(directory, None)
        (primary,) = self.servers
        self._start_server(directory, primary)
        self.sentinels = [self._start_sentinel(directory, primary) for _ in range(3)]
        nodes = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        self.url = f"redis+sentinel://:{PASSWORD.replace('/', '%2F').replace(':', '%3A')}@{nodes}/main/0"
        until(lambda: all(self._knows_all(port) for port in self.sentinels), "the Sentinels do not know each other")

    def primary(self) -> int:
        """The primary's port, as the first Sentinel has it."""
        with closing(redis.Redis(port=self.sentinels[0])) as client:
            return int(client.sentinel_get_master_addr_by_name("main")[1])  # type: ignore[no-untyped-call]

    def _knows_all(self, port: int) -> bool:
        with closing(redis.Redis(port=port, decode_responses=True)) as client:
            try:
                about = client.sentinel_masters()["main"]  # type: ignore[no-untyped-call]
            except redis.ConnectionError:
                return False
        return (about["num-other-sentinels"], about["num-slaves"], about["flags"]) == (2, 1, "master")

    def _start_server(self, directory: Path, replica_of: int | None) -> None:
        port = free_port()
        options = ["--port", str(port), "--save", "", "--requirepass", PASSWORD, "--masterauth", PASSWORD]
        options += ["--repl-diskless-sync-delay", "0", "--dir", str(directory), "--dbfilename", f"{port}.rdb"]
        if replica_of is not None:
            options += ["--replicaof", "127.0.0.1", str(replica_of)]
        self.servers[port] = self._start(directory, *options)

    def _start_sentinel(self, directory: Path, primary: int) -> int:
        port = free_port()
        file = directory / f"{port}.conf"
        file.write_text(
            f"port {port}\ndir {directory}\nsentinel monitor main 127.0.0.1 {primary} 2\n"
            f"sentinel auth-pass main {PASSWORD}\nsentinel down-after-milliseconds main 1000\n"
            "sentinel failover-timeout main 5000\n"
        )
        self._start(directory, str(file), "--sentinel")
        return port

    def _start(self, directory: Path, *arguments: str) -> GuardedProcess:
        with (directory / "log").open("ab") as log:
            process = start_guarded([str(self._program.path), *arguments], env=dict(os.environ), stdout=log, stderr=log)
        self._stack.callback(process.stop, 10)
        return process


def until(condition: Callable[[], bool], otherwise: str) -> None:
    """For what only the outside of a process shows."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


@pytest.fixture
def watched(server_program: ServerProgram, tmp_path: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(server_program, tmp_path, stack)


async def taken(queue: Queue) -> Job | None:
    """A job that was submitted; None while Redis is away."""
    try:
        return await queue.submit("add", {"a": 2})
    except Exception as error:
        if not is_unavailable(error):
            raise
        await asyncio.sleep(0.1)
        return None


async def test_a_worker_goes_on_behind_the_new_primary(watched: Watched, tmp_path: Path) -> None:
    source = UrlSource(watched.url, timeout=1)
    client = source.client()
    queue = Queue(client)
    before = watched.primary()
    try:
        async with working(source, quick_settings(tmp_path)):
            assert (await ended(queue, await queue.submit("add", {"a": 1}))).result == {"total": 2}
            assert await client.wait(1, 5_000) == 1
            os.kill(watched.servers[before].pid, signal.SIGKILL)
            while (job := await taken(queue)) is None:
                pass
            assert (await ended(queue, job)).result == {"total": 3}
            with source.sync_client() as blocking:
                assert blocking.ping()
    finally:
        await client.aclose()
    assert watched.primary() != before


async def test_a_service_starts_behind_sentinels(watched: Watched, tmp_path: Path) -> None:
    with running(tmp_path, redis_url=watched.url) as service:
        answer = httpx2.post(f"{service.url}/echo", json={}, headers={"Prefer": "wait=20"}, timeout=30)
        assert answer.status_code == 200, answer.text  # it was submitted, run, and heard of
        assert PASSWORD not in service.log.read_text()


@pytest.mark.parametrize(
    "url",
    ["redis+sentinel://h:1", "redis+sentinel:///main", "redis+sentinel://u:pw@h:x/main", "redis+sentinel://h/m?x=1"],
)
def test_what_cannot_be_understood_is_said_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="with Sentinels it is redis") as caught:
        UrlSource(url)
    assert "pw" not in str(caught.value)


def test_the_whole_of_a_url_counts() -> None:
    source = UrlSource("rediss+sentinel://u:p%40@a,[::1]:7/m%2Fx/3?sentinel_password=s&ssl_ca_certs=/ca.pem")
    found = source._sentinels
    assert found is not None
    assert found.nodes == (("a", 26379), ("::1", 7))
    assert (found.primary, found.database, found.username, found.password) == ("m/x", 3, "u", "p@")
    assert (found.sentinel_username, found.sentinel_password) == (None, "s")
    assert found.tls == {"ssl": True, "ssl_check_hostname": True, "ssl_ca_certs": "/ca.pem"}
    assert "p%40" not in source.describe()
