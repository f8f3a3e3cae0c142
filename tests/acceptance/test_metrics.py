"""`/metrics` of the API: what waits, who watches, what was answered; never a label that a client has chosen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobstream.caller import Scope
from jobstream.redis import RedisSource, UrlSource
from jobstream_api.routes import metrics as route
from tests.acceptance.guarded import Guarded, guarded
from tests.ports import free_port


@pytest.fixture
async def service(source: RedisSource, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guarded]:
    monkeypatch.setattr(route, "FRESH_SECONDS", 0)
    async with guarded(source) as running:
        yield running


async def scrape(service: Guarded, credentials: str | None) -> dict[str, float]:
    """Samples by name and labels' values: `jobstream_jobs_due default`."""
    async with service.http(credentials) as http:
        answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        " ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_it_says_what_waits_and_what_was_answered(service: Guarded) -> None:
    scraper, key = await service.key("ops", Scope.METRICS), await service.key("acme")
    before = await scrape(service, scraper)
    async with service.http(key) as http:
        first = (await http.post("/quiet", json={"text": "a"})).json()
        await http.post("/quiet", json={"text": "b"})
        await http.post("/jobs/batch", json=[{"task": "quiet", "input": {"text": "c"}}] * 3)
        await http.get(f"/jobs/{first['id']}")
    after = await scrape(service, scraper)
    assert before["jobstream_redis_up"] == after["jobstream_redis_up"] == 1
    assert before["jobstream_jobs_due default"] == 0
    assert after["jobstream_jobs_due default"] == after["jobstream_jobs_waiting default"] == 5
    assert after["jobstream_queue_depth default"] == after["jobstream_jobs queued"] == 5
    assert 0 <= after["jobstream_oldest_waiting_seconds default"] < 60
    assert after["jobstream_jobs_due webhooks"] == 0
    assert after["jobstream_workers"] == 1
    assert after["jobstream_jobs_submitted_total quiet"] == 5
    assert after["jobstream_http_requests_total POST /{task} 202"] == 2
    assert after["jobstream_http_requests_total GET /jobs/{job_id} 200"] == 1
    assert after["jobstream_http_seconds_count GET /jobs/{job_id}"] == 1
    assert after["jobstream_build_info api 0.1.0"] == 1


async def test_it_says_who_watches(service: Guarded) -> None:
    scraper, key = await service.key("ops", Scope.METRICS), await service.key("acme")
    async with service.http(key) as http:
        job = (await http.post("/quiet", json={})).json()
        async with http.stream("GET", f"/jobs/{job['id']}/events") as stream:
            lines = stream.aiter_lines()
            while not (await anext(lines)).startswith("event: "):
                pass
            watched = await scrape(service, scraper)
            await http.post(f"/jobs/{job['id']}/cancel")
            async for _ in lines:
                pass
    assert watched["jobstream_streams"] == watched["jobstream_watchers"] == watched["jobstream_channels"] == 1
    assert watched["jobstream_listening"] == 1
    done = await scrape(service, scraper)
    assert done["jobstream_events_heard_total"] >= 1
    assert done["jobstream_frames_told_total"] >= 1


async def test_what_clients_name_never_becomes_a_label(service: Guarded) -> None:
    scraper, key = await service.key("ops", Scope.METRICS), await service.key("tenant-canary")
    before = await scrape(service, scraper)
    async with service.http(key) as http:
        for number in range(5):
            canary = f"canary-{number}"
            await http.post(f"/{canary}", json={})
            await http.get(f"/jobs/{canary}")
            await http.get(f"/{canary}/{canary}")
            await http.get(f"/no/such/path/{canary}/at/all")
            await http.request("PROPFIND", "/jobs")
            await http.get(f"/problems/{canary}")
            await http.get(f"/static/{canary}")
            await http.post("/quiet", json={"text": canary}, headers={"Idempotency-Key": canary})
            await http.post("/quiet", json={"text": canary}, params={"tags": canary, "queue": f"{canary}"})
    after = await scrape(service, scraper)
    assert not [name for name in after if "canary" in name.lower()]
    strange = [name for name in after if name.startswith("jobstream_http_requests_total <other>")]
    assert strange, "PROPFIND is a method, and none of ours"
    assert len(after) < len(before) + 300


async def test_it_answers_while_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = UrlSource(f"redis://127.0.0.1:{free_port()}", connect_timeout=0.2)
    monkeypatch.setattr("tests.acceptance.guarded.announce", _nothing)
    async with guarded(nowhere, auth="open") as service:
        found = await scrape(service, None)
    assert found["jobstream_redis_up"] == 0
    assert "jobstream_jobs_due default" not in found


async def _nothing(*_: object) -> None:
    pass


async def test_who_asks_all_the_time_does_not_load_redis(real_source: UrlSource) -> None:
    async with guarded(real_source) as service:
        scraper = await service.key("ops", Scope.METRICS)
        await scrape(service, scraper)
        calls = "cmdstat_srandmember"
        before = (await service.client.info("commandstats"))[calls]["calls"]
        async with service.http(scraper) as http:
            answers = await asyncio.gather(*(http.get("/metrics") for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        asked = (await service.client.info("commandstats"))[calls]["calls"] - before
        assert asked < 50, "two queues, two commands each: 200 if each scrape had asked"


async def test_it_takes_a_scope_of_its_own(service: Guarded) -> None:
    async with service.http(await service.key("acme", Scope.READ)) as http:
        refused: httpx2.Response = await http.get("/metrics")
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    async with service.http(await service.key("ops", Scope.METRICS)) as http:
        assert (await http.get("/jobs")).status_code == 403
