"""Stopping: `POST /jobs/{id}/cancel` keeps the record, `DELETE` on either face forgets it."""

from __future__ import annotations

import hashlib

import httpx2
import pytest

from tests.acceptance.service import Service
from tests.acceptance.wire import all_frames, done, events, problem, started, submit, until

HANGING = ["hang-loop", "hang-thread", "hang-process"]
UNKNOWN = "01JD0000000000000000000000"


async def test_a_job_that_waits_is_cancelled_at_once(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", queue="nobody-listens")
    response = await http.post(f"/jobs/{job['id']}/cancel")
    assert response.status_code == 202
    assert (response.json()["status"], response.json()["done"]) == ("cancelled", True)
    assert [frame.event for frame in await all_frames(http, job)] == ["retry", "snapshot", "status", "done"]


@pytest.mark.parametrize("task", HANGING)
async def test_a_running_job_is_told_to_stop_and_stops(http: httpx2.AsyncClient, task: str) -> None:
    job = await submit(http, task)
    await started(http, job)
    async with events(http, job) as stream:
        await until(stream, "log")
        response = await http.post(f"/jobs/{job['id']}/cancel")
        assert response.status_code == 202
        assert (response.json()["status"], response.json()["done"]) == ("cancelling", False)
        assert response.headers["retry-after"] == "1"
        seen = await until(stream, "done")
    assert seen[0].data["status"] == "cancelling"
    assert (seen[-1].data["status"], seen[-1].data["done"]) == ("cancelled", True)
    assert seen[-1].data["error"]["detail"] == "cancelled by client"
    again = await http.post(f"/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()) == (200, seen[-1].data)


async def test_cancelling_twice_says_so_twice(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "hang-loop")
    await started(http, job)
    answers = [await http.post(f"/jobs/{job['id']}/cancel") for _ in range(2)]
    assert answers[0].status_code == 202
    assert answers[1].status_code in (200, 202)  # it may have stopped in between
    assert (await done(http, job))["status"] == "cancelled"
    statuses = [frame.data["status"] for frame in await all_frames(http, job) if frame.event == "status"]
    assert statuses == ["queued", "running", "cancelling"]


async def test_a_done_job_is_left_unchanged(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "echo", {"value": 1}))
    response = await http.post(f"/jobs/{job['id']}/cancel")
    assert (response.status_code, response.json()) == (200, job)
    assert (await http.get(f"/echo/{job['id']}")).json() == 1


@pytest.mark.parametrize("face", ["/jobs", "/{task}"])
@pytest.mark.parametrize("task", HANGING)
async def test_a_running_job_is_stopped_and_then_forgotten(http: httpx2.AsyncClient, task: str, face: str) -> None:
    job = await submit(http, task)
    await started(http, job)
    url = f"{face.format(task=task)}/{job['id']}"
    async with events(http, job) as stream:
        await until(stream, "log")
        response = await http.delete(url)
        assert (response.status_code, response.json()["status"]) == (202, "cancelling")
        async for _ in stream:  # to its end: then the job has gone
            pass
    for path in (f"/jobs/{job['id']}", f"/{task}/{job['id']}"):
        problem(await http.get(path), 410, "job-gone")
        problem(await http.delete(path), 410, "job-gone")
    problem(await http.post(f"/jobs/{job['id']}/cancel"), 410, "job-gone")


@pytest.mark.parametrize("face", ["/jobs", "/echo"])
async def test_a_done_job_and_a_waiting_one_are_forgotten_at_once(http: httpx2.AsyncClient, face: str) -> None:
    ended = await done(http, await submit(http, "echo"))
    waiting = await submit(http, "echo", delay="600")
    for job in (ended, waiting):
        response = await http.delete(f"{face}/{job['id']}")
        assert (response.status_code, response.content) == (204, b"")
        problem(await http.get(f"/jobs/{job['id']}"), 410)


async def test_a_forgotten_jobs_files_are_removed(http: httpx2.AsyncClient, service: Service) -> None:
    parts = [("files", ("a.txt", b"a"))]
    ended = (await http.post("/measure", files=parts)).json()
    assert (await done(http, ended))["result"][0]["sha256"] == hashlib.sha256(b"a").hexdigest()
    assert ended["id"] in service.stored_files()
    assert (await http.delete(f"/measure/{ended['id']}")).status_code == 204
    assert not [path for path in service.stored_files() if ended["id"] in path]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/jobs/{}/cancel"), ("DELETE", "/jobs/{}"), ("DELETE", "/echo/{}"), ("DELETE", "/no-such-task/{}")],
)
async def test_stopping_what_was_never_there_is_404(http: httpx2.AsyncClient, method: str, path: str) -> None:
    problem(await http.request(method, path.format(UNKNOWN)), 404, "job-not-found")
