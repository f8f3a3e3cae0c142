"""`/batches/{id}`: what a batch is doing, by every way in which a job can be followed."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect

from tests.acceptance.service import Service
from tests.acceptance.wire import Json, Puppet, done, frames, problem, until, versions

UNKNOWN = "01AAAAAAAAAAAAAAAAAAAAAAAA"


async def post(http: httpx2.AsyncClient, *items: Any) -> Json:
    response = await http.post("/jobs/batch", json=items)
    assert response.status_code == 202, response.text
    stored: Json = response.json()
    return stored


def echoes(count: int) -> list[Json]:
    return [{"task": "echo", "input": {"value": n}} for n in range(count)]


async def test_one_stream_tells_how_far_a_batch_is(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    stored = await post(http, *echoes(3), {"task": "puppet", "input": puppet.input})
    for job in stored["jobs"][:3]:
        await done(http, job)
    url = stored["links"]["events"]
    async with http.stream("GET", url) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        seen = []
        async for frame in frames(response):
            seen.append(frame)
            if frame.event == "snapshot":
                puppet.do("end 1")
    assert seen[-1].event == "done"
    named = [frame for frame in seen if frame.id is not None]
    assert versions(named) == sorted(set(versions(named)))
    first, last = named[0].data, seen[-1].data
    assert (first["id"], first["done"], first["progress"]["current"]) == (stored["id"], False, 3)
    assert first["progress"]["counts"]["succeeded"] == 3
    assert (last["status"], last["done"], last["progress"]["percent"]) == ("succeeded", True, 100)
    assert last == (await http.get(stored["links"]["self"])).json()
    again = await http.get(url, headers={"Last-Event-ID": seen[-1].id or ""})
    assert again.status_code == 204
    async with http.stream("GET", url, headers={"Last-Event-ID": named[0].id or ""}) as response:
        resumed = [frame async for frame in frames(response) if frame.id is not None]
    assert [frame.event for frame in resumed if frame.event == "done"] == ["done"]
    assert "snapshot" not in [frame.event for frame in resumed]


async def test_progress_of_a_batch_says_how_many_are_in_which_state(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    stored = await post(http, {"task": "puppet", "input": puppet.input}, {"task": "echo", "delay": 3600}, *echoes(2))
    async with http.stream("GET", stored["links"]["events"]) as response:
        stream = frames(response)
        await until(stream, "snapshot")
        cancelled = await http.post(f"/jobs/{stored['jobs'][1]['id']}/cancel")
        assert cancelled.status_code == 202
        async for frame in stream:
            if frame.event == "progress" and frame.data["counts"]["cancelled"]:
                break
    assert frame.id is None
    assert frame.data["total"] == 4
    assert sum(frame.data["counts"].values()) == 4
    await http.post(f"{stored['links']['self']}/cancel")


async def test_json_lines_and_a_websocket_say_the_same(
    http: httpx2.AsyncClient, service: Service, puppet: Puppet
) -> None:
    stored = await post(http, {"task": "puppet", "input": puppet.input})
    lines = []
    socket = f"ws{service.url.removeprefix('http')}/batches/{stored['id']}/ws"
    async with connect(socket) as websocket:
        heard = [json.loads(await websocket.recv())]
        async with http.stream(
            "GET", stored["links"]["events"], headers={"Accept": "application/x-ndjson"}
        ) as response:
            async for line in response.aiter_lines():
                lines.append(json.loads(line))
                if lines[-1]["event"] == "snapshot":
                    puppet.do("end 1")
        heard += [json.loads(message) async for message in websocket]
    assert heard[0]["event"] == "snapshot"
    assert lines[-1] == heard[-1]
    assert lines[-1]["event"] == "done"
    assert lines[-1]["data"]["status"] == "succeeded"


async def test_a_websocket_may_cancel_a_batch(http: httpx2.AsyncClient, service: Service) -> None:
    stored = await post(http, {"task": "hang-loop"}, {"task": "echo", "delay": 3600})
    async with connect(f"ws{service.url.removeprefix('http')}/batches/{stored['id']}/ws") as websocket:
        await websocket.send(json.dumps({"action": "cancel"}))
        said: Json = {}
        while said.get("event") != "done":
            said = json.loads(await websocket.recv())
    assert said["data"]["progress"]["counts"]["cancelled"] == 2


async def test_a_batch_can_be_polled_by_its_etag(http: httpx2.AsyncClient) -> None:
    stored = await post(http, {"task": "echo", "delay": 3600})
    first = await http.get(stored["links"]["self"])
    assert first.headers["etag"] == 'W/"1"'
    assert first.headers["retry-after"] == "1"
    known = {"If-None-Match": first.headers["etag"]}
    assert (await http.get(stored["links"]["self"], headers=known)).status_code == 304
    await http.post(f"/jobs/{stored['jobs'][0]['id']}/cancel")
    later = await http.get(stored["links"]["self"], headers=known | {"Prefer": "wait=20"})
    assert later.status_code == 200
    assert later.json()["status"] == "cancelled"
    assert "retry-after" not in later.headers


async def test_a_long_poll_ends_when_a_batch_moves(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    stored = await post(http, {"task": "puppet", "input": puppet.input})
    url, version = stored["links"]["self"], None
    puppet.do("end 1")
    while True:
        headers = {"Prefer": "wait=20"} | ({"If-None-Match": version} if version else {})
        response = await http.get(url, headers=headers)
        assert response.status_code == 200
        assert response.headers["etag"] != version
        version = response.headers["etag"]
        if response.json()["done"]:
            break


async def test_a_whole_batch_is_cancelled(http: httpx2.AsyncClient) -> None:
    stored = await post(http, {"task": "hang-loop"}, *[{"task": "echo", "delay": 60}] * 9)
    response = await http.post(f"/batches/{stored['id']}/cancel")
    assert response.status_code == 202, response.text
    async with http.stream("GET", stored["links"]["events"]) as stream:
        last = (await until(frames(stream), "done"))[-1].data
    assert (last["status"], last["progress"]["counts"]["cancelled"]) == ("cancelled", 10)
    assert (await http.post(f"/batches/{stored['id']}/cancel")).status_code == 200
    assert (await http.get(f"/jobs/{stored['jobs'][3]['id']}")).json()["status"] == "cancelled"


async def test_the_jobs_of_a_batch_are_listed_in_pages(http: httpx2.AsyncClient) -> None:
    stored = await post(http, *[{"task": "echo", "delay": 3600}] * 5)
    ids = [job["id"] for job in stored["jobs"]]
    await http.post(f"/jobs/{ids[2]}/cancel")
    first = await http.get(stored["links"]["jobs"], params={"limit": 3})
    rest = await http.get(first.links["next"]["url"])
    assert [job["id"] for page in (first, rest) for job in page.json()["jobs"]] == ids
    assert rest.json()["next_cursor"] is None
    some = await http.get(stored["links"]["jobs"], params={"status": "cancelled"})
    assert [job["id"] for job in some.json()["jobs"]] == [ids[2]]
    problem(await http.get(stored["links"]["jobs"], params={"cursor": "?"}), 422, "invalid-parameter")
    await http.post(f"/batches/{stored['id']}/cancel")


@pytest.mark.parametrize("path", ["", "/jobs", "/events"])
async def test_what_is_no_batch_is_not_found(http: httpx2.AsyncClient, path: str) -> None:
    stored = await post(http, {"task": "echo", "delay": 3600})
    for wrong in (UNKNOWN, stored["jobs"][0]["id"]):
        problem(await http.get(f"/batches/{wrong}{path}"), 404, "batch-not-found")
    for path in ("", "/status", "/result"):
        problem(await http.get(f"/jobs/{stored['id']}{path}"), 404, "job-not-found")
    page = await http.get(f"/echo/{stored['id']}", headers={"Accept": "text/html"})
    assert page.status_code == 404
    problem(await http.post(f"/batches/{UNKNOWN}/cancel"), 404, "batch-not-found")
    await http.post(f"/batches/{stored['id']}/cancel")


async def test_a_ticket_opens_one_batch(http: httpx2.AsyncClient) -> None:
    stored, other = await post(http, {"task": "echo", "delay": 3600}), await post(http, {"task": "echo", "delay": 3600})
    ticket = (await http.post(f"/batches/{stored['id']}/ticket")).json()
    assert ticket["url"].startswith(f"/batches/{stored['id']}/events?ticket=")
    query = {"ticket": ticket["ticket"]}
    assert (await http.get(stored["links"]["self"], params=query)).status_code == 200
    problem(await http.get(other["links"]["self"], params=query), 401)
    problem(await http.get(f"/jobs/{stored['jobs'][0]['id']}", params=query), 401)
    of_all = (await http.post("/events/ticket")).json()["ticket"]
    problem(await http.get(stored["links"]["self"], params={"ticket": of_all}), 401)
    for batch in (stored, other):
        await http.post(f"/batches/{batch['id']}/cancel")
