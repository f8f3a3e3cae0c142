"""Submit: what is accepted, what the 202 or 303 says, what the query options do."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
import redis

from tests.acceptance import wire
from tests.acceptance.service import Service
from tests.acceptance.wire import done, pointers, problem, submit

JOB_FIELDS = (
    "id task queue status done version progress attempt max_attempts result error created_at run_at started_at "
    "errors finished_at expires_at worker tags owner parent after batch children links"
).split()


async def test_a_submit_answers_202_with_all_that_a_client_needs(http: httpx2.AsyncClient, service: Service) -> None:
    response = await http.post("/words", json={"text": "to be or not to be"})
    assert response.status_code == 202
    job = response.json()
    assert set(job) == set(JOB_FIELDS)
    assert (job["task"], job["status"], job["done"], job["version"], job["attempt"]) == ("words", "queued", False, 1, 0)
    assert (job["progress"], job["result"], job["error"]) == (None, None, None)
    assert len(job["id"]) == 26
    monitor, result, events = f"/jobs/{job['id']}", f"/words/{job['id']}", f"/jobs/{job['id']}/events"
    assert job["links"] == {"self": monitor, "result": result, "events": events}
    created = datetime.fromisoformat(job["created_at"])
    assert job["created_at"].endswith("Z")
    assert abs(datetime.now(UTC) - created) < timedelta(seconds=30)
    headers = response.headers
    assert headers["location"] == result
    assert headers["operation-location"] == service.url + monitor
    assert headers["link"] == f'<{monitor}>; rel="monitor", <{events}>; rel="alternate"; type="text/event-stream"'
    assert headers["retry-after"] == "1"
    assert headers["vary"] == "Prefer, Accept"
    assert headers["content-type"] == "application/json"
    assert (await done(http, job))["status"] == "succeeded"


async def test_what_was_answered_202_is_in_redis(http: httpx2.AsyncClient, service: Service) -> None:
    if service.redis_url is None:
        pytest.skip("nobody else sees fakeredis")
    job = await submit(http, "echo", {"value": 1}, delay="60")
    with redis.Redis.from_url(service.redis_url) as client:
        assert client.hget(f"jobstream:job:{job['id']}", "status") == b"scheduled"
        assert client.exists(f"arq:job:{job['id']}")
        assert client.zscore("arq:queue", job["id"])
    assert (await http.delete(f"/jobs/{job['id']}")).status_code == 204


@pytest.mark.parametrize("path", ["/see_other", "/echo"])
async def test_303_has_the_same_headers_and_body(http: httpx2.AsyncClient, service: Service, path: str) -> None:
    accept = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"} if path == "/echo" else {}
    response = await http.post(path, data={}, headers=accept)
    assert response.status_code == 303
    job = response.json()
    assert response.headers["location"] == f"{path}/{job['id']}"
    assert response.headers["operation-location"] == f"{service.url}/jobs/{job['id']}"
    assert response.headers["retry-after"] == "1"
    assert response.headers["vary"] == "Prefer, Accept"
    assert 'rel="monitor"' in response.headers["link"]
    ended = await done(http, job)
    followed = await http.get(response.headers["location"])
    assert (followed.status_code, followed.json()) == (200, ended["result"])


async def test_a_task_without_input_takes_an_empty_post(http: httpx2.AsyncClient) -> None:
    response = await http.post("/echo")
    assert response.status_code == 202
    assert (await done(http, response.json()))["result"] is None


async def test_a_form_is_read_by_the_tasks_schema(http: httpx2.AsyncClient) -> None:
    form = {
        "articles": ['{"name": "pen", "count": 2}', '{"name": "7"}'],
        "paid": "on",
        "colours": ["red", "green"],
        "price": "1.5",
    }
    response = await http.post("/order", data=form)
    assert response.status_code == 202, response.text
    assert (await done(http, response.json()))["result"] == {
        "articles": [{"name": "pen", "count": 2}, {"name": "7", "count": 1}],
        "paid": True,
        "colours": ["red", "green"],
        "price": 1.5,
    }


async def test_an_empty_optional_form_field_is_left_out(http: httpx2.AsyncClient) -> None:
    response = await http.post("/order", data={"articles": '{"name": "pen"}', "price": "", "paid": ""})
    assert response.status_code == 202, response.text
    ended = await done(http, response.json())
    assert (ended["result"]["price"], ended["result"]["paid"]) == (None, False)


@pytest.mark.parametrize(
    "value",
    [
        int("9" * 400),
        -int("9" * 400),
        2**64,
        1e300,
        "\0",
        "é😀",
        "",
        [[]],
        {"": {"a/b~c": None}},
        {"__exception__": "KeyError"},
        "x" * 100_000,
    ],
    ids=lambda value: f"{type(value).__name__}-{len(str(value))}",
)
async def test_any_json_value_arrives_and_comes_back_as_it_was(http: httpx2.AsyncClient, value: Any) -> None:
    ended = await done(http, await submit(http, "echo", {"value": value}))
    assert (ended["status"], ended["result"]) == ("succeeded", value)
    assert (await http.get(ended["links"]["result"])).json() == value


async def test_tags_timeout_and_ttl_are_taken_from_the_query(http: httpx2.AsyncClient) -> None:
    response = await http.post("/echo?tags=one&tags=two,three&timeout=5&ttl=3600", json={})
    ended = await done(http, response.json())
    assert ended["tags"] == ["one", "two", "three"]
    finished, expires = (datetime.fromisoformat(ended[name]) for name in ("finished_at", "expires_at"))
    assert expires - finished == timedelta(hours=1)


async def test_a_delayed_job_is_scheduled_and_then_runs(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", {"value": 1}, delay="0.2")
    assert job["status"] == "scheduled"
    due, created = (datetime.fromisoformat(job[name]) for name in ("run_at", "created_at"))
    assert due - created == timedelta(seconds=0.2)
    ended = await done(http, job)
    assert ended["status"] == "succeeded"
    assert datetime.fromisoformat(ended["started_at"]) >= due


async def test_run_at_is_a_time(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", run_at="2000-01-01T00:00:00+01:00")
    assert (await done(http, job))["status"] == "succeeded"
    job = await submit(http, "echo", run_at=(datetime.now(UTC) + timedelta(days=2)).isoformat())
    assert job["status"] == "scheduled"
    assert (await http.delete(f"/jobs/{job['id']}")).status_code == 204


async def test_a_job_waits_on_the_queue_that_was_asked_for(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", queue="nobody-listens")
    assert (job["queue"], job["status"]) == ("nobody-listens", "queued")
    assert (await http.delete(f"/jobs/{job['id']}")).status_code == 204


@pytest.mark.parametrize(
    "query",
    [
        "delay=-1",
        "delay=nan",
        "delay=inf",
        "delay=1e400",
        "delay=soon",
        "run_at=tomorrow",
        "run_at=2026-11-21T06:40:00",
        "run_at=9999-12-31T23:59:59Z",
        "delay=1&run_at=2026-11-21T06:40:00Z",
        "queue=Not%20a%20queue",
        "queue=health-check",
        "tags=%00",
        "tags=%ED%A0%80",
        "tags=" + "x" * 65,
        "tags=" + ",".join(f"t{number}" for number in range(21)),
        "timeout=0",
        "ttl=0",
        "ttl=99999999999",
        "no_such_option=1",
    ],
)
async def test_an_option_that_makes_no_sense_is_422(http: httpx2.AsyncClient, query: str) -> None:
    problem(await http.post(f"/echo?{query}", json={}), 422, "invalid-parameter")


async def test_a_422_of_the_query_points_at_the_option(http: httpx2.AsyncClient) -> None:
    members = problem(await http.post("/echo?delay=soon&wrong=1", json={}), 422)
    assert sorted(pointers(members)) == ["/delay", "/wrong"]


async def test_a_422_of_the_body_points_at_every_error(http: httpx2.AsyncClient) -> None:
    wrong = {"articles": [{"name": "pen"}, {"count": 0}], "colours": ["red", "mauve"], "paid": "maybe"}
    members = problem(await http.post("/order", json=wrong), 422, "invalid-input")
    assert sorted(pointers(members)) == ["/articles/1/count", "/articles/1/name", "/colours/1", "/paid"]
    assert all(error["detail"] for error in members["errors"])
    assert members["instance"] == "/order"
    missing = problem(await http.post("/order", json={}), 422)
    assert missing["errors"] == [{"pointer": "/articles", "detail": "field required"}]
    unknown = problem(await http.post("/echo", json={"a/b~c": 1}), 422)
    assert unknown["errors"] == [{"pointer": "/a~1b~0c", "detail": "unknown field"}]


async def test_what_a_client_sent_is_not_repeated_in_the_422(http: httpx2.AsyncClient) -> None:
    response = await http.post("/order", json={"articles": [{"name": "secret" * 100}], "paid": "secret"})
    problem(response, 422)
    assert "secret" not in response.text


@pytest.mark.parametrize("body", [[], "text", 1, None, True])
async def test_an_input_that_is_no_object_is_422(http: httpx2.AsyncClient, body: Any) -> None:
    response = await http.post("/echo", content=json.dumps(body), headers={"Content-Type": "application/json"})
    problem(response, 422, "invalid-input")


async def test_a_task_that_nobody_announced_is_404_and_names_the_near_ones(http: httpx2.AsyncClient) -> None:
    members = problem(await http.post("/wrods", json={}), 404, "unknown-task")
    assert "'words'" in members["detail"]


async def test_json_with_another_name_is_json(http: httpx2.AsyncClient) -> None:
    for media_type in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        response = await http.post("/echo", content=b'{"value": 1}', headers={"Content-Type": media_type})
        assert response.status_code == 202, response.text


async def test_a_strange_host_header_does_not_lose_the_job(http: httpx2.AsyncClient, service: Service) -> None:
    for host in (b"[", b"a b", b"[::1", b"x:y", b"\xff", b"http://evil/", b""):
        request = b"POST /echo HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        response = await wire.raw(service.url, request)
        assert response.status_code in (202, 400), (host, response.status_code, response.text)


async def test_a_record_that_is_kept_for_no_time_still_answers_the_cancel(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo", delay="60", ttl="1e-300")
    response = await http.post(f"/jobs/{job['id']}/cancel")
    assert (response.status_code, response.json()["status"]) == (202, "cancelled")
