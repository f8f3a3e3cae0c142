"""The service that the acceptance tests speak to, once on Redis and once on fakeredis."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from jobstream.embedded import ChildRedis, ServerProgram
from tests.acceptance import wire
from tests.acceptance.service import Service, running

CURL_NEEDED = (7, 82)
"""`curl --json` is that old."""


@pytest.fixture(scope="session")
def service_redis(server_program: ServerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildRedis]:
    """A server of the service's own: the one of the other tests is emptied by them."""
    with ChildRedis(server_program, tmp_path_factory.mktemp("r")) as server:
        yield server


@pytest.fixture(scope="session", params=["redis", "fakeredis"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """API and worker: two processes on Redis, then one process with fakeredis. The same tests must hold on both."""
    url = request.getfixturevalue("service_redis").url if request.param == "redis" else None
    with running(tmp_path_factory.mktemp("service"), redis_url=url) as service:
        yield service


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the service."""
    async with httpx2.AsyncClient(base_url=service.url, timeout=20) as client:
        yield client


@pytest.fixture
def puppet(tmp_path: Path) -> Iterator[wire.Puppet]:
    """A job on strings."""
    with wire.puppet(tmp_path) as held:
        yield held


@pytest.fixture
def curl() -> None:
    """A curl that knows `--json`; without one the test is skipped, or fails where nothing may be."""
    program = shutil.which("curl")
    said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout if program else ""
    version = re.match(r"curl (\d+)\.(\d+)", said)
    if version is None or tuple(map(int, version.groups())) < CURL_NEEDED:
        reason = "no curl of version {}.{} or later on PATH".format(*CURL_NEEDED)
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
