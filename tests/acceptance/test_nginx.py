"""Behind nginx: with no setting but `proxy_pass` streams flow and stay; with the documented site all the rest works."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect

from jobstream.embedded import ChildRedis
from jobstream_api.settings import ApiSettings
from tests.acceptance.nginx import bare_site, documented_site, serving
from tests.acceptance.service import HEARTBEAT_SECONDS, Service
from tests.acceptance.wire import Puppet, done, submit
from tests.ports import free_port

NGINX_READ_TIMEOUT = 60.0
"""Seconds: https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_read_timeout"""

FILE_BYTES = 3_000_000
"""More than the 1 MB that nginx takes by default."""


@pytest.fixture(scope="module")
def upstream(service_redis: ChildRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """API and worker, as if behind a proxy."""
    service = Service(tmp_path_factory.mktemp("nginx"), redis_url=service_redis.url)
    try:
        service.start_api(
            JOBSTREAM_AUTH="open", JOBSTREAM_TRUSTED_PROXIES="127.0.0.1", JOBSTREAM_MAX_FILE_BYTES=str(FILE_BYTES)
        )
        service.start_worker()
        service.wait_until(lambda: service.knows("echo"), "the API has not heard of the worker's tasks")
        yield service
    finally:
        service.close()


@contextlib.asynccontextmanager
async def behind(upstream: Service, directory: Path, *, documented: bool) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a proxy that was told nothing, or what docs/operations.md says; then one of the two APIs is away."""
    port = free_port()
    if documented:
        site = documented_site(directory, listen=port, apis=(free_port(), upstream.port))
    else:
        site = bare_site(upstream.port, listen=port)
    with serving(directory, site, port=port):
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            yield http


@pytest.fixture
async def documented(upstream: Service, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with behind(upstream, tmp_path / "nginx", documented=True) as http:
        yield http


@pytest.fixture(params=["bare", "documented"])
async def http(request: pytest.FixtureRequest, upstream: Service, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with behind(upstream, tmp_path / "nginx", documented=request.param == "documented") as http:
        yield http


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_an_event_arrives_before_the_next_one_happens(
    http: httpx2.AsyncClient, accept: str, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with (
        asyncio.timeout(20),
        http.stream("GET", job["links"]["events"], headers={"Accept": accept}) as response,
    ):
        assert response.status_code == 200
        pieces = response.aiter_bytes()
        for number in range(20):
            puppet.do(f"log word {number}.")
            received = b""
            while f"word {number}.".encode() not in received:
                received += await anext(pieces)
        puppet.do("end x")
        assert b"done" in b"".join([piece async for piece in pieces])


def test_the_default_heartbeat_is_well_within_what_nginx_allows() -> None:
    assert ApiSettings.model_fields["heartbeat_seconds"].default <= NGINX_READ_TIMEOUT / 2


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_an_idle_stream_outlives_the_idle_limit(
    upstream: Service, tmp_path: Path, puppet: Puppet, accept: str
) -> None:
    port = free_port()
    site = bare_site(upstream.port, listen=port, more="proxy_read_timeout 1s;")
    with serving(tmp_path / "nginx", site, port=port):
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            job = await submit(http, "puppet", puppet.input)
            async with http.stream("GET", job["links"]["events"], headers={"Accept": accept}) as response:
                pings, pieces = 0, response.aiter_bytes()
                while pings * HEARTBEAT_SECONDS < 3:  # a ping comes after so much silence, not sooner
                    pings += (await anext(pieces)).count(b"ping")
                puppet.do("end x")
                assert b"done" in b"".join([piece async for piece in pieces])


async def test_without_pings_the_idle_limit_would_cut(
    service_redis: ChildRedis, upstream: Service, tmp_path: Path, puppet: Puppet
) -> None:
    """So the test before this one tests something."""
    silent = Service(tmp_path, redis_url=service_redis.url)
    port = free_port()
    try:
        await asyncio.to_thread(silent.start_api, JOBSTREAM_HEARTBEAT_SECONDS="60")
        with serving(tmp_path / "nginx", bare_site(silent.port, listen=port, more="proxy_read_timeout 1s;"), port=port):
            async with httpx2.AsyncClient(base_url=upstream.url) as http:
                job = await submit(http, "puppet", puppet.input)
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
                with pytest.raises(httpx2.RemoteProtocolError):
                    async with http.stream("GET", job["links"]["events"]) as response:
                        await response.aread()
    finally:
        await asyncio.to_thread(silent.close)


async def test_a_websocket_goes_through_the_documented_site(documented: httpx2.AsyncClient) -> None:
    job = await submit(documented, "hang-loop")
    url = str(documented.base_url.join(f"/jobs/{job['id']}/ws")).replace("http", "ws", 1)
    async with asyncio.timeout(20), connect(url) as socket:
        assert json.loads(await socket.recv())["event"] == "snapshot"
        while json.loads(await socket.recv())["event"] != "log":
            pass
        await socket.send('{"action":"cancel"}')
        kinds = [json.loads(message)["event"] async for message in socket]
        assert kinds[-1] == "done"
        assert socket.close_code == 1000


async def test_an_upload_goes_through_the_documented_site(documented: httpx2.AsyncClient) -> None:
    content = b"a line of text\n" * (FILE_BYTES // 15 - 100)
    response = await documented.post("/measure-one", files={"file": ("big.txt", content)})
    assert response.status_code == 202, response.text
    assert (await done(documented, response.json()))["result"]["sha256"] == hashlib.sha256(content).hexdigest()


async def test_links_and_logs_of_the_documented_site(
    documented: httpx2.AsyncClient, tmp_path: Path, puppet: Puppet
) -> None:
    response = await documented.post("/puppet", json=puppet.input)
    job = response.json()
    assert response.headers["operation-location"] == str(documented.base_url.join(f"/jobs/{job['id']}"))
    await documented.get(f"/jobs/{job['id']}", params={"ticket": "secret"})
    log = tmp_path / "nginx" / "jobstream.log"
    async with asyncio.timeout(20):
        while f"GET /jobs/{job['id']}" not in log.read_text():  # noqa: ASYNC110 (it writes after it has answered)
            await asyncio.sleep(0.01)
    assert "secret" not in log.read_text()
    puppet.do("end x")
