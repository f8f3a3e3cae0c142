"""Tickets: what they open, for how long, and what else they do not."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from starlette.requests import HTTPConnection

from jobstream import keys
from jobstream.caller import Caller, Scope
from jobstream.job import Job
from jobstream.redis import RedisSource
from jobstream_api.auth.redact import ACCESS_LOG, redact_access_log
from jobstream_api.auth.tickets import Tickets
from tests.acceptance import wire
from tests.acceptance.guarded import Guarded, guarded


@pytest.fixture
async def service(source: RedisSource) -> AsyncIterator[Guarded]:
    async with guarded(source) as service:
        yield service


async def ticket_for(service: Guarded, job: Job, key: str) -> wire.Json:
    async with service.http(key) as http:
        response = await http.post(f"/jobs/{job.id}/ticket")
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    made: wire.Json = response.json()
    return made


async def status_of(service: Guarded, url: str, **headers: str) -> int:
    """The status of a GET without a key."""
    async with service.http(**headers) as http, http.stream("GET", url) as response:
        return response.status_code


async def test_a_ticket_opens_what_there_is_to_watch_of_its_job(service: Guarded) -> None:
    job = await service.queue.submit("quiet", {}, owner="acme")
    made = await ticket_for(service, job, await service.key("acme", Scope.READ))
    assert made["url"] == f"/jobs/{job.id}/events?ticket={made['ticket']}"
    for path in (f"/jobs/{job.id}/events", f"/jobs/{job.id}", f"/quiet/{job.id}"):
        assert await status_of(service, f"{path}?ticket={made['ticket']}") in (200, 202)
    async with service.http(Accept="text/html") as http:
        page = await http.get(f"/quiet/{job.id}?ticket={made['ticket']}")
    assert f'src="/jobs/{job.id}?ticket={made["ticket"]}"' in page.text
    assert " cancel" not in page.text.partition("<job-progress")[2].partition(">")[0]


async def test_a_ticket_opens_nothing_else(service: Guarded) -> None:
    job = await service.queue.submit("quiet", {}, owner="acme")
    other = await service.queue.submit("quiet", {}, owner="acme")
    made = await ticket_for(service, job, await service.key("acme"))
    async with service.http() as http:
        for method, path in [
            ("GET", f"/jobs/{other.id}/events"),
            ("GET", f"/jobs/{other.id}"),
            ("GET", "/jobs"),
            ("POST", f"/jobs/{job.id}/cancel"),
            ("POST", f"/jobs/{job.id}/ticket"),
            ("DELETE", f"/jobs/{job.id}"),
            ("POST", "/quiet"),
        ]:
            wire.problem(await http.request(method, path, params={"ticket": made["ticket"]}), 401, "unauthorized")
    assert (await service.queue.get(job.id)).version == 1


async def test_a_bad_ticket_is_401_even_with_a_good_key(service: Guarded) -> None:
    job = await service.queue.submit("quiet", {}, owner="acme")
    key = await service.key("acme")
    text = (await ticket_for(service, job, key))["ticket"]
    head, body, signature = text.split(".")
    secret = await service.client.get(keys.TICKET_SECRET)
    claims = {"job": job.id, "owner": "acme", "exp": int(time.time()) + 60}
    ticket_type = {"typ": "jobstream-ticket"}
    bad = {
        "": "is not valid",
        "x": "is not valid",
        f"{head}.{body}.{signature[::-1]}": "is not valid",
        f"{head}.{body}.": "is not valid",
        jwt.encode(claims, "another secret that is long enough", headers=ticket_type): "is not valid",
        jwt.encode(claims, "", algorithm="none", headers=ticket_type): "is not valid",
        jwt.encode(claims, secret): "is not valid",  # signed, but as something else
        jwt.encode(claims | {"exp": int(time.time()) - 1}, secret, headers=ticket_type): "has expired",
        jwt.encode(claims | {"job": "another"}, secret, headers=ticket_type): "is for something else",
        jwt.encode(claims | {"filter": []}, secret, headers=ticket_type): "is for something else",
    }
    async with service.http(key) as http:
        for ticket, why in bad.items():
            response = await http.get(f"/jobs/{job.id}", params={"ticket": ticket})
            assert wire.problem(response, 401, "unauthorized")["detail"] == f"The ticket {why}"
            assert 'error="invalid_token"' in response.headers["www-authenticate"]
        for claim in (claims, claims | {"owner": "globex"}):
            ticket = jwt.encode(claim, secret, headers=ticket_type)
            response = await http.get(f"/jobs/{job.id}", params={"ticket": ticket})
            assert response.status_code == (200 if claim["owner"] == "acme" else 404)


async def test_nobody_gets_a_ticket_for_a_job_that_they_do_not_see(service: Guarded) -> None:
    job = await service.queue.submit("quiet", {}, owner="acme")
    async with service.http(await service.key("globex")) as http:
        wire.problem(await http.post(f"/jobs/{job.id}/ticket"), 404, "job-not-found")


async def test_an_admins_ticket_opens_one_job_of_anybody(service: Guarded) -> None:
    job = await service.queue.submit("quiet", {}, owner="acme")
    other = await service.queue.submit("quiet", {})
    made = await ticket_for(service, job, await service.key("ops", Scope.ADMIN))
    assert await status_of(service, f"/jobs/{job.id}?ticket={made['ticket']}") == 200
    assert await status_of(service, f"/jobs/{other.id}?ticket={made['ticket']}") == 401


async def test_a_filters_ticket_names_the_filter(service: Guarded) -> None:
    async with service.http(await service.key("acme")) as http:
        made = (await http.post("/events/ticket?task=quiet&tag=a")).json()
        assert (await http.post("/events/ticket?status=nonsense")).status_code == 422
    url = urlsplit(made["url"])
    assert url.path == "/events"
    assert parse_qs(url.query) == {"task": ["quiet"], "tag": ["a"], "ticket": [made["ticket"]]}
    claims = jwt.decode(made["ticket"], options={"verify_signature": False})
    assert claims["filter"] == [["tag", "a"], ["task", "quiet"]]
    assert claims["owner"] == "acme"
    ticket = made["ticket"]
    assert await status_of(service, made["url"]) == 200
    assert await status_of(service, f"/events?ticket={ticket}&tag=a&task=quiet&last_event_id=") == 200
    for query in ("", "&task=quiet", "&task=quiet&tag=b", "&task=quiet&tag=a&tag=b", "&task=quiet&tag=a&status=failed"):
        assert await status_of(service, f"/events?ticket={ticket}{query}") == 401
    job = await service.queue.submit("quiet", {}, owner="acme")
    assert await status_of(service, f"/jobs/{job.id}?ticket={ticket}") == 401


@pytest.mark.parametrize("secret", [None, "a secret of the deployment's own, long enough"])
async def test_a_ticket_holds_on_every_replica_for_its_time(source: RedisSource, secret: str | None) -> None:
    now = time.time()
    client = source.client()
    makes = Tickets(client, secret, lifetime=60, clock=lambda: now)
    reads = Tickets(client, secret, lifetime=5, clock=lambda: now + 59)
    late = Tickets(client, secret, lifetime=5, clock=lambda: now + 61)
    ticket = await makes.for_job("j", Caller("acme", frozenset({Scope.READ})))
    assert ticket.expires_at.timestamp() == int(now + 60)
    assert (await reads.caller(ticket.text, _asking_for("j"))).tenant == "acme"
    with pytest.raises(Exception, match="expired"):
        await late.caller(ticket.text, _asking_for("j"))
    await client.aclose()


def _asking_for(job_id: str) -> HTTPConnection:
    return HTTPConnection({"type": "http", "query_string": b"", "path_params": {"job_id": job_id}})


async def test_an_access_log_shows_no_ticket(caplog: pytest.LogCaptureFixture) -> None:
    redact_access_log()
    redact_access_log()
    log = logging.getLogger(ACCESS_LOG)
    with caplog.at_level(logging.INFO, ACCESS_LOG):
        log.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/jobs/1/events?ticket=abc.def.ghi&x=1", "1.1", 200)
        log.info("GET /jobs/1/events?a=1&ticket=abc.def.ghi")
    assert "abc" not in caplog.text
    assert "/jobs/1/events?ticket=***&x=1" in caplog.text
    assert "/jobs/1/events?a=1&ticket=***" in caplog.text
