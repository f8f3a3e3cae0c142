"""Results: `GET /{task}/{id}` is 202 until there is one, then the result itself, or why there is none."""

from __future__ import annotations

import httpx2
import pytest
import redis

from tests.acceptance.acceptance_tasks import SECRET
from tests.acceptance.service import Service
from tests.acceptance.wire import Puppet, done, events, problem, submit, until

UNKNOWN = "01JD0000000000000000000000"


async def test_202_with_the_job_until_it_is_done_then_200_with_the_result(
    http: httpx2.AsyncClient, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log here")
    async with events(http, job) as stream:
        await until(stream, "log")
        waiting = await http.get(f"/puppet/{job['id']}")
        assert waiting.status_code == 202
        assert waiting.headers["retry-after"] == "1"
        assert waiting.headers["link"].startswith(f'</jobs/{job["id"]}>; rel="monitor"')
        assert (waiting.json()["id"], waiting.json()["status"]) == (job["id"], "running")
        puppet.do("end bravo")
        await until(stream, "done")
    result = await http.get(f"/puppet/{job['id']}")
    assert (result.status_code, result.json()) == (200, "bravo")
    assert "retry-after" not in result.headers
    assert result.headers["content-type"] == "application/json"


async def test_the_result_is_typed(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "words", {"text": "to be or not to be"}))
    result = (await http.get(f"/words/{job['id']}")).json()
    assert (result["words"], result["unique"], result["most_common"][0]) == (6, 4, {"word": "to", "count": 2})
    assert job["result"] == result


@pytest.mark.parametrize("status", [400, 402, 404, 409, 422, 429, 451, 502])
async def test_a_task_error_answers_with_its_own_status_and_code(http: httpx2.AsyncClient, status: int) -> None:
    job = await done(http, await submit(http, "refuse", {"status": status, "code": "no-luck"}))
    members = problem(await http.get(f"/refuse/{job['id']}"), status, "no-luck")
    assert members["detail"] == "No, thank you"
    assert members["instance"] == f"/refuse/{job['id']}"
    assert (members["attempt"], members["retryable"]) == (1, False)
    assert job["error"] == {name: value for name, value in members.items() if name != "instance"}


async def test_a_timeout_is_504(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "hang-loop", timeout="0.05"))
    members = problem(await http.get(f"/hang-loop/{job['id']}"), 504, "timeout")
    assert "0.05" in members["detail"]


async def test_a_crash_is_500_and_shows_no_trace(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "crash"))
    response = await http.get(f"/crash/{job['id']}")
    members = problem(response, 500, "task-raised")
    assert members["detail"] == f"RuntimeError: broken: {len(SECRET)}"
    assert SECRET not in response.text


async def test_a_process_that_dies_is_500(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "die"))
    problem(await http.get(f"/die/{job['id']}"), 500, "task-crashed")


async def test_a_cancelled_job_is_410(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", delay="60")
    assert (await http.post(f"/jobs/{job['id']}/cancel")).status_code == 202
    problem(await http.get(f"/echo/{job['id']}"), 410, "job-gone")


async def test_a_purged_job_is_410(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "echo"))
    assert (await http.delete(f"/echo/{job['id']}")).status_code == 204
    problem(await http.get(f"/echo/{job['id']}"), 410, "job-gone")
    problem(await http.get(f"/jobs/{job['id']}"), 410, "job-gone")
    problem(await http.get(f"/jobs/{job['id']}/events"), 410, "job-gone")


@pytest.mark.parametrize("job_id", [UNKNOWN, "x", "%00", "%ED%A0%80", "é", "a%20b", "x" * 3000])
async def test_an_id_that_was_never_known_is_404(http: httpx2.AsyncClient, job_id: str) -> None:
    problem(await http.get(f"/echo/{job_id}"), 404, "job-not-found")
    problem(await http.get(f"/jobs/{job_id}"), 404, "job-not-found")


async def test_another_tasks_job_is_404(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "echo"))
    problem(await http.get(f"/words/{job['id']}"), 404, "job-not-found")
    problem(await http.delete(f"/words/{job['id']}"), 404, "job-not-found")
    assert (await http.get(f"/echo/{job['id']}")).status_code == 200


async def test_a_result_of_null_is_a_result(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "echo", {"value": None}))
    response = await http.get(f"/echo/{job['id']}")
    assert (response.status_code, response.content) == (200, b"null")


async def test_what_is_left_of_a_record_is_no_job(http: httpx2.AsyncClient, service: Service) -> None:
    if service.redis_url is None:
        pytest.skip("nobody else writes into fakeredis")
    key = f"jobstream:job:{UNKNOWN}"
    with redis.Redis.from_url(service.redis_url) as client:
        client.hset(key, "progress", "{}")  # what a write after the record's expiry leaves
        try:
            problem(await http.get(f"/echo/{UNKNOWN}"), 404, "job-not-found")
            problem(await http.get(f"/jobs/{UNKNOWN}"), 404, "job-not-found")
            problem(await http.get(f"/jobs/{UNKNOWN}/events"), 404, "job-not-found")
            problem(await http.post(f"/jobs/{UNKNOWN}/cancel"), 404, "job-not-found")
        finally:
            client.delete(key)
