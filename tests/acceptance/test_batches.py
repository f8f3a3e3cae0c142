"""`POST /jobs/batch`: many jobs in one request, all or none."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx2
import pytest

from jobstream.caller import Scope
from jobstream.fake import FakeSource
from jobstream.queue import BATCH_JOBS
from tests.acceptance.guarded import guarded
from tests.acceptance.service import Service
from tests.acceptance.wire import done, pointers, problem


async def post(http: httpx2.AsyncClient, items: Any, **headers: str) -> httpx2.Response:
    return await http.post("/jobs/batch", json=items, headers=headers)


def tagged(tag: str, count: int) -> list[dict[str, Any]]:
    return [{"task": "words", "input": {"text": "a b"}, "tags": [tag]} for _ in range(count)]


async def test_a_batch_is_answered_with_all_ids_in_order_and_runs(http: httpx2.AsyncClient) -> None:
    tomorrow = (datetime.now(timezone(timedelta(hours=1))) + timedelta(days=1)).replace(microsecond=0)
    items = [
        {"task": "words", "input": {"text": "to be"}, "tags": ["batch-mixed"], "ttl": 60, "timeout": 30},
        {"task": "echo", "input": {"value": 1}, "delay": 3600, "priority": 7, "queue": "low"},
        {"task": "echo", "run_at": tomorrow.isoformat()},
    ]
    response = await post(http, items)
    assert response.status_code == 202, response.text
    batch = response.json()["id"]
    assert response.headers["location"] == f"/batches/{batch}"
    assert response.headers["operation-location"].endswith(f"/batches/{batch}")
    assert response.json()["links"] == {
        "self": f"/batches/{batch}",
        "events": f"/batches/{batch}/events",
        "jobs": f"/batches/{batch}/jobs",
    }
    assert response.headers["retry-after"] == "1"
    stored = response.json()["jobs"]
    assert [job["task"] for job in stored] == ["words", "echo", "echo"]
    assert [job["id"] for job in stored] == sorted(job["id"] for job in stored)
    jobs = [(await http.get(job["links"]["self"])).json() for job in stored]
    assert [job["links"] for job in jobs] == [job["links"] for job in stored]
    assert {job["batch"] for job in jobs} == {batch}
    assert [job["status"] for job in jobs[1:]] == ["scheduled", "scheduled"]
    assert jobs[0]["tags"] == ["batch-mixed"]
    assert jobs[1]["queue"] == "low"
    assert datetime.fromisoformat(jobs[2]["run_at"]) == tomorrow
    assert (await done(http, jobs[0]))["result"]["words"] == 2
    for job in jobs[1:]:
        await http.delete(job["links"]["self"])


async def test_the_largest_batch_is_stored_whole(http: httpx2.AsyncClient) -> None:
    items = [
        {"task": "echo", "input": {"value": n}, "delay": 3600, "tags": ["batch-largest"]} for n in range(BATCH_JOBS)
    ]
    response = await post(http, items)
    assert response.status_code == 202, response.text
    jobs = response.json()["jobs"]
    assert len({job["id"] for job in jobs}) == BATCH_JOBS
    problem(await post(http, [*items, items[0]]), 413, "payload-too-large")
    newest = (await http.get("/jobs?tag=batch-largest&limit=2")).json()["jobs"]
    assert [job["id"] for job in newest] == [jobs[-1]["id"], jobs[-2]["id"]]  # the list has the order of the batch


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"task": "words", "input": {"text": 1}}, "/3/input/text"),
        ({"task": "words", "input": {}}, "/3/input"),
        ({"task": "words", "input": 1}, "/3/input"),
        ({"task": "words", "input": {"text": "a", "files": [{"key": "../other", "name": "x"}]}}, "/3/input/files"),
        ({"task": "nobody", "input": {}}, "/3/task"),
        ({"input": {}}, "/3/task"),
        ({"task": 7}, "/3/task"),
        ({"task": "files", "input": {}}, "/3/task"),
        ({"task": "measure-one", "input": {"file": {"key": "x"}}}, "/3/task"),
        ({"task": "echo", "delay": -1}, "/3/delay"),
        ({"task": "echo", "delay": "soon"}, "/3/delay"),
        ({"task": "echo", "run_at": "2026-12-01T00:00:00"}, "/3/run_at"),
        ({"task": "echo", "priority": 101}, "/3/priority"),
        ({"task": "echo", "tags": ["two words"]}, "/3/tags"),
        ({"task": "echo", "queue": "../x"}, "/3/queue"),
        ({"task": "echo", "timeout": 0}, "/3/timeout"),
        ({"task": "echo", "soon": True}, "/3/soon"),
        ("echo", "/3"),
        (None, "/3"),
    ],
)
async def test_one_wrong_job_is_pointed_at_and_nothing_is_stored(
    http: httpx2.AsyncClient, wrong: Any, pointer: str
) -> None:
    tag = "batch-none"
    response = await post(http, [*tagged(tag, 3), wrong, *tagged(tag, 2)])
    members = problem(response, 422, "invalid-input")
    assert pointer in pointers(members)
    assert members["detail"].startswith("Nothing was stored: ")
    assert (await http.get(f"/jobs?tag={tag}")).json()["jobs"] == []


async def test_every_wrong_job_is_pointed_at_up_to_a_point(http: httpx2.AsyncClient) -> None:
    two = await post(http, [{"task": "words", "input": {"text": 1}}, {"task": "words"}])
    assert {"/0/input/text", "/1/input"} <= set(pointers(problem(two, 422)))
    many = await post(http, [{"task": "nobody"}] * 1000)
    assert len(problem(many, 422)["errors"]) == 50


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed-body"),
        (b"[{]", 400, "malformed-body"),
        (b'[{"task": "echo"}', 400, "malformed-body"),
        (b'[{"task": "\xff"}]', 400, "malformed-body"),
        (b"[" * 100_000, 400, "malformed-body"),
        (b"{}", 422, "invalid-input"),
        (b"null", 422, "invalid-input"),
        (b"[]", 422, "invalid-input"),
    ],
)
async def test_a_body_that_is_no_batch_is_refused(
    http: httpx2.AsyncClient, body: bytes, status: int, code: str
) -> None:
    response = await http.post("/jobs/batch", content=body, headers={"Content-Type": "application/json"})
    problem(response, status, code)


async def test_other_media_types_are_refused(http: httpx2.AsyncClient) -> None:
    problem(await http.post("/jobs/batch", data={"task": "echo"}), 415, "unsupported-media-type")
    problem(await http.post("/jobs/batch"), 415, "unsupported-media-type")


async def test_a_batch_under_a_key_is_stored_once(http: httpx2.AsyncClient) -> None:
    items, key = tagged("batch-once", 20), {"Idempotency-Key": '"batch"'}
    answers = [await post(http, items, **key) for _ in range(3)]
    assert len({answer.content for answer in answers}) == 1
    assert ["idempotent-replayed" in answer.headers for answer in answers] == [False, True, True]
    assert len((await http.get("/jobs?tag=batch-once")).json()["jobs"]) == 20
    problem(await post(http, items[1:], **key), 422, "idempotency-mismatch")
    reordered = [dict(reversed(item.items())) for item in items]
    assert (await post(http, reordered, **key)).content == answers[0].content  # it says the same
    one = await http.post("/words", json={"text": "a b"}, headers=key)
    assert one.status_code == 202  # the key of a single submit is another one
    assert "idempotent-replayed" not in one.headers


async def test_a_crowd_under_one_key_is_one_batch(http: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(post(http, tagged("batch-crowd", 50), **{"Idempotency-Key": '"batch-crowd"'}) for _ in range(20))
    )
    accepted = [answer for answer in answers if answer.status_code == 202]
    for answer in answers:
        if answer not in accepted:
            problem(answer, 409, "idempotency-in-flight")
    assert len({answer.content for answer in accepted}) == 1
    assert len((await http.get("/jobs?tag=batch-crowd&limit=1000")).json()["jobs"]) == 50


async def test_a_refused_batch_lets_go_of_its_key(http: httpx2.AsyncClient) -> None:
    key = {"Idempotency-Key": '"batch-refused"'}
    problem(await post(http, [{"task": "nobody"}], **key), 422)
    assert (await post(http, tagged("batch-refused", 1), **key)).status_code == 202


async def test_a_batch_has_a_limit_of_its_own() -> None:
    limits = {"max_body_bytes": 100, "max_batch_bytes": 2_000}
    async with guarded(FakeSource(), auth="open", **limits) as service, service.http() as http:
        assert (await post(http, [{"task": "quiet", "input": {"text": "x" * 1000}}])).status_code == 202
        problem(await post(http, [{"task": "quiet", "input": {"text": "x" * 2000}}]), 413, "payload-too-large")


async def test_a_batch_is_its_tenants_and_so_is_its_key() -> None:
    items = [{"task": "quiet"}, {"task": "quiet"}]
    async with guarded(FakeSource()) as service:
        ids = set()
        for tenant in ("acme", "globex"):
            async with service.http(await service.key(tenant)) as http:
                answer = await post(http, items, **{"Idempotency-Key": '"k"'})
                assert "idempotent-replayed" not in answer.headers
                ids |= {job["id"] for job in answer.json()["jobs"]}
                listed = (await http.get("/jobs")).json()["jobs"]
                assert [job["owner"] for job in listed] == [tenant, tenant]
        assert len(ids) == 4
        async with service.http(await service.key("acme", Scope.READ, Scope.CANCEL)) as http:
            problem(await post(http, items), 403, "forbidden")


async def test_the_service_answers_others_while_it_reads_a_large_batch(
    http: httpx2.AsyncClient, service: Service
) -> None:
    items = [{"task": "echo", "input": {"value": n}, "delay": 3600, "tags": ["batch-others"]} for n in range(3_000)]
    batch = asyncio.create_task(post(http, items))
    answered = 0
    while not batch.done():
        assert (await http.get("/livez")).status_code == 200
        answered += 1
    assert (await batch).status_code == 202
    assert answered > 5
