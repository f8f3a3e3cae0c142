"""Running a job again: `POST /jobs/{id}/retry` after a failure or a cancel; finding what has failed."""

from __future__ import annotations

import asyncio
import secrets

import httpx2
import pytest

from tests.acceptance.wire import (
    Json,
    Puppet,
    all_frames,
    done,
    events,
    last_id,
    problem,
    started,
    submit,
    until,
    versions,
)

UNKNOWN = "01JD0000000000000000000000"


async def failed(http: httpx2.AsyncClient, puppet: Puppet, **options: str) -> Json:
    """A job of the puppet's that has failed once."""
    job = await submit(http, "puppet", puppet.input, **options)
    puppet.do("fail not today")
    job = await done(http, job)
    assert (job["status"], job["attempt"]) == ("failed", 1)
    return job


async def listed(http: httpx2.AsyncClient, **query: str) -> list[str]:
    response = await http.get("/jobs", params=query)
    assert response.status_code == 200
    return [job["id"] for job in response.json()["jobs"]]


async def test_a_failed_job_runs_again_under_its_id(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await failed(http, puppet)
    response = await http.post(f"/jobs/{job['id']}/retry")
    assert response.status_code == 202, response.text
    again = response.json()
    assert (again["id"], again["task"], again["done"], again["error"]) == (job["id"], "puppet", False, None)
    assert again["status"] in ("queued", "running")
    assert again["version"] > job["version"]
    assert response.headers["retry-after"] == "1"
    waiting = await http.get(f"/puppet/{job['id']}")
    assert (waiting.status_code, waiting.json()["done"]) == (202, False)
    puppet.do("log again", "end better")
    last = await done(http, job)
    assert (last["status"], last["result"], last["attempt"], last["error"]) == ("succeeded", "better", 2, None)
    assert [(error["attempt"], error["detail"]) for error in last["errors"]] == [(1, "not today")]
    result = await http.get(f"/puppet/{job['id']}")
    assert (result.status_code, result.json()) == (200, "better")


async def test_every_failure_is_kept_with_its_attempt(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await failed(http, puppet)
    for attempt in (2, 3):
        assert (await http.post(f"/jobs/{job['id']}/retry")).status_code == 202
        puppet.do(f"fail time {attempt}")
        async with events(http, job, after=None) as stream:
            async for frame in stream:
                if frame.event == "done" and frame.data["attempt"] == attempt:
                    break
        job = (await http.get(f"/jobs/{job['id']}")).json()
        assert (job["status"], job["error"]["detail"], job["attempt"]) == ("failed", f"time {attempt}", attempt)
    assert [error["attempt"] for error in job["errors"]] == [1, 2, 3]
    assert job["error"] == job["errors"][-1]
    problem(await http.get(f"/puppet/{job['id']}"), 422)


async def test_failed_jobs_are_found_until_they_run_again(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    tag = f"retry-{secrets.token_hex(6)}"
    job = await failed(http, puppet, tags=tag)
    assert job["id"] in await listed(http, status="failed")
    assert await listed(http, status="failed", tag=tag) == [job["id"]]
    assert (await http.post(f"/jobs/{job['id']}/retry")).status_code == 202
    await started_again(http, job, puppet)
    assert await listed(http, status="failed", tag=tag) == []
    assert await listed(http, status="running", tag=tag) == [job["id"]]
    puppet.do("end done")
    await done(http, job)
    assert await listed(http, status="succeeded", tag=tag) == [job["id"]]


async def test_watchers_of_the_first_run_resume_into_the_next(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await failed(http, puppet)
    first = await all_frames(http, job)
    assert (await http.get(f"/jobs/{job['id']}/events", headers={"Last-Event-ID": last_id(first)})).status_code == 204
    assert (await http.post(f"/jobs/{job['id']}/retry")).status_code == 202
    puppet.do("log again", "end better")
    second = await all_frames(http, job, after=last_id(first))
    assert [frame.event for frame in second if frame.event != "retry"] == ["status", "status", "log", "done"]
    assert [frame.data["status"] for frame in second if frame.event == "status"] == ["queued", "running"]
    numbers = versions(first) + versions(second)
    assert numbers == sorted(set(numbers))


async def test_a_cancelled_job_runs_again(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", {"value": 7}, queue="nobody-listens")
    assert (await http.post(f"/jobs/{job['id']}/cancel")).json()["status"] == "cancelled"
    problem(await http.get(f"/echo/{job['id']}"), 410)
    again = await http.post(f"/jobs/{job['id']}/retry")
    assert (again.status_code, again.json()["status"]) == (202, "queued")
    assert (await http.get(f"/echo/{job['id']}")).status_code == 202
    await http.delete(f"/jobs/{job['id']}")


async def test_a_running_job_that_was_cancelled_runs_again(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "hang-loop")
    await started(http, job)
    await http.post(f"/jobs/{job['id']}/cancel")
    assert (await done(http, job))["status"] == "cancelled"
    assert (await http.post(f"/jobs/{job['id']}/retry")).status_code == 202
    async with events(http, job) as stream:
        async for frame in stream:
            if frame.event == "snapshot" and frame.data["status"] == "running":
                break
            if frame.event == "status" and (frame.data["status"], frame.data["attempt"]) == ("running", 2):
                break
    await http.delete(f"/jobs/{job['id']}")


async def test_a_job_that_succeeded_is_not_run_again(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "echo", {"value": 1}))
    members = problem(await http.post(f"/jobs/{job['id']}/retry"), 409, "job-conflict")
    assert "succeeded" in members["detail"]
    assert (await http.get(f"/jobs/{job['id']}")).json() == job


async def test_a_job_that_runs_or_waits_is_not_run_again(http: httpx2.AsyncClient) -> None:
    running = await submit(http, "hang-loop")
    await started(http, running)
    waiting = await submit(http, "echo", delay="600")
    for job, status in ((running, "running"), (waiting, "scheduled")):
        members = problem(await http.post(f"/jobs/{job['id']}/retry"), 409, "job-conflict")
        assert status in members["detail"]
        assert (await http.get(f"/jobs/{job['id']}")).json()["status"] == status
        await http.delete(f"/jobs/{job['id']}")


async def test_of_two_requests_one_is_answered_with_a_conflict(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await failed(http, puppet)
    answers = await asyncio.gather(*(http.post(f"/jobs/{job['id']}/retry") for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409, 409]
    puppet.do("end once")
    assert (await done(http, job))["attempt"] == 2


async def test_what_is_gone_or_was_never_there_is_not_run_again(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    problem(await http.post(f"/jobs/{UNKNOWN}/retry"), 404, "job-not-found")
    job = await failed(http, puppet)
    assert (await http.delete(f"/jobs/{job['id']}")).status_code == 204
    problem(await http.post(f"/jobs/{job['id']}/retry"), 410, "job-gone")
    assert (await http.get(f"/jobs/{job['id']}/retry")).status_code == 405


@pytest.mark.parametrize("priority", ["-1", "101", "1.5"])
async def test_a_priority_out_of_range_is_refused(http: httpx2.AsyncClient, priority: str) -> None:
    response = await http.post("/echo", json={}, params={"priority": priority})
    problem(response, 422, "invalid-parameter")


async def started_again(http: httpx2.AsyncClient, job: Json, puppet: Puppet) -> None:
    """Return when the next run has said its first word."""
    puppet.do("log again")
    async with events(http, job) as stream:
        await until(stream, "log")
