"""`/schedules`: made, changed, paused, run and deleted over HTTP, by both clients and on the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx2
import pytest
from click.testing import CliRunner, Result

from jobstream.client import Client, NotFound, Rejected, SyncClient
from jobstream_cli.main import cli
from tests.acceptance.service import Service
from tests.acceptance.wire import Json, done, pointers, problem

YEARLY = {"task": "echo", "cron": "0 0 1 1 *", "input": {"value": "ding"}}


@pytest.fixture(autouse=True)
async def none_is_left(http: httpx2.AsyncClient) -> AsyncIterator[None]:
    """The service is that of other tests, too."""
    yield
    for schedule in (await http.get("/schedules")).json()["schedules"]:
        await http.delete(schedule["links"]["self"])


async def put(
    http: httpx2.AsyncClient, name: str, body: Json, status: int = 201, headers: dict[str, str] | None = None
) -> Json:
    response = await http.put(f"/schedules/{name}", json=body, headers=headers)
    assert response.status_code == status, response.text
    schedule: Json = response.json()
    assert response.headers["etag"] == f'"{schedule["version"]}"'
    return schedule


async def test_a_schedule_is_made_once_and_shows_what_it_is(http: httpx2.AsyncClient) -> None:
    body = YEARLY | {"timezone": "Europe/Berlin", "tags": ["bells"], "priority": 3, "timeout": 5, "ttl": 60}
    made = await http.put("/schedules/nightly", json=body)
    assert made.status_code == 201
    assert made.headers["location"] == "/schedules/nightly"
    schedule = made.json()
    now = datetime.now(UTC)
    assert schedule | body == schedule
    assert (schedule["origin"], schedule["state"], schedule["version"], schedule["last"]) == ("api", "active", 1, None)
    assert schedule["next_at"] == f"{now.year}-12-31T23:00:00.000Z"
    assert await put(http, "nightly", body, 200) == schedule
    assert (await http.get("/schedules/nightly")).json() == schedule
    assert (await http.get("/schedules")).json() == {"schedules": [schedule], "next_cursor": None}
    jobs = (await http.get(schedule["links"]["jobs"])).json()["jobs"]
    waiting = [job for job in jobs if job["status"] == "scheduled"]
    assert [(job["task"], job["run_at"]) for job in waiting] == [("echo", schedule["next_at"])]
    ticks = (await http.get(schedule["links"]["next"])).json()["ticks"]
    assert len(ticks) == 10
    assert ticks[0] == schedule["next_at"]
    assert ticks[9] == f"{now.year + 9}-12-31T23:00:00.000Z"
    assert len((await http.get("/schedules/nightly/next?count=2")).json()["ticks"]) == 2


async def test_a_change_needs_the_version_that_it_names(http: httpx2.AsyncClient) -> None:
    await put(http, "versions", YEARLY, headers={"If-None-Match": "*"})
    other = YEARLY | {"cron": "0 0 2 1 *"}
    for wanted in ({"If-None-Match": "*"}, {"If-Match": '"2"'}, {"If-Match": "x"}):
        response = await http.put("/schedules/versions", json=other, headers=wanted)
        problem(response, 412, "precondition-failed")
    problem(await http.put("/schedules/none", json=other, headers={"If-Match": "*"}), 412, "precondition-failed")
    assert (await put(http, "versions", other, 200, {"If-Match": '"1"'}))["version"] == 2
    problem(await http.delete("/schedules/versions", headers={"If-Match": '"1"'}), 412, "precondition-failed")
    assert (await http.delete("/schedules/versions", headers={"If-Match": 'W/"2"'})).status_code == 204
    problem(await http.delete("/schedules/versions"), 404, "schedule-not-found")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"cron": "61 * * * *"}, "/cron"),
        ({"cron": "0 * * * * *"}, "/cron"),
        ({"cron": 5}, "/cron"),
        ({"timezone": "Europe/Atlantis"}, "/timezone"),
        ({"timezone": "../../etc/passwd"}, "/timezone"),
        ({"task": "nothing"}, "/task"),
        ({"task": "order", "input": {"articles": [{}]}}, "/input/articles/0/name"),
        ({"input": 1}, "/input"),
        ({"when": "now"}, "/when"),
        ({"priority": 101}, "/priority"),
        ({"queue": "webhooks"}, "/queue"),
        ({"tags": ["a b"]}, "/tags"),
        ({"callback_url": "http://127.0.0.1/"}, "/callback_url"),
    ],
)
async def test_what_makes_no_sense_is_refused_when_it_is_made(
    http: httpx2.AsyncClient, change: Json, pointer: str
) -> None:
    response = await http.put("/schedules/wrong", json=YEARLY | change)
    assert pointer in pointers(problem(response, 422))
    problem(await http.get("/schedules/wrong"), 404, "schedule-not-found")


async def test_a_body_or_a_name_that_is_none_is_refused(http: httpx2.AsyncClient) -> None:
    problem(await http.put("/schedules/x", content=b"{"), 415)
    problem(await http.put("/schedules/x", content=b"{", headers={"Content-Type": "application/json"}), 422)
    for name in ("Upper", "a" * 51, "a b", "-a"):
        problem(await http.put(f"/schedules/{name}", json=YEARLY), 422, "invalid-parameter")
    problem(await http.put("/schedules/task:nothing", json=YEARLY), 404, "schedule-not-found")
    problem(await http.get("/schedules?cursor=x"), 422, "invalid-parameter")


async def test_a_paused_schedule_can_still_be_run(http: httpx2.AsyncClient) -> None:
    await put(http, "paused", YEARLY)
    for _ in range(2):
        paused = (await http.post("/schedules/paused/pause")).json()
        assert (paused["state"], paused["next_at"]) == ("paused", None)
    response = await http.post("/schedules/paused/run", headers={"Idempotency-Key": "r1"})
    assert response.status_code == 202
    job = await done(http, response.json())
    assert (job["result"], job["tags"]) == ("ding", ["schedule:paused"])
    again = await http.post("/schedules/paused/run", headers={"Idempotency-Key": "r1"})
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (job["id"], "true")
    last = (await http.get("/schedules/paused")).json()["last"]
    assert (last["job"], last["status"]) == (job["id"], "succeeded")
    resumed = (await http.post("/schedules/paused/resume")).json()
    assert (resumed["state"], resumed["last"]) == ("active", last)
    assert resumed["next_at"] is not None


async def test_both_clients_know_schedules(http: httpx2.AsyncClient, service: Service) -> None:
    with SyncClient(service.url) as client:
        made = client.put_schedule("by-client", "echo", {"value": 1}, cron="0 0 1 1 *", tags=["x"])
        assert [each.name for each in client.schedules()] == ["by-client"]
        assert client.schedule("by-client") == made
        assert client.pause_schedule("by-client").state == "paused"
        assert client.resume_schedule("by-client").state == "active"
        assert client.next_ticks("by-client", count=2)[0] == made.next_at
        assert client.run_schedule("by-client").wait(20).done
        client.delete_schedule("by-client")
    async with Client(service.url) as other:
        with pytest.raises(NotFound):
            await other.schedule("by-client")
        made = await other.put_schedule("by-client", "echo", {"value": 1}, cron="0 0 1 1 *")
        with pytest.raises(Rejected):
            await other.put_schedule("by-client", "echo", cron="0 0 1 1 *", version=9)
        assert [each.name async for each in other.schedules()] == ["by-client"]
        assert await other.schedule("by-client") == made
        assert (await other.pause_schedule("by-client")).state == "paused"
        assert (await other.resume_schedule("by-client")).state == "active"
        assert (await other.next_ticks("by-client"))[0] == made.next_at
        handle = await other.run_schedule("by-client")
        assert (await handle.wait(20)).done
        await other.delete_schedule("by-client")


async def test_the_command_line_knows_schedules(http: httpx2.AsyncClient, service: Service) -> None:
    async def jobstream(*arguments: str) -> Result:
        command = ["--url", service.url, "schedules", *arguments]
        return await asyncio.to_thread(CliRunner().invoke, cli, command)

    made = await jobstream("create", "by-hand", "echo", "value=x", "--cron", "0 0 1 1 *", "--tag", "t")
    assert (made.exit_code, made.stderr) == (0, "")
    assert made.stdout.startswith("by-hand active, next at ")
    table = (await jobstream("list")).stdout.splitlines()
    assert table[1].split()[:2] == ["by-hand", "echo"]
    assert json.loads((await jobstream("list", "--json")).stdout)["name"] == "by-hand"
    assert (await jobstream("pause", "by-hand")).stdout == "by-hand paused\n"
    assert len((await jobstream("next", "by-hand", "--count", "3")).stdout.splitlines()) == 3
    job_id = (await jobstream("run", "by-hand")).stdout.strip()
    assert (await http.get(f"/jobs/{job_id}")).json()["tags"] == ["t", "schedule:by-hand"]
    assert (await jobstream("resume", "by-hand")).stdout.startswith("by-hand active")
    assert (await jobstream("delete", "by-hand")).exit_code == 0
    assert (await jobstream("delete", "by-hand")).exit_code == 4
    refused = await jobstream("create", "by-hand", "echo", "--cron", "61 * * * *")
    assert refused.exit_code == 6
    assert "no cron expression" in refused.stderr
