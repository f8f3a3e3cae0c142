"""What one caller may ask of the service, over real HTTP: how fast, and how much before a queue is full."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx2
import pytest

from jobstream import keys
from jobstream.caller import Scope
from jobstream.job import JobStatus
from jobstream.limits import UNLIMITED_RATE, Rate, TenantLimits, set_limits
from jobstream.redis import RedisSource
from jobstream_workers.claim import claim
from jobstream_workers.writer import AttemptWriter, Outcome
from tests.acceptance.guarded import Guarded, guarded

BATCH = "/jobs/batch"


@pytest.fixture
async def slow(source: RedisSource) -> AsyncIterator[Guarded]:
    """A service that takes three jobs a minute of each tenant."""
    async with guarded(source, tenant_rate="3/m") as service:
        yield service


@pytest.fixture
async def small(source: RedisSource) -> AsyncIterator[Guarded]:
    """A service whose queues hold three jobs."""
    async with guarded(source, queue_depth=3) as service:
        yield service


async def stored(service: Guarded) -> int:
    """How many jobs there are."""
    return int(await service.client.zcard(keys.INDEX))


def batch(jobs: int) -> list[dict[str, object]]:
    """A body."""
    return [{"task": "quiet"}] * jobs


def is_problem(response: httpx2.Response, status: int, code: str) -> None:
    """Fail unless the answer is that problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code


async def test_a_tenant_that_submits_too_fast_is_told_when_to_come_back(slow: Guarded) -> None:
    async with slow.http(await slow.key("acme")) as http, slow.http(await slow.key("globex")) as other:
        for left in (2, 1, 0):
            response = await http.post("/quiet", json={})
            assert response.status_code == 202
            assert response.headers["ratelimit-policy"] == '"submit";q=3;w=60'
            assert re.fullmatch(rf'"submit";r={left};t=(\d+)', response.headers["ratelimit"])
        refused = await http.post("/quiet", json={})
        is_problem(refused, 429, "over-quota")
        assert refused.headers["ratelimit-policy"] == '"submit";q=3;w=60'
        assert refused.headers["ratelimit"].startswith('"submit";r=0;t=')
        assert 15 <= int(refused.headers["retry-after"]) <= 20
        assert (await other.post("/quiet", json={})).status_code == 202
        assert await stored(slow) == 4


async def test_what_was_refused_is_not_charged_and_time_gives_back(slow: Guarded) -> None:
    async with slow.http(await slow.key("acme")) as http:
        for _ in range(3):
            await http.post("/quiet", json={})
        for _ in range(5):
            is_problem(await http.post("/quiet", json={}), 429, "over-quota")
        until = float(await slow.client.get(keys.RATE + "acme") or 0)
        await slow.client.set(keys.RATE + "acme", f"{until - 20_000:.3f}", px=60_000)  # as if 20 s had passed
        assert (await http.post("/quiet", json={})).status_code == 202
        is_problem(await http.post("/quiet", json={}), 429, "over-quota")


async def test_a_batch_counts_as_its_jobs_and_comes_whole_or_not_at_all(slow: Guarded) -> None:
    async with slow.http(await slow.key("acme")) as http:
        response = await http.post(BATCH, json=batch(2))
        assert response.status_code == 202
        assert response.headers["ratelimit"].startswith('"submit";r=1;')
        refused = await http.post(BATCH, json=batch(2))
        is_problem(refused, 429, "over-quota")
        assert refused.headers["ratelimit"].startswith('"submit";r=1;')
        assert await stored(slow) == 2
        too_many = await http.post(BATCH, json=batch(4))
        is_problem(too_many, 413, "payload-too-large")
        assert "never 4 at once" in too_many.json()["detail"]
        assert (await http.post("/quiet", json={})).status_code == 202


async def test_a_request_that_is_sent_again_under_its_key_costs_nothing(slow: Guarded) -> None:
    async with slow.http(await slow.key("acme")) as http:
        for key in ('"a"', '"a"', '"b"', '"c"', '"a"', '"c"'):
            assert (await http.post("/quiet", json={}, headers={"idempotency-key": key})).status_code == 202
        is_problem(await http.post("/quiet", json={}, headers={"idempotency-key": '"d"'}), 429, "over-quota")
        assert await stored(slow) == 3


async def test_what_was_set_for_a_tenant_goes_before_the_settings(slow: Guarded) -> None:
    await set_limits(slow.client, "acme", TenantLimits(rate=Rate(1, 3600)))
    await set_limits(slow.client, "globex", TenantLimits(rate=UNLIMITED_RATE))
    async with slow.http(await slow.key("acme")) as http, slow.http(await slow.key("globex")) as other:
        first = await http.post("/quiet", json={})
        assert first.headers["ratelimit-policy"] == '"submit";q=1;w=3600'
        is_problem(await http.post("/quiet", json={}), 429, "over-quota")
        for _ in range(10):
            response = await other.post("/quiet", json={})
            assert response.status_code == 202
            assert "ratelimit" not in response.headers


async def test_a_full_queue_takes_no_more_until_there_is_room(small: Guarded) -> None:
    async with small.http(await small.key("acme")) as http:
        assert (await http.post(BATCH, json=batch(2))).status_code == 202
        is_problem(await http.post(BATCH, json=batch(2)), 503, "queue-full")
        assert await stored(small) == 2
        accepted = await http.post("/quiet", json={}, params={"delay": 60})
        refused = await http.post("/quiet", json={})
        is_problem(refused, 503, "queue-full")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["detail"] == "The queue 'default' holds 3 jobs, and may hold 3"
        is_problem(await http.post(BATCH, json=batch(4)), 413, "payload-too-large")
        assert (await http.post("/quiet", json={}, params={"queue": "other"})).status_code == 202
        await http.post(f"/jobs/{accepted.json()['id']}/cancel")
        assert (await http.post("/quiet", json={})).status_code == 202
        is_problem(await http.post("/quiet", json={}), 503, "queue-full")
        retried = await http.post(f"/jobs/{accepted.json()['id']}/retry")
        assert retried.status_code == 202  # what was accepted once is never refused


async def test_when_to_come_back_to_a_full_queue_follows_how_fast_it_is_cleared(small: Guarded) -> None:
    async with small.http(await small.key("acme")) as http:
        await http.post(BATCH, json=batch(3))
        await http.post("/quiet", json={})
        since = float(await small.client.hget(keys.FULL + "default", "since") or 0)  # type: ignore[misc]
        await small.client.hset(keys.FULL + "default", "since", str(round(since - 20_000)))  # type: ignore[misc]
        jobs, _ = await claim(small.client, queue="default", worker_id="w", slots=2, lease=60)
        refused = await http.post("/quiet", json={})
        assert 10 <= int(refused.headers["retry-after"]) <= 12  # two in 20 s
        for job in jobs:
            await AttemptWriter(small.client, job).finish(Outcome(JobStatus.SUCCEEDED, b"", b"null"), keep_arq_result=0)
        assert (await http.post(BATCH, json=batch(2))).status_code == 202


async def test_a_retry_counts_for_no_quota(slow: Guarded) -> None:
    async with slow.http(await slow.key("acme", *Scope)) as http:
        job_id = (await http.post("/quiet", json={})).json()["id"]
        await http.post(BATCH, json=batch(2))
        await http.post(f"/jobs/{job_id}/cancel")
        assert (await http.post(f"/jobs/{job_id}/retry")).status_code == 202


async def test_without_tenants_there_is_no_quota(source: RedisSource) -> None:
    async with guarded(source, tenant_rate="1/m", auth="open") as service, service.http() as http:
        for _ in range(3):
            response = await http.post("/quiet", json={})
            assert response.status_code == 202
            assert "ratelimit" not in response.headers
