"""What the tests share: a real Redis of their own, fakeredis, and clients that are closed again."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from arq.connections import ArqRedis

from jobstream.embedded import ChildRedis, ServerProgram, find_server
from jobstream.fake import FakeSource
from jobstream.redis import RedisSource, UrlSource

REQUIRE_REDIS = "JOBSTREAM_REQUIRE_REDIS"

# A shell that starts this run in the background has it ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`: tests wait for most of their time, so there may be more of them than cores."""
    return min(8, 2 * (os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the developer's shell must not steer the tests."""
    for name in list(os.environ):
        if name.startswith("JOBSTREAM_") and name != REQUIRE_REDIS:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_program() -> ServerProgram:
    """An installed Redis or Valkey; without one, tests that need it are skipped, or fail where Redis is required."""
    program = find_server()
    if program is not None:
        return program
    reason = "no redis-server or valkey-server (6.2 or later) on PATH: install the package redis-server or valkey"
    if os.environ.get("CI") or os.environ.get(REQUIRE_REDIS):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_server(server_program: ServerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildRedis]:
    """A real server for the whole run, on a Unix socket; started by us, so it may be emptied."""
    with ChildRedis(server_program, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def real_source(redis_server: ChildRedis) -> UrlSource:
    """The real server, empty."""
    source = UrlSource(redis_server.url, kind="child")
    with source.sync_client() as client:
        client.flushall()
    return source


@pytest.fixture(params=["redis", "fakeredis"])
def source(request: pytest.FixtureRequest) -> RedisSource:
    """An empty Redis: the real one, then fakeredis. The same test must hold on both."""
    if request.param == "fakeredis":
        return FakeSource()
    real: UrlSource = request.getfixturevalue("real_source")
    return real


@pytest.fixture
async def client(source: RedisSource) -> AsyncIterator[ArqRedis]:
    """A client of `source`."""
    client = source.client()
    yield client
    await client.aclose()


@pytest.fixture
async def real_client(real_source: UrlSource) -> AsyncIterator[ArqRedis]:
    """A client of `real_source`."""
    client = real_source.client()
    yield client
    await client.aclose()
