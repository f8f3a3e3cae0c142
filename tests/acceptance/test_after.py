"""`after` over HTTP, by the clients and on the command line."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from jobstream.client import Client, Rejected, SyncClient
from jobstream.fake import FakeSource
from tests.acceptance.guarded import guarded
from tests.acceptance.service import Service
from tests.acceptance.wire import Puppet, done, problem, submit

UNKNOWN = "01AAAAAAAAAAAAAAAAAAAAAAAA"


async def test_a_job_runs_after_others(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    first, quick = await submit(http, "puppet", puppet.input), await submit(http, "echo")
    second = await submit(http, "echo", {"value": 2}, after=f"{first['id']},{quick['id']}")
    assert (second["status"], second["after"], second["run_at"]) == ("scheduled", [first["id"], quick["id"]], None)
    repeated = await http.post("/echo", json={}, params={"after": [first["id"], quick["id"]]})
    assert repeated.json()["after"] == second["after"]
    puppet.do("end 1")
    assert (await done(http, second))["result"] == 2
    assert (await done(http, repeated.json()))["status"] == "succeeded"


async def test_what_comes_after_a_failure_says_which(http: httpx2.AsyncClient) -> None:
    first = await submit(http, "refuse")
    second = await done(http, await submit(http, "echo", after=first["id"]))
    assert (second["status"], second["attempt"]) == ("failed", 0)
    members = problem(await http.get(second["links"]["result"]), 424, "predecessor-failed")
    assert members["detail"] == f"Job {first['id']} failed"
    assert (await http.get(members["type"])).status_code == 200
    problem(await http.post(f"/jobs/{second['id']}/retry"), 409, "job-conflict")


@pytest.mark.parametrize("wrong", [UNKNOWN, "two words", "\u00e9"])
async def test_a_predecessor_that_is_not_there_is_pointed_at(http: httpx2.AsyncClient, wrong: str) -> None:
    members = problem(await http.post("/echo", json={}, params={"after": wrong}), 422, "invalid-parameter")
    assert [error["pointer"] for error in members["errors"]] == ["/after"]
    items = [{"task": "echo"}, {"task": "echo", "after": [0, wrong]}]
    members = problem(await http.post("/jobs/batch", json=items), 422)
    assert [error["pointer"] for error in members["errors"]] == ["/1/after"]


@pytest.mark.parametrize("wrong", [[1], [True], [1.5], "0", [None]])
async def test_a_batch_names_earlier_jobs_by_their_numbers_only(http: httpx2.AsyncClient, wrong: object) -> None:
    members = problem(await http.post("/jobs/batch", json=[{"task": "echo"}, {"task": "echo", "after": wrong}]), 422)
    assert {error["pointer"][:8] for error in members["errors"]} == {"/1/after"}


async def test_the_job_of_another_tenant_is_one_that_is_not_there() -> None:
    async with guarded(FakeSource()) as service:
        theirs = await service.queue.submit("quiet", {}, owner="acme")
        async with service.http(await service.key("globex")) as http:
            answers = [
                problem(await http.post("/quiet", json={}, params={"after": one}), 422) for one in (theirs.id, UNKNOWN)
            ]
        assert answers[0]["detail"].replace(theirs.id, UNKNOWN) == answers[1]["detail"]
        async with service.http(await service.key("acme")) as http:
            assert (await submit(http, "quiet", after=theirs.id))["status"] == "scheduled"


async def test_both_clients_hand_in_batches_and_orders(service: Service) -> None:
    async with Client(service.url) as client:
        batch = await client.submit_batch([{"task": "echo"}, {"task": "echo", "after": [0]}])
        later = await client.submit("echo", {"value": 3}, after=[batch.id])
        assert await later.result(20) == 3
        ended = await batch.wait(20)
        assert (ended.status, ended.progress.counts.succeeded, len(batch)) == ("succeeded", 2, 2)
        assert [job.id async for job in client.batch(batch.id).jobs()] == [handle.id for handle in batch[:]]
        events = [event async for event in batch.events()]
        assert events[-1].batch == ended
        assert events[-1].job is None
        waiting = await client.submit_batch([{"task": "echo", "delay": 3600}])
        assert (await waiting.cancel()).status == "cancelled"
        assert [job.status async for job in waiting.jobs(status="cancelled")] == ["cancelled"]
        with pytest.raises(Rejected):
            await client.submit("echo", after=[UNKNOWN])

    def blocking() -> None:
        with SyncClient(service.url) as client:
            batch = client.submit_batch([{"task": "echo"}, {"task": "echo", "after": [0]}])
            assert client.submit("echo", {"value": 4}, after=[batch[1].id]).result(20) == 4
            assert batch.wait(20) == client.batch(batch.id).get()
            assert [event.event for event in batch.events()][-1] == "done"
            assert [job.id for job in batch.jobs()] == [handle.id for handle in batch]
            assert client.submit_batch([{"task": "echo", "delay": 3600}]).cancel().done

    await asyncio.to_thread(blocking)
