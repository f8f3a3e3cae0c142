"""`Prefer`: a submit that is held until the result is there, and the long poll; nobody waits longer than it must."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx2
import pytest
import redis

from jobstream.embedded import ChildRedis
from tests.acceptance.service import Service
from tests.acceptance.wire import Json, Puppet, done, events, problem, puppet, submit, until

LONG = {"Prefer": "wait=25"}


def unmoved(version: int) -> dict[str, str]:
    """Headers of a long poll for the next version."""
    return {"If-None-Match": f'W/"{version}"', **LONG}


async def running(http: httpx2.AsyncClient, strings: Puppet) -> Json:
    """A job that waits for orders, as it is now."""
    job = await submit(http, "puppet", strings.input)
    strings.do("log here")
    async with events(http, job) as stream:
        await until(stream, "log")
    now: Json = (await http.get(job["links"]["self"])).json()
    return now


async def test_a_submit_that_waits_gets_the_result(http: httpx2.AsyncClient) -> None:
    response = await http.post("/words", json={"text": "to be"}, headers={"Prefer": "respond-async, wait=20"})
    assert response.status_code == 200, response.text
    assert response.json()["words"] == 2
    headers = response.headers
    assert headers["preference-applied"] == "wait=20"
    assert headers["vary"] == "Prefer, Accept"
    again = await http.get(headers["content-location"])
    assert (again.status_code, again.content) == (200, response.content)
    assert 'rel="monitor"' in headers["link"]
    assert "location" not in headers
    assert "retry-after" not in headers


async def test_a_submit_whose_time_is_up_gets_its_202(http: httpx2.AsyncClient) -> None:
    began = time.monotonic()
    response = await http.post("/echo?delay=60", json={}, headers={"Prefer": "respond-async, wait=1"})
    assert time.monotonic() - began >= 1
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/echo/{job['id']}"
    assert response.headers["preference-applied"] == "respond-async, wait=1"
    assert (await http.delete(job["links"]["self"])).status_code == 204


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("respond-async", "respond-async"),
        ("RESPOND-ASYNC;x=1", "respond-async"),
        ("wait=0", "wait=0"),
        ("wait=soon", None),
        ("wait=-1", None),
        ("wait", None),
        (',;"', None),
        ("return=minimal", None),
    ],
)
async def test_who_does_not_want_to_wait_does_not(http: httpx2.AsyncClient, prefer: str, applied: str | None) -> None:
    response = await http.post("/echo?delay=60", json={}, headers={"Prefer": prefer})
    assert response.status_code == 202
    assert response.headers.get("preference-applied") == applied
    assert (await http.delete(response.json()["links"]["self"])).status_code == 204


async def test_a_wait_is_at_most_55_seconds(http: httpx2.AsyncClient) -> None:
    response = await http.post("/words", json={"text": "a"}, headers={"Prefer": "wait=86400"})
    assert (response.status_code, response.headers["preference-applied"]) == (200, "wait=55")


@pytest.mark.parametrize(("task", "status", "code"), [("refuse", 422, "refused"), ("crash", 500, "task-raised")])
async def test_a_job_that_fails_in_time_is_its_problem(
    http: httpx2.AsyncClient, task: str, status: int, code: str
) -> None:
    response = await http.post(f"/{task}", json={}, headers=LONG)
    members = problem(response, status, code)
    place = response.headers["content-location"]
    assert place.startswith(f"/{task}/")
    assert members["instance"] == place
    assert response.headers["preference-applied"] == "wait=25"
    assert 'rel="monitor"' in response.headers["link"]


async def test_a_job_that_is_cancelled_meanwhile_is_410(http: httpx2.AsyncClient) -> None:
    waiting = asyncio.create_task(http.post("/echo?delay=60&tags=stopped", json={}, headers=LONG))
    await _waits(http)
    jobs = (await http.get("/jobs?tag=stopped&status=scheduled")).json()["jobs"]
    assert (await http.post(f"/jobs/{jobs[0]['id']}/cancel")).status_code == 202
    response = await waiting
    problem(response, 410, "job-gone")
    assert response.headers["content-location"] == jobs[0]["links"]["result"]


async def test_a_task_that_answers_303_waits_too(http: httpx2.AsyncClient) -> None:
    response = await http.post("/see_other", json={}, headers=LONG)
    assert (response.status_code, response.json()) == (200, "seen")


@pytest.mark.parametrize("face", ["self", "result"])
async def test_a_long_poll_answers_when_the_version_moves(http: httpx2.AsyncClient, puppet: Puppet, face: str) -> None:
    job = await running(http, puppet)
    poll = asyncio.create_task(http.get(job["links"][face], headers=unmoved(job["version"])))
    await _waits(http)
    puppet.do("progress 1 2 half")
    response = await poll
    assert response.status_code == (200 if face == "self" else 202)
    assert response.json()["version"] > job["version"]
    assert response.headers["etag"] == f'W/"{response.json()["version"]}"'
    assert response.headers["preference-applied"] == "wait=25"
    assert "Prefer" in response.headers["vary"]
    puppet.do("end bravo")
    ended = await done(http, job)
    last = await http.get(job["links"][face], headers=unmoved(response.json()["version"]))
    assert last.status_code == 200
    assert last.headers["etag"] == f'W/"{ended["version"]}"'


@pytest.mark.parametrize("face", ["self", "result"])
async def test_a_long_poll_without_news_is_304_in_time(http: httpx2.AsyncClient, face: str) -> None:
    job = await submit(http, "echo", delay="60")
    began = time.monotonic()
    headers = {"If-None-Match": 'W/"1"', "Prefer": "wait=1"}
    response = await http.get(job["links"][face], headers=headers)
    assert 1 <= time.monotonic() - began < 15
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", 'W/"1"')
    assert "Prefer" in response.headers["vary"]
    await http.delete(job["links"]["self"])


async def test_a_result_may_be_waited_for_without_an_etag(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await running(http, puppet)
    poll = asyncio.create_task(http.get(job["links"]["result"], headers=LONG))
    await _waits(http)
    puppet.do("progress 1 2 half", "log still there", "end bravo")
    response = await poll
    assert (response.status_code, response.json()) == (200, "bravo")


async def test_nobody_waits_for_what_cannot_change(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "echo", {"value": 1}))
    async with asyncio.timeout(15):
        for face in ("self", "result"):
            assert (await http.get(job["links"][face], headers=unmoved(job["version"]))).status_code == 304
            assert (await http.get(job["links"][face], headers=LONG)).status_code == 200
            assert (await http.get(job["links"][face], headers=unmoved(1))).status_code == 200


async def test_a_job_that_is_purged_ends_the_poll(http: httpx2.AsyncClient) -> None:
    for face in ("self", "result"):
        job = await submit(http, "echo", delay="60")
        poll = asyncio.create_task(http.get(job["links"][face], headers=unmoved(1)))
        await _waits(http)
        assert (await http.delete(job["links"]["self"])).status_code == 204
        problem(await poll, 410, "job-gone")


async def test_a_client_that_goes_away_is_waited_for_no_longer(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", delay="60")
    async with asyncio.timeout(20):
        poll = asyncio.create_task(http.get(job["links"]["self"], headers=unmoved(1)))
        await _waits(http)
        poll.cancel()
        await _waits(http, 0)
    await http.delete(job["links"]["self"])


async def test_waiting_asks_redis_nothing(http: httpx2.AsyncClient, service: Service) -> None:
    if service.redis_url is None:
        pytest.skip("fakeredis counts no commands")
    job = await submit(http, "echo", delay="600")
    with redis.Redis.from_url(service.redis_url) as client, client.monitor() as monitor:
        poll = asyncio.create_task(
            http.get(job["links"]["self"], headers={"If-None-Match": 'W/"1"', "Prefer": "wait=2"})
        )
        seen: list[str] = []

        def listen() -> None:
            for command in monitor.listen():
                seen.append(command["command"])
                if command["command"] == "ECHO end":
                    return

        listening = asyncio.create_task(asyncio.to_thread(listen))
        assert (await poll).status_code == 304
        with redis.Redis.from_url(service.redis_url) as other:
            other.echo("end")
        await listening
    asked = [command for command in seen if job["id"] in command]
    # The record before, within and after the subscription; the hub's look, every 15 s, may fall into it.
    assert len(asked) <= 6 + 2, asked
    await http.delete(job["links"]["self"])


async def test_a_process_that_ends_answers_all_that_wait_at_once(tmp_path: Path, service_redis: ChildRedis) -> None:
    service = Service(tmp_path, redis_url=service_redis.url)
    try:
        api = service.start_api()
        service.start_worker()
        service.wait_until(lambda: service.knows("puppet"), "the worker is not there")
        async with httpx2.AsyncClient(base_url=service.url, timeout=20) as http:
            with puppet(tmp_path) as strings:
                job = await running(http, strings)
                polls = [
                    asyncio.create_task(http.get(job["links"]["self"], headers=unmoved(job["version"]))),
                    asyncio.create_task(http.get(job["links"]["result"], headers=LONG)),
                    asyncio.create_task(http.post("/echo?delay=60", json={}, headers=LONG)),
                ]
                await _waits(http, 3)
                began = time.monotonic()
                os.kill(api.pid, signal.SIGTERM)
                assert [response.status_code for response in await asyncio.gather(*polls)] == [304, 202, 202]
                assert time.monotonic() - began < 10
    finally:
        service.close()


async def _waits(http: httpx2.AsyncClient, watchers: int = 1) -> None:
    """Return when so many wait, as the process says."""
    while True:
        if (await http.get("/readyz?verbose=1")).json()["watchers"] == watchers:
            return
        await asyncio.sleep(0.02)
