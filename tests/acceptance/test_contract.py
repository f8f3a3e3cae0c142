"""Single lines of the wire contract that no other test is about, over real HTTP."""

from __future__ import annotations

import httpx2
import redis

from jobstream.redis import UrlSource
from tests.acceptance.guarded import guarded
from tests.acceptance.service import Service
from tests.acceptance.wire import done, problem, submit


async def test_a_whole_service_may_answer_303(real_source: UrlSource) -> None:
    async with guarded(real_source, auth="open", accepted_status=303) as service, service.http() as http:
        response = await http.post("/quiet", json={})
        job = response.json()
        assert response.status_code == 303
        assert response.headers["location"] == f"/quiet/{job['id']}"
        assert response.headers["retry-after"] == "1"
        assert (await http.get("/tasks/quiet")).json()["accepted_status"] == 303
        responses = (await http.get("/openapi.json")).json()["paths"]["/quiet"]["post"]["responses"]
        assert "303" in responses
        assert "202" not in responses


async def test_a_page_of_the_list_has_fifty_jobs(real_source: UrlSource) -> None:
    async with guarded(real_source, auth="open") as service, service.http() as http:
        await http.post("/jobs/batch", json=[{"task": "quiet"}] * 51)
        page = await http.get("/jobs?task=quiet")
        assert len(page.json()["jobs"]) == 50
        assert page.links["next"]["url"].endswith(page.json()["next_cursor"])
        assert len((await http.get(page.links["next"]["url"])).json()["jobs"]) == 1


async def test_an_idempotency_key_is_kept_for_a_day(real_source: UrlSource) -> None:
    async with guarded(real_source, auth="open") as service, service.http() as http:
        await http.post("/quiet", json={}, headers={"Idempotency-Key": '"k"'})
        [key] = await service.client.keys("jobstream:idempotency:*")
        assert 86_000 < await service.client.ttl(key) <= 86_400


async def test_a_tombstone_stands_for_a_day(http: httpx2.AsyncClient, service: Service) -> None:
    job = await submit(http, "echo", {"value": 1}, delay="600")
    assert (await http.delete(f"/echo/{job['id']}")).status_code == 204
    for url in (job["links"]["self"], job["links"]["result"], f"/jobs/{job['id']}/status", f"/jobs/{job['id']}/result"):
        problem(await http.get(url), 410, "job-gone")
    if service.redis_url is not None:
        with redis.Redis.from_url(service.redis_url) as client:
            assert 86_000 < client.ttl(f"jobstream:gone:{job['id']}") <= 86_400


async def test_the_monitor_of_a_failed_job_is_200_with_the_whole_error(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "refuse"))
    monitor = await http.get(job["links"]["self"])
    assert (monitor.status_code, monitor.json()["status"], monitor.json()["done"]) == (200, "failed", True)
    assert "retry-after" not in monitor.headers
    error = monitor.json()["error"]
    assert {"type", "title", "status", "detail", "code", "retryable", "attempt"} <= error.keys()
    result = await http.get(job["links"]["result"])
    assert result.status_code == error["status"]
    members = problem(result, error["status"], error["code"])
    assert members["instance"] == job["links"]["result"]
    assert members["detail"] == error["detail"]


async def test_the_result_by_the_jobs_own_name_is_the_same(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "words", {"text": "a b"})
    waited = await http.get(f"/jobs/{job['id']}/result", headers={"Prefer": "wait=20"})
    result = await http.get(job["links"]["result"])
    assert (waited.status_code, waited.json()) == (200, result.json())
    assert waited.headers["content-location"] == job["links"]["result"]
    assert waited.headers["preference-applied"] == "wait=20"
    etag = {"If-None-Match": result.headers["etag"]}
    for url in (job["links"]["result"], f"/jobs/{job['id']}/result", job["links"]["self"], f"/jobs/{job['id']}/status"):
        again = await http.get(url, headers=etag)
        assert (again.status_code, again.content) == (304, b"")


async def test_the_catalogue_says_what_a_task_may_use(http: httpx2.AsyncClient) -> None:
    for task in (await http.get("/tasks")).json()["tasks"]:
        limits = {
            "timeout",
            "ttl",
            "max_attempts",
            "max_running",
            "queue",
            "workers",
            "input_schema",
            "output_schema",
            "summary",
        }
        assert limits <= task.keys()
        assert (await http.get(f"/tasks/{task['name']}")).json() == task
