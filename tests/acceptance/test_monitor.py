"""The monitor: `GET /jobs/{id}` is 200 for every job that exists; its version is its ETag."""

from __future__ import annotations

import httpx2
import pytest

from tests.acceptance.wire import Puppet, done, events, submit, until


async def test_the_monitor_of_a_job_that_is_not_done_says_when_to_come_back(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", delay="60")
    response = await http.get(job["links"]["self"])
    assert (response.status_code, response.json()) == (200, job)
    assert response.headers["retry-after"] == "1"
    assert response.headers["etag"] == 'W/"1"'
    assert (await http.delete(job["links"]["self"])).status_code == 204


@pytest.mark.parametrize("task", ["echo", "refuse", "crash"])
async def test_the_monitor_of_a_done_job_is_200_and_final(http: httpx2.AsyncClient, task: str) -> None:
    job = await done(http, await submit(http, task))
    response = await http.get(job["links"]["self"])
    assert (response.status_code, response.json()) == (200, job)
    assert job["done"]
    assert "retry-after" not in response.headers


async def test_the_version_rises_with_every_change_and_304_means_none(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log one")
    async with events(http, job) as stream:
        await until(stream, "log")
        first = await http.get(job["links"]["self"])
        same = await http.get(job["links"]["self"], headers={"If-None-Match": first.headers["etag"]})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
        puppet.do("progress 1 2 half")
        await until(stream, "progress")
        other = await http.get(job["links"]["self"], headers={"If-None-Match": first.headers["etag"]})
        assert other.status_code == 200
        assert other.json()["version"] > first.json()["version"]
        assert other.headers["etag"] == f'W/"{other.json()["version"]}"'
        assert other.json()["progress"] == {
            "current": 1,
            "total": 2,
            "percent": 50.0,
            "message": "half",
            "eta_s": None,
            "items": [],
        }
        puppet.do("end x")
        await until(stream, "done")


@pytest.mark.parametrize("form", ['W/"{}"', '"{}"', '"0", W/"{}" , "x"', "*"])
async def test_if_none_match_takes_every_form(http: httpx2.AsyncClient, form: str) -> None:
    job = await done(http, await submit(http, "echo"))
    headers = {"If-None-Match": form.format(job["version"])}
    assert (await http.get(job["links"]["self"], headers=headers)).status_code == 304
    other = {"If-None-Match": f'W/"{job["version"]}0", rubbish'}
    assert (await http.get(job["links"]["self"], headers=other)).status_code == 200


async def test_status_is_an_alias_of_the_monitor(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "echo"))
    monitor = await http.get(f"/jobs/{job['id']}")
    alias = await http.get(f"/jobs/{job['id']}/status")
    assert (alias.status_code, alias.json(), alias.headers["etag"]) == (200, job, monitor.headers["etag"])


async def test_times_are_in_order_and_in_utc(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "echo"))
    times = [job[name] for name in ("created_at", "started_at", "finished_at", "expires_at")]
    assert times == sorted(times)
    assert all(len(time) == len("2026-11-21T06:40:00.000Z") and time.endswith("Z") for time in times)
    assert (job["attempt"], job["max_attempts"]) == (1, 1)
    assert job["worker"]
