"""What is too large for Redis lies with the files: nobody who asks for a job or its result notices."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx2
import pytest
import redis

from jobstream.embedded import ChildRedis, ServerProgram
from tests.acceptance.service import Service, running
from tests.acceptance.wire import done, problem, submit

LIMIT = 10_000
LARGE = "x" * 50_000


@pytest.fixture(scope="module")
def server(server_program: ServerProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildRedis]:
    with ChildRedis(server_program, tmp_path_factory.mktemp("r")) as server:
        yield server


@pytest.fixture(scope="module")
def service(server: ChildRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    with running(directory, redis_url=server.url, JOBSTREAM_SPILL_BYTES=str(LIMIT)) as service:
        yield service


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=service.url, timeout=30) as client:
        yield client


def in_redis(server: ChildRedis, job_id: str) -> int:
    """Bytes of all that Redis has of the job."""
    with redis.Redis.from_url(server.url) as client:
        size = 0
        for key in client.scan_iter(f"*{job_id}*"):
            with suppress(redis.ResponseError):
                size += len(client.dump(key) or b"")
        return size


async def test_a_large_input_reaches_the_task_and_a_large_result_the_client(
    http: httpx2.AsyncClient, server: ChildRedis
) -> None:
    job = await done(http, await submit(http, "echo", {"value": LARGE}))
    assert job["status"] == "succeeded", job["error"]
    assert in_redis(server, job["id"]) < LIMIT
    for path in (job["links"]["result"], f"/jobs/{job['id']}/result"):
        response = await http.get(path)
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        assert response.json() == LARGE
        assert response.headers["etag"] == f'W/"{job["version"]}"'
        assert (await http.get(path, headers={"If-None-Match": response.headers["etag"]})).status_code == 304
    assert job["result"]["name"] == "result.json", "the monitor says where it is, and how large"
    assert job["result"]["size"] == len(LARGE) + 2
    (listed,) = (await http.get(f"/jobs/{job['id']}/files")).json()["files"]
    assert (await http.get(listed["url"])).json() == LARGE


async def test_a_submit_that_waits_gets_it_at_once(http: httpx2.AsyncClient) -> None:
    response = await http.post("/echo", json={"value": LARGE}, headers={"Prefer": "wait=20"})
    assert (response.status_code, response.json()) == (200, LARGE)


async def test_what_is_small_stays_in_redis(http: httpx2.AsyncClient, service: Service) -> None:
    job = await done(http, await submit(http, "echo", {"value": "x"}))
    assert job["result"] == "x"
    assert not (service.files / job["id"]).exists()


async def test_a_batch_may_be_larger_than_redis_should_hold(http: httpx2.AsyncClient, server: ChildRedis) -> None:
    items = [{"task": "echo", "input": {"value": f"{number}{LARGE}"}} for number in range(3)]
    jobs = (await http.post("/jobs/batch", json=items)).json()["jobs"]
    for number, job in enumerate(jobs):
        ended = await done(http, job)
        assert in_redis(server, job["id"]) < LIMIT
        assert (await http.get(ended["links"]["result"])).json() == f"{number}{LARGE}"


async def test_a_failed_job_is_run_again_with_its_large_input(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "refuse", {"code": "c" * LIMIT})
    assert (await done(http, job))["error"]["code"] == "c" * LIMIT
    again = await http.post(f"/jobs/{job['id']}/retry")
    assert again.status_code == 202
    assert (await done(http, job))["error"]["code"] == "c" * LIMIT


async def test_with_the_job_it_goes(http: httpx2.AsyncClient, service: Service) -> None:
    job = await done(http, await submit(http, "echo", {"value": LARGE}))
    assert (service.files / job["id"]).exists()
    await http.delete(f"/jobs/{job['id']}")
    assert not (service.files / job["id"]).exists()
    repeated = {"Idempotency-Key": '"k"'}
    first, second = [(await http.post("/echo", json={"value": LARGE}, headers=repeated)).json() for _ in range(2)]
    assert first["id"] == second["id"]
    await done(http, first)
    assert {path.parent.name for path in service.files.rglob("input-*")} >= {first["id"]}


async def test_an_input_that_is_gone_is_said(http: httpx2.AsyncClient, service: Service) -> None:
    response = await http.post("/echo?delay=60", json={"value": LARGE})
    job = response.json()
    shutil.rmtree(service.files / job["id"])
    await http.post(f"/jobs/{job['id']}/cancel")
    await http.post(f"/jobs/{job['id']}/retry")
    ended = await done(http, job)
    assert ended["error"]["code"] == "file-missing"
    problem(await http.get(ended["links"]["result"]), 500, "file-missing")
