"""What the browser tests use: a service on Redis, Chromium, Node.js, and jobs on strings."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from jobstream.embedded import ChildRedis, ServerProgram
from tests.acceptance import wire
from tests.acceptance.service import Service, running
from tests.browser.chromium import JS, Chromium, chromium

OLDEST_NODE = 18


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all of these tests: they share a browser, which takes seconds to start."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


def missing(what: str) -> None:
    """Skip with the reason; where everything is to be tested, fail."""
    reason = f"{what}: `scripts/setup --browser` installs it, or says how"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def node() -> str:
    """Node.js, with the packages of `tests/js`."""
    program = shutil.which("node")
    if program is None:
        missing("no node on PATH")
    assert program is not None
    version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True, timeout=30).stdout
    if int(version.strip().lstrip("v").partition(".")[0]) < OLDEST_NODE:
        missing(f"node is {version.strip()}, and {OLDEST_NODE} or later is needed")
    if not (JS / "node_modules" / ".package-lock.json").exists():
        missing("the npm packages of tests/js are not installed")
    return program


@pytest.fixture(scope="session")
def chromium_program() -> str:
    """Chromium, or Chrome."""
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing("no chromium on PATH")
    assert found is not None
    return found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(node: str, chromium_program: str) -> AsyncIterator[Chromium]:
    """A browser; each `person` in it has an empty profile."""
    async with chromium(node, chromium_program) as started:
        yield started


@pytest.fixture(scope="session")
def service_redis(server_program: ServerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildRedis]:
    """A server of the service's own."""
    with ChildRedis(server_program, tmp_path_factory.mktemp("r")) as server:
        yield server


@pytest.fixture(scope="session")
def service(service_redis: ChildRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API and a worker that run on."""
    with running(tmp_path_factory.mktemp("service"), redis_url=service_redis.url) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="session")
async def http(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the service."""
    async with httpx2.AsyncClient(base_url=service.url, timeout=20) as client:
        yield client


@pytest.fixture
def puppets(tmp_path: Path) -> Iterator[Callable[[], wire.Puppet]]:
    """Makes jobs on strings."""
    made: list[wire.Puppet] = []

    def make() -> wire.Puppet:
        made.append(wire.Puppet(tmp_path / f"pipe{len(made)}"))
        return made[-1]

    yield make
    for puppet in made:
        puppet.do("end let go")
        puppet.close()


@pytest.fixture
def puppet(puppets: Callable[[], wire.Puppet]) -> wire.Puppet:
    """A job on strings."""
    return puppets()


@pytest_asyncio.fixture(loop_scope="session")
async def mortal(service_redis: ChildRedis, tmp_path: Path) -> AsyncIterator[Service]:
    """An API, to be killed, and a worker."""
    service = Service(tmp_path, redis_url=service_redis.url)
    try:
        await asyncio.to_thread(service.start)
        yield service
    finally:
        await asyncio.to_thread(service.close)
