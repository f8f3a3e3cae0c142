"""`POST /jobs/cancel` and `POST /jobs/retry`: all jobs that match, by a job; whose, and by whom."""

from __future__ import annotations

import httpx2
import pytest

from jobstream.bulk import CANCEL_JOBS, RETRY_JOBS
from jobstream.caller import Scope
from jobstream.fake import FakeSource
from jobstream_workers.bulk import cancel_jobs, retry_jobs
from tests.acceptance.guarded import announce, guarded
from tests.acceptance.wire import done, pointers, problem, submit


async def test_all_jobs_with_a_tag_are_cancelled(http: httpx2.AsyncClient) -> None:
    jobs = [await submit(http, "echo", delay="3600", tags="bulk-mine") for _ in range(5)]
    other = await submit(http, "echo", delay="3600", tags="bulk-other")
    response = await http.post("/jobs/cancel?tag=bulk-mine")
    assert response.status_code == 202
    order = response.json()
    assert order["task"] == CANCEL_JOBS
    assert response.headers["location"] == order["links"]["result"] == f"/cancel-jobs/{order['id']}"
    last = await done(http, order)
    assert last["result"] == {"matched": 5, "changed": 5, "skipped": 0}
    assert last["progress"]["current"] == 5
    for job in jobs:
        assert (await http.get(job["links"]["self"])).json()["status"] == "cancelled"
    assert (await http.get(other["links"]["self"])).json()["status"] == "scheduled"
    await http.delete(other["links"]["self"])


async def test_all_failed_jobs_that_say_a_word_run_again(http: httpx2.AsyncClient) -> None:
    failed = [await done(http, await submit(http, "refuse", {"code": "bulkword"})) for _ in range(2)]
    again = await done(http, (await http.post("/jobs/retry?task=refuse&q=bulkword")).json())
    assert again["task"] == RETRY_JOBS
    assert again["result"] == {"matched": 2, "changed": 2, "skipped": 0}
    for job in failed:
        assert (await http.get(job["links"]["self"])).json()["version"] > job["version"]


@pytest.mark.parametrize("path", ["/jobs/cancel", "/jobs/retry", "/jobs/cancel?all=false", "/jobs/cancel?tag="])
async def test_no_filter_at_all_is_refused(http: httpx2.AsyncClient, path: str) -> None:
    members = problem(await http.post(path), 422, "invalid-parameter")
    assert "all=true" in str(members["errors"])


@pytest.mark.parametrize(
    "path",
    ["/jobs/cancel?status=failed", "/jobs/retry?status=running", "/jobs/cancel?colour=red", "/jobs/cancel?q=%20"],
)
async def test_a_filter_that_makes_no_sense_is_refused(http: httpx2.AsyncClient, path: str) -> None:
    problem(await http.post(path), 422, "invalid-parameter")


async def test_the_tasks_themselves_refuse_an_empty_filter(http: httpx2.AsyncClient) -> None:
    for task in (CANCEL_JOBS, RETRY_JOBS):
        for data in ({}, {"all": False}):
            problem(await http.post(f"/{task}", json=data), 422, "invalid-input")
    batch = await http.post("/jobs/batch", json=[{"task": CANCEL_JOBS, "input": {}}])
    assert "/0/input" in pointers(problem(batch, 422))


async def test_the_same_order_under_a_key_is_one_job(http: httpx2.AsyncClient) -> None:
    key = {"Idempotency-Key": '"bulk"'}
    first, again = [await http.post("/jobs/cancel?tag=bulk-key", headers=key) for _ in range(2)]
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    problem(await http.post("/jobs/cancel?tag=bulk-other-key", headers=key), 422, "idempotency-mismatch")
    await done(http, first.json())


async def test_orders_are_their_tenants_and_need_their_scope_on_every_way() -> None:
    async with guarded(FakeSource()) as service:
        await announce(service.client, [cancel_jobs, retry_jobs])
        submitter = await service.key("acme", Scope.SUBMIT, Scope.READ)
        canceller = await service.key("acme", Scope.CANCEL)
        async with service.http(submitter) as http:
            await http.get("/tasks")  # which looks at what is announced
            problem(await http.post("/jobs/cancel?all=true"), 403, "forbidden")
            problem(await http.post(f"/{CANCEL_JOBS}", json={"all": True}), 403, "forbidden")
            batch = [{"task": CANCEL_JOBS, "input": {"all": True}}]
            problem(await http.post("/jobs/batch", json=batch), 403, "forbidden")
            assert (await http.post("/jobs/retry?all=true")).json()["owner"] == "acme"
            problem(await http.post("/jobs/retry?all=true&owner=globex"), 403, "forbidden")
        async with service.http(canceller) as http:
            order = (await http.post("/jobs/cancel?all=true")).json()
            assert order["owner"] == "acme"
            problem(await http.post("/jobs/retry?all=true"), 403, "forbidden")
        await service.queue.cancel(order["id"])
        async with service.http(submitter) as http:
            problem(await http.post(f"/jobs/{order['id']}/retry"), 403, "forbidden")
        async with service.http(await service.key("ops", Scope.ADMIN)) as http:
            assert (await http.post("/jobs/cancel?all=true")).json()["owner"] is None
            assert (await http.post("/jobs/cancel?all=true&owner=globex")).json()["owner"] == "globex"
            assert (await http.post(f"/{CANCEL_JOBS}", json={"all": True})).json()["owner"] == "ops"


async def test_an_order_stands_before_what_it_cancels() -> None:
    async with guarded(FakeSource(), auth="open") as service, service.http() as http:
        job = await service.queue.submit("quiet", {})
        order = (await http.post("/jobs/cancel?all=true")).json()
        assert await service.client.zrange("arq:queue", 0, -1) == [order["id"].encode(), job.id.encode()]
