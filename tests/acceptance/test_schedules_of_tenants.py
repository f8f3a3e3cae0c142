"""`/schedules` where tenants are kept apart; tasks' own schedules, which are the deployment's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from jobstream import task
from jobstream.caller import Scope
from jobstream.fake import FakeSource
from tests.acceptance.guarded import Guarded, announce, guarded
from tests.acceptance.wire import problem


@task(name="nightly-cleanup", cron="30 3 * * *", timezone="Europe/Berlin")
async def nightly_cleanup(keep_days: int = 30) -> int:
    """Declares its own schedule."""
    return keep_days


@pytest.fixture
async def guarded_service() -> AsyncIterator[Guarded]:
    async with guarded(FakeSource(), max_schedules=2) as service:
        await announce(service.client, [nightly_cleanup])
        yield service


async def test_a_tasks_own_schedule_is_shown_to_admins_and_can_be_paused(guarded_service: Guarded) -> None:
    name = "/schedules/task:nightly-cleanup"
    async with guarded_service.http(await guarded_service.key("acme")) as http:
        problem(await http.get(name), 404, "schedule-not-found")
        problem(await http.post(f"{name}/pause"), 404, "schedule-not-found")
        assert (await http.get("/schedules")).json()["schedules"] == []
    async with guarded_service.http(await guarded_service.key("ops", Scope.ADMIN)) as http:
        [shown] = (await http.get("/schedules")).json()["schedules"]
        assert (shown["name"], shown["origin"], shown["state"]) == ("task:nightly-cleanup", "code", "active")
        assert (shown["cron"], shown["timezone"], shown["owner"]) == ("30 3 * * *", "Europe/Berlin", None)
        assert (await http.get(shown["links"]["self"])).json() == shown
        assert (await http.post(f"{name}/pause")).json()["state"] == "paused"
        assert (await http.post(f"{name}/resume")).json()["state"] == "active"
        job = (await http.post(f"{name}/run")).json()
        assert (job["task"], job["tags"], job["owner"]) == ("nightly-cleanup", ["cron"], None)
        assert [each["id"] for each in (await http.get(shown["links"]["jobs"])).json()["jobs"]] == [job["id"]]
        problem(await http.delete(name), 409, "schedule-conflict")
        body = {"task": "nightly-cleanup", "cron": "0 0 1 1 *"}
        problem(await http.put(name, json=body), 409, "schedule-conflict")


async def test_a_tenant_has_a_name_space_and_a_number_of_its_own(guarded_service: Guarded) -> None:
    body = {"task": "quiet", "cron": "0 0 1 1 *"}
    for tenant in ("acme", "globex"):
        async with guarded_service.http(await guarded_service.key(tenant)) as http:
            for name in ("one", "two", "two"):
                assert (await http.put(f"/schedules/{name}", json=body)).json()["owner"] == tenant
            problem(await http.put("/schedules/three", json=body), 409, "schedule-conflict")
    async with guarded_service.http(await guarded_service.key("ops", Scope.ADMIN)) as http:
        problem(await http.post("/schedules/one/pause"), 404)
        found = (await http.get("/schedules?owner=acme")).json()["schedules"]
        for each in found:
            assert (await http.get(each["links"]["self"])).json()["owner"] == "acme"
            assert (await http.get(each["links"]["next"])).status_code == 200
            jobs = (await http.get(each["links"]["jobs"])).json()["jobs"]
            assert [job["owner"] for job in jobs] == ["acme"]
        assert (await http.post("/schedules/one/pause?owner=acme")).json()["state"] == "paused"
    async with guarded_service.http(await guarded_service.key("globex")) as http:
        assert (await http.get("/schedules/one")).json()["state"] != "paused"


async def test_a_schedule_whose_task_no_worker_has_says_so(guarded_service: Guarded) -> None:
    async with guarded_service.http(await guarded_service.key("acme")) as http:
        body = {"task": "quiet", "cron": "0 0 1 1 *"}
        # The announcement of the second task has taken the place of the first one's worker.
        assert (await http.put("/schedules/orphan", json=body)).json()["state"] == "task-missing"
        soon = datetime.fromisoformat((await http.get("/schedules/orphan")).json()["next_at"])
        assert soon - datetime.now(UTC) < timedelta(days=367)
