"""Every route of the app, and who gets in: without a key, with a wrong one, an expired one, one that lacks the scope,
that of another tenant, and the right one. A route without a rule fails here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx2
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute, APIWebSocketRoute, iter_route_contexts
from starlette.routing import BaseRoute, Mount
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from jobstream.caller import Scope
from jobstream.fake import FakeSource
from jobstream.job import Job, job_ids, new_job_id
from jobstream.queue import Submission
from jobstream.redis import RedisSource, UrlSource
from jobstream.schedules import Definition, Found, ScheduleId, get_schedule, put_schedule
from jobstream.store import read_record
from jobstream.webhooks import deliveries, endpoints
from jobstream_api.app import create_app
from jobstream_api.auth.document import rules_of
from jobstream_api.auth.gate import Rule
from jobstream_api.settings import ApiSettings
from tests.acceptance import wire
from tests.acceptance.guarded import Guarded, guarded

PUBLIC = {
    *{"/", "/livez", "/readyz", "/openapi.json", "/docs", "/redoc", "/favicon.ico"},
    *{"/problems", "/problems/{code}", "/static/{name}"},
}
"""What everybody may ask. None of it says anything about a job."""

MOUNTED = {"/static/docs"}

UNKNOWN = "01AAAAAAAAAAAAAAAAAAAAAAAA"


class Case(NamedTuple):
    """A route and one of its methods."""

    method: str
    path: str
    rule: Rule | None

    def url(self, job_id: str, webhook_id: str = "", delivery_id: str = "", *, batch_id: str = "") -> str:
        path = self.path.replace("{task:task}", "quiet").replace("{task}", "quiet").replace("{job_id}", job_id)
        path = path.replace("{schedule_name}", "nightly?owner=acme") if self.path.endswith("{schedule_name}") else path
        path = path.replace("{schedule_name}", "nightly") + ("?owner=acme" if "{schedule_name}/" in self.path else "")
        path = path.replace("{batch_id}", batch_id)
        path = path.replace("{file}", "1")
        return path.replace("{webhook_id}", webhook_id).replace("{delivery_id}", delivery_id)

    @property
    def of_a_job(self) -> bool:
        return "{job_id}" in self.path

    @property
    def of_a_schedule(self) -> bool:
        return "{schedule_name}" in self.path

    @property
    def of_a_batch(self) -> bool:
        return "{batch_id}" in self.path

    @property
    def of_a_webhook(self) -> bool:
        return "{webhook_id}" in self.path or "{delivery_id}" in self.path


def routes() -> list[BaseRoute]:
    app = create_app(ApiSettings(auth="on"), FakeSource())
    return [context.original_route for context in iter_route_contexts(app.routes)]


def cases() -> list[Case]:
    """The routes that have a rule; those that have none are the affair of the first test."""
    return [
        Case(method, route.path, rule)
        for route in routes()
        if isinstance(route, APIRoute)
        for rule in rules_of(route)[:1]
        for method in sorted(route.methods or ())
    ]


SOCKETS = [
    Case("WebSocket", route.path, rule)
    for route in routes()
    if isinstance(route, APIWebSocketRoute)
    for rule in rules_of(route)[:1]
]
GUARDED = [case for case in cases() if case.rule is not None]


in_one_loop = pytest.mark.asyncio(loop_scope="module")


def name(case: Case) -> str:
    return f"{case.method} {case.path}"


def test_every_route_has_one_rule() -> None:
    for route in routes():
        if isinstance(route, Mount):
            assert route.path in MOUNTED
        else:
            assert isinstance(route, APIRoute | APIWebSocketRoute), route
            assert len(rules_of(route)) == 1, f"{route.path} must declare who may use it: see jobstream_api.auth.gate"
            if rules_of(route) == [None]:
                assert route.path in PUBLIC


def test_the_matrix_is_not_empty() -> None:
    assert {(case.method, case.path) for case in GUARDED} >= {
        ("GET", "/jobs"),
        ("GET", "/jobs/{job_id}/events"),
        ("GET", "/events"),
        ("POST", "/{task:task}"),
        ("DELETE", "/{task:task}/{job_id}"),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["redis", "fakeredis"])
async def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """One for all of these tests: each has a job and keys of its own."""
    if request.param == "fakeredis":
        source: RedisSource = FakeSource()
    else:
        source = UrlSource(request.getfixturevalue("redis_server").url, kind="child")
        with source.sync_client() as client:
            client.flushall()
    async with guarded(source, files_dir=tmp_path_factory.mktemp("files")) as service:
        yield service


async def job_of(service: Guarded, owner: str | None) -> Job:
    """A job with a file, in a batch."""
    batch_id = new_job_id()
    _, job_id = job_ids(batch_id, 2)
    async with service.files.create(job_id, 1, name="a", content_type=None) as writer:
        await writer.write(b"x")
    submission = Submission("quiet", {}, owner=owner, files=[writer.file.model_dump()])
    await service.queue.submit_batch([submission], owner=owner, batch_id=batch_id)
    return await service.queue.get(job_id)


async def webhook_of(service: Guarded, owner: str) -> tuple[str, str]:
    """A tenant's only endpoint, and a delivery to it, by their ids."""
    for old in await endpoints.find_endpoints(service.client, owner=owner):
        await endpoints.delete(service.client, old)
    fields = {"url": "http://192.0.2.1/", "events": ["job.failed"]}
    endpoint = await endpoints.register(service.client, owner=owner, fields=fields)
    return endpoint.id, (await deliveries.send_test(service.client, endpoint)).id


async def schedule_of(service: Guarded, owner: str) -> Found:
    definition = Definition(task="quiet", cron="0 0 1 1 *")
    found, _ = await put_schedule(service.client, ScheduleId(owner, "nightly"), definition, most=1, words=0)
    return found


async def ask(
    service: Guarded, case: Case, job_id: str, key: str | None, webhook: tuple[str, str] = ("", "")
) -> httpx2.Response:
    """The answer; of a stream its beginning."""
    if case.of_a_webhook and webhook == ("", ""):
        webhook = await webhook_of(service, "acme")
    if case.of_a_schedule:
        await schedule_of(service, "acme")
    batch_id = (await read_record(service.client, job_id) or {}).get(b"batch", UNKNOWN.encode()).decode()
    async with service.http(key) as http:
        body: wire.Json | None = {} if case.method == "POST" else None
        async with http.stream(case.method, case.url(job_id, *webhook, batch_id=batch_id), json=body) as response:
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                response.read = lambda: b""  # type: ignore[method-assign]
            else:
                await response.aread()
            return response


def refused(case: Case, response: httpx2.Response, status: int, code: str) -> None:
    assert response.headers["www-authenticate"].startswith('Bearer realm="jobstream"')
    if case.method == "HEAD":
        assert response.status_code == status
    else:
        wire.problem(response, status, code)


@in_one_loop
@pytest.mark.parametrize("case", GUARDED, ids=name)
class TestEveryGuardedRoute:
    async def test_without_a_key_nobody_gets_in(self, service: Guarded, case: Case) -> None:
        job = await job_of(service, "acme")
        response = await ask(service, case, job.id, None)
        refused(case, response, 401, "unauthorized")
        assert "error=" not in response.headers["www-authenticate"]
        assert (await service.queue.get(job.id)).version == 1

    async def test_a_wrong_key_is_no_key(self, service: Guarded, case: Case) -> None:
        job = await job_of(service, "acme")
        good = await service.key("acme")
        near = good[:-1] + ("A" if good[-1] != "A" else "B")
        for key in (near, "jsk_0123456789abcdef_" + "x" * 43, "jsk_", "guess", "a.b.c"):
            refused(case, await ask(service, case, job.id, key), 401, "unauthorized")
        assert (await service.queue.get(job.id)).version == 1

    async def test_an_expired_key_is_no_key(self, service: Guarded, case: Case) -> None:
        job = await job_of(service, "acme")
        expired = await service.key("acme", lifetime=0)
        refused(case, await ask(service, case, job.id, expired), 401, "unauthorized")
        assert (await service.queue.get(job.id)).version == 1

    async def test_a_key_without_the_scope_opens_nothing(self, service: Guarded, case: Case) -> None:
        assert case.rule is not None
        if (needed := case.rule.scope) is None:
            return  # every caller will do
        job = await job_of(service, "acme")
        others = [scope for scope in Scope if scope not in (needed, Scope.ADMIN)]
        response = await ask(service, case, job.id, await service.key("acme", *others))
        refused(case, response, 403, "forbidden")
        assert f'scope="{needed}"' in response.headers["www-authenticate"]
        assert (await service.queue.get(job.id)).version == 1

    async def test_the_right_key_gets_in(self, service: Guarded, case: Case) -> None:
        assert case.rule is not None
        keys = [await service.key("acme", case.rule.scope or Scope.READ), await service.key("ops", Scope.ADMIN)]
        for key in keys:
            job = await job_of(service, "acme")
            assert (await ask(service, case, job.id, key)).status_code not in (401, 403, 404, 410, 500)

    async def test_a_job_of_another_tenant_is_one_that_never_was(self, service: Guarded, case: Case) -> None:
        if not case.of_a_job:
            return  # what it shows of others is tested below
        job, unknown = await job_of(service, "acme"), "01AAAAAAAAAAAAAAAAAAAAAAAA"
        nobodys = await job_of(service, None)
        key = await service.key("globex")
        answers = [await ask(service, case, job_id, key) for job_id in (job.id, nobodys.id, unknown)]
        shapes = [
            (
                answer.status_code,
                answer.text.replace(job_id, unknown),
                [(name, value) for name, value in answer.headers.items() if name not in ("date", "x-request-id")],
            )
            for answer, job_id in zip(answers, (job.id, nobodys.id, unknown), strict=True)
        ]
        assert shapes[0] == shapes[1] == shapes[2]
        assert answers[0].status_code == 404
        assert (await service.queue.get(job.id)).version == 1
        assert (await service.queue.get(nobodys.id)).version == 1


@in_one_loop
@pytest.mark.parametrize("case", [case for case in GUARDED if case.of_a_batch], ids=name)
async def test_a_batch_of_another_tenant_is_one_that_never_was(service: Guarded, case: Case) -> None:
    job = await job_of(service, "acme")
    assert job.batch is not None
    key = await service.key("globex")
    theirs, none = [await ask(service, case, job_id, key) for job_id in (job.id, UNKNOWN)]
    assert (theirs.status_code, none.status_code) == (404, 404)
    assert theirs.text.replace(job.batch, UNKNOWN) == none.text
    assert (await service.queue.get(job.id)).version == 1


@in_one_loop
@pytest.mark.parametrize("case", [case for case in GUARDED if case.of_a_webhook], ids=name)
async def test_a_webhook_of_another_tenant_is_one_that_never_was(service: Guarded, case: Case) -> None:
    theirs, unknown = await webhook_of(service, "acme"), ("wh_" + "0" * 24, "01AAAAAAAAAAAAAAAAAAAAAAAA")
    key = await service.key("globex", Scope.READ, Scope.WEBHOOKS)
    answers = [await ask(service, case, "", key, webhook) for webhook in (theirs, unknown)]
    if case.method != "PATCH":  # without a body it is not understood, whosever it is: the ids are not looked at
        assert [answer.status_code for answer in answers] == [404, 404]
    texts = [
        answer.text.replace(webhook[0], "WEBHOOK").replace(webhook[1], "DELIVERY")
        for answer, webhook in zip(answers, (theirs, unknown), strict=True)
    ]
    assert texts[0] == texts[1]
    assert [each.id for each in await endpoints.find_endpoints(service.client, owner="acme")] == [theirs[0]]


@in_one_loop
@pytest.mark.parametrize("case", [case for case in GUARDED if case.of_a_schedule], ids=name)
async def test_a_schedule_of_another_tenant_is_one_that_never_was(service: Guarded, case: Case) -> None:
    before = (await schedule_of(service, "acme")).record
    body = {"task": "quiet", "cron": "0 0 2 1 *"} if case.method == "PUT" else None
    urls = (case.url(""), case.url("").replace("acme", "nobody"))
    async with service.http(await service.key("globex")) as http:
        answers = [await http.request(case.method, url, json=body) for url in urls]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].text == answers[1].text
    after = (await get_schedule(service.client, ScheduleId("acme", "nightly"))).record
    assert after == before


@in_one_loop
async def test_no_list_shows_a_schedule_of_another_tenant(service: Guarded) -> None:
    await schedule_of(service, "times")
    await schedule_of(service, "clocks")
    for query in ("", "?owner=times", "?limit=1"):
        async with service.http(await service.key("times")) as http:
            page = (await http.get(f"/schedules{query}")).json()
        assert [each["owner"] for each in page["schedules"]] == ["times"]
        assert page["next_cursor"] is None
    async with service.http(await service.key("times")) as http:
        assert (await http.get("/schedules?owner=clocks")).json() == {"schedules": [], "next_cursor": None}
    async with service.http(await service.key("ops", Scope.ADMIN)) as http:
        owners = {each["owner"] for each in (await http.get("/schedules")).json()["schedules"]}
        assert owners >= {"times", "clocks"}


@in_one_loop
async def test_no_list_shows_a_webhook_of_another_tenant(service: Guarded) -> None:
    mine, _ = await webhook_of(service, "hooks")
    await webhook_of(service, "others")
    async with service.http(await service.key("hooks")) as http:
        assert [each["id"] for each in (await http.get("/webhooks")).json()["webhooks"]] == [mine]


@in_one_loop
async def test_two_tenants_callbacks_are_not_signed_alike(service: Guarded) -> None:
    secrets = []
    for tenant in ("left", "right"):
        async with service.http(await service.key(tenant, Scope.WEBHOOKS)) as http:
            secrets += (await http.get("/webhooks/secret")).json()["secrets"]
    assert len(set(secrets)) == 2
    async with service.http(await service.key("left", Scope.WEBHOOKS)) as http:
        rotated = (await http.post("/webhooks/secret/rotate?overlap=60")).json()["secrets"]
        assert rotated[1:] == secrets[:1]
        assert (await http.get("/webhooks/secret")).json()["secrets"] == rotated
        assert (await http.post("/webhooks/secret/rotate?overlap=0")).json()["secrets"] not in (rotated, secrets[:1])
    async with service.http(await service.key("right", Scope.WEBHOOKS)) as http:
        assert (await http.get("/webhooks/secret")).json()["secrets"] == secrets[1:]


@in_one_loop
async def test_no_list_shows_a_job_of_another_tenant(service: Guarded) -> None:
    mine = await service.queue.submit("quiet", {"text": "a word"}, owner="lists")
    other = await service.queue.submit("quiet", {"text": "a word"}, owner="others")
    for query in ("", "?status=queued", "?task=quiet", "?owner=lists", "?limit=1", "?q=word"):
        async with service.http(await service.key("lists")) as http:
            page = (await http.get(f"/jobs{query}")).json()
        assert [job["id"] for job in page["jobs"]] == [mine.id]
        assert page["next_cursor"] is None
    async with service.http(await service.key("lists")) as http:
        assert (await http.get("/jobs?owner=others")).json() == {"jobs": [], "next_cursor": None}
    async with service.http(await service.key("ops", Scope.ADMIN)) as http:
        everything = (await http.get("/jobs")).json()["jobs"]
        assert {job["id"] for job in everything} >= {mine.id, other.id}
        page = (await http.get("/jobs?owner=others")).json()
        assert [job["id"] for job in page["jobs"]] == [other.id]


@in_one_loop
async def test_no_stream_tells_of_a_job_of_another_tenant(service: Guarded) -> None:
    for admitted, key in ((False, await service.key("listens")), (True, await service.key("ops", Scope.ADMIN))):
        other, mine = await job_of(service, "others"), await job_of(service, "listens")
        seen = set()
        async with service.http(key) as http, http.stream("GET", "/events?task=quiet") as response:
            async for frame in wire.frames(response):
                if frame.event == "listed":
                    await service.queue.purge(other.id)
                    await service.queue.purge(mine.id)
                elif frame.event not in ("comment", "retry"):
                    seen.add((frame.event, frame.data["job"]))
                if frame.event == "gone" and frame.data["job"] == mine.id:
                    break
        for event in ("snapshot", "done", "gone"):
            assert (event, mine.id) in seen
            assert ((event, other.id) in seen) is admitted


@in_one_loop
async def test_a_submitted_job_is_the_tenants(service: Guarded) -> None:
    async with service.http(await service.key("acme")) as http:
        job = await wire.submit(http, "quiet")
    assert job["owner"] == "acme"
    assert (await service.queue.get(job["id"])).owner == "acme"


@in_one_loop
async def test_the_same_idempotency_key_of_two_tenants_is_two_jobs(service: Guarded) -> None:
    ids = set()
    for tenant in ("acme", "globex"):
        for _ in range(2):
            async with service.http(await service.key(tenant), **{"Idempotency-Key": '"k"'}) as http:
                ids.add((await http.post("/quiet", json={})).json()["id"])
    assert len(ids) == 2


@in_one_loop
async def test_the_page_of_another_tenants_job_is_one_that_never_was(service: Guarded) -> None:
    job, unknown = await job_of(service, "acme"), "01AAAAAAAAAAAAAAAAAAAAAAAA"
    async with service.http(await service.key("globex"), Accept="text/html") as http:
        pages = [await http.get(f"/quiet/{job_id}") for job_id in (job.id, unknown)]
        assert [page.status_code for page in pages] == [404, 404]
        assert pages[0].text.replace(job.id, unknown) == pages[1].text
    async with service.http(await service.key("acme"), Accept="text/html") as http:
        assert (await http.get(f"/quiet/{job.id}")).status_code == 202
    async with service.http(None, Accept="text/html") as http:
        assert (await http.get(f"/quiet/{job.id}")).status_code == 401


@in_one_loop
async def test_the_stream_of_all_jobs_tells_of_no_other_tenants(service: Guarded) -> None:
    mine, other = await job_of(service, "streams"), await job_of(service, "stranger")
    async with service.http(await service.key("streams")) as http, http.stream("GET", "/events") as response:
        async for frame in wire.frames(response):
            if frame.event == "listed":
                await service.queue.cancel(other.id)
                await service.queue.cancel(mine.id)
            if frame.id or frame.event in ("snapshot", "progress"):
                assert frame.data["job"] in (None, mine.id)
            if frame.event == "done":
                return
    raise AssertionError("the stream has ended")


async def closed_with(service: Guarded, path: str, key: str | None, *, ticket: str | None = None) -> int | None:
    """The code with which a WebSocket is closed at once; None: it says something first, and stays open."""
    url = service.url.replace("http://", "ws://") + path + (f"?ticket={ticket}" if ticket else "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with asyncio.timeout(10), connect(url, additional_headers=headers) as socket:
        try:
            await socket.recv()
        except ConnectionClosed:
            return socket.close_code
        return None


@in_one_loop
@pytest.mark.parametrize("case", SOCKETS, ids=name)
async def test_every_websocket_lets_in_whom_its_rule_names(service: Guarded, case: Case) -> None:
    assert case.rule is not None
    assert case.rule.scope is Scope.READ
    assert case.of_a_job or case.of_a_batch
    job, other = await job_of(service, "acme"), await job_of(service, "acme")

    def url(found: Job) -> str:
        return case.url(found.id, batch_id=found.batch or "")

    good = await service.key("acme", Scope.READ)
    near = good[:-1] + ("A" if good[-1] != "A" else "B")
    for key in (None, near, await service.key("acme", lifetime=0)):
        assert await closed_with(service, url(job), key) == 4401
    for key in (await service.key("acme", Scope.SUBMIT, Scope.CANCEL),):
        assert await closed_with(service, url(job), key) == 4403
    for key in (good, await service.key("ops", Scope.ADMIN)):
        assert await closed_with(service, url(job), key) is None
    stranger = await service.key("globex")
    for path in (url(job), case.url(UNKNOWN, batch_id=UNKNOWN)):
        assert await closed_with(service, path, stranger) == 4404
    async with service.http(good) as http:
        ticket = (await http.post(url(job).replace("/ws", "/ticket"))).json()["ticket"]
    assert await closed_with(service, url(job), None, ticket=ticket) is None
    assert await closed_with(service, url(other), None, ticket=ticket) == 4401
    assert await closed_with(service, url(job), None, ticket=ticket[:-3]) == 4401
    assert (await service.queue.get(job.id)).version == 1


@in_one_loop
async def test_who_may_only_read_cancels_nothing_by_websocket(service: Guarded) -> None:
    for scopes, cancels in (([Scope.READ], False), ([Scope.READ, Scope.CANCEL], True)):
        job = await job_of(service, "acme")
        url = f"{service.url.replace('http://', 'ws://')}/jobs/{job.id}/ws"
        headers = {"Authorization": f"Bearer {await service.key('acme', *scopes)}"}
        async with asyncio.timeout(10), connect(url, additional_headers=headers) as socket:
            await socket.send('{"action":"cancel"}')
            async for message in socket:
                said = json.loads(message)
                if said["event"] in ("problem", "done"):
                    assert (said["event"] == "done") is cancels
                    break
        assert (await service.queue.get(job.id)).done is cancels
