"""Redis as a child process: its data stay, it does not, and what goes wrong is said clearly."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pytest
import redis

from jobstream import embedded
from jobstream.embedded import ChildRedis, ServerProgram, find_server
from jobstream.errors import ConfigurationError

pytestmark = pytest.mark.timeout(30)

LAUNCHER = """
import os, signal, sys
from pathlib import Path
import redis
from jobstream.embedded import ChildRedis, find_server

with ChildRedis(find_server(), Path(sys.argv[1])) as server, redis.Redis.from_url(server.url) as client:
    # Not print: it may be interrupted in the middle of the one below, and does not nest.
    signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted %d\\n" % client.incr("count")))
    print(server.pid, client.incr("count"), flush=True)
    sys.stdin.read()
    print("stopping", client.incr("count"), flush=True)
"""


class Launcher(NamedTuple):
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    server_pid: int


@contextmanager
def launcher(directory: Path) -> Iterator[Launcher]:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            pid, count = process.stdout.readline().split()
            assert count == b"1"
            yield Launcher(process, process.stdout, int(pid))
        finally:
            process.kill()


def count(server: ChildRedis) -> object:
    with redis.Redis.from_url(server.url) as client:
        return client.get("count")


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def pretender(path: Path, script: str) -> ServerProgram:
    return ServerProgram(executable(path, script), "redis", "7.0.0")


def test_data_are_there_at_the_next_start(server_program: ServerProgram, tmp_path: Path) -> None:
    for expected in range(1, 4):
        with ChildRedis(server_program, tmp_path) as server, redis.Redis.from_url(server.url) as client:
            assert client.incr("count") == expected


def test_a_stopped_server_can_be_started_again(server_program: ServerProgram, tmp_path: Path) -> None:
    server = ChildRedis(server_program, tmp_path)
    server.start()
    pid = server.pid
    server.stop()
    server.stop()
    assert server.pid is None
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.url
    with server:
        assert server.pid not in (None, pid)
        assert count(server) is None


@pytest.mark.usefixtures("server_program")
def test_a_launcher_killed_by_kill_9_leaves_no_server_and_loses_no_data(tmp_path: Path) -> None:
    program = find_server()
    assert program is not None
    with launcher(tmp_path) as started:
        started.process.kill()
        started.process.wait()
        # At once: the new server waits until the old one, still busy with its own end, has let go of the files.
        with ChildRedis(program, tmp_path) as server:
            with pytest.raises(ProcessLookupError):
                os.kill(started.server_pid, 0)
            assert server.pid != started.server_pid
            assert count(server) == b"1"


@pytest.mark.usefixtures("server_program")
def test_ctrl_c_does_not_reach_the_server_before_its_launcher_stops_it(tmp_path: Path) -> None:
    with launcher(tmp_path) as started:
        os.killpg(started.process.pid, signal.SIGINT)  # what a terminal does
        assert started.said.readline() == b"interrupted 2\n"
        assert started.process.stdin is not None
        started.process.stdin.close()
        assert started.said.readline() == b"stopping 3\n"
        assert started.process.wait() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(started.server_pid, 0)


def test_a_second_server_on_the_same_directory_is_refused(server_program: ServerProgram, tmp_path: Path) -> None:
    with (
        ChildRedis(server_program, tmp_path) as first,
        pytest.raises(ConfigurationError, match=rf"{tmp_path} is in use by another process \({os.getpid()}\)"),
    ):
        ChildRedis(server_program, tmp_path).start()
    assert first.poll() is None


def test_a_crashed_server_is_noticed_and_starts_again_with_its_data(
    server_program: ServerProgram, tmp_path: Path
) -> None:
    server = ChildRedis(server_program, tmp_path)
    with server, redis.Redis.from_url(server.url) as client:
        assert client.incr("count") == 1
        assert server.poll() is None
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(redis.ConnectionError):
            client.blpop(["nothing"], timeout=10)  # ends when the connection does
    with server:
        assert count(server) == b"1"


def test_only_the_owner_can_reach_the_server(server_program: ServerProgram, tmp_path: Path) -> None:
    directory = tmp_path / "new"
    with ChildRedis(server_program, directory) as server, redis.Redis.from_url(server.url) as client:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.data / "redis.sock").stat().st_mode) == 0o700
        assert client.config_get("port") == {"port": "0"}


def test_the_server_never_drops_keys_and_keeps_a_log_of_writes(server_program: ServerProgram, tmp_path: Path) -> None:
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(512 << 20),
        "maxmemory-policy": "noeviction",
    }
    with ChildRedis(server_program, tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get(*expected) == expected


def test_the_users_locale_cannot_keep_a_server_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    program = pretender(tmp_path / "redis-server", 'echo "locale $LC_ALL"; exit 1')
    with pytest.raises(ConfigurationError, match=r"locale C$"):
        ChildRedis(program, tmp_path / "data").start()


@pytest.mark.parametrize("name", ["a b", "ümlaut", "50%?#&", "'\"quoted\"'"])
def test_the_directory_may_have_any_name(server_program: ServerProgram, tmp_path: Path, name: str) -> None:
    with ChildRedis(server_program, tmp_path / name) as server:
        assert (server.data / "redis.sock").is_socket()
        assert count(server) is None


def test_a_directory_too_deep_for_a_socket_gets_one_elsewhere(server_program: ServerProgram, tmp_path: Path) -> None:
    directory = tmp_path / ("deep" * 10) / ("deep" * 20)
    with ChildRedis(server_program, directory) as server, redis.Redis.from_url(server.url) as client:
        elsewhere = Path(client.connection_pool.connection_kwargs["path"]).parent
        assert client.incr("count") == 1
        assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700
    assert not elsewhere.exists()
    with ChildRedis(server_program, directory) as server:
        assert count(server) == b"1"


def test_each_server_and_major_version_has_its_own_data(tmp_path: Path) -> None:
    program = ServerProgram(Path("/usr/bin/valkey-server"), "valkey", "8.1.3")
    assert ChildRedis(program, tmp_path).data == tmp_path / "valkey-8"
    assert str(tmp_path / "valkey-8") in ChildRedis(program, tmp_path).describe()
    assert "valkey 8.1.3 (/usr/bin/valkey-server)" in ChildRedis(program, tmp_path).describe()


def test_a_server_that_ends_at_its_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    program = pretender(tmp_path / "redis-server", "echo 'the disk is on fire' >&2; exit 3")
    with pytest.raises(ConfigurationError, match=r"ended with exit code 3(.|\n)*the disk is on fire"):
        ChildRedis(program, tmp_path / "data").start()


def test_a_server_that_never_answers_is_stopped_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.5)
    program = pretender(tmp_path / "redis-server", 'echo "I am $$"; exec sleep 1000')
    server = ChildRedis(program, tmp_path / "data")
    with pytest.raises(ConfigurationError, match=r"does not answer after 0\.5 s(.|\n)*I am (?P<pid>\d+)") as error:
        server.start()
    with pytest.raises(ProcessLookupError):
        os.kill(int(error.value.detail.split()[-1]), 0)
    assert server.pid is None


def test_a_failed_start_leaves_the_directory_free(server_program: ServerProgram, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        ChildRedis(pretender(tmp_path / "bin/redis-server", "exit 1"), tmp_path).start()
    with ChildRedis(server_program, tmp_path) as server:
        assert count(server) is None


VALKEY = "echo 'Valkey server v=8.1.3 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1'"
REDIS = "echo 'Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64 build=1'"
OLD = "echo 'Redis server v=6.0.16 sha=00000000:0 malloc=libc bits=64 build=1'"


def test_valkey_is_preferred_to_redis_and_redis_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() is None
    redis_server = executable(tmp_path / "redis-server", REDIS)
    assert find_server() == ServerProgram(redis_server, "redis", "6.2.14")
    valkey_server = executable(tmp_path / "valkey-server", VALKEY)
    assert find_server() == ServerProgram(valkey_server, "valkey", "8.1.3")


def test_a_server_is_what_it_says_whatever_its_file_is_called(tmp_path: Path) -> None:
    assert find_server(str(executable(tmp_path / "redis-server", VALKEY))) == ServerProgram(
        tmp_path / "redis-server", "valkey", "8.1.3"
    )


@pytest.mark.parametrize("script", [OLD, "echo hello", "exit 1"])
def test_a_server_too_old_or_unknown_is_passed_over(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    executable(tmp_path / "redis-server", script)
    assert find_server() is None


@pytest.mark.parametrize("script", [OLD, "echo hello", "exit 1", None])
def test_a_given_server_that_cannot_be_used_is_an_error(script: str | None, tmp_path: Path) -> None:
    path = tmp_path / "my-redis"
    if script is not None:
        executable(path, script)
    with pytest.raises(ConfigurationError, match=r"my-redis is not a Redis or Valkey server of version 6\.2 or later"):
        find_server(str(path))
