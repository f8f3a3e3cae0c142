"""What every answer has: request ids, headers that keep browsers safe, HEAD, Vary; and proxies before the service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from jobstream.embedded import ChildRedis
from jobstream.errors import wire_errors
from jobstream.redis import RedisSource
from tests.acceptance.guarded import guarded
from tests.acceptance.service import Service
from tests.acceptance.wire import done, problem, raw, submit

HTML = {"Accept": "text/html"}
PAGES = ["/docs", "/redoc", "/problems", "/problems/job-gone"]


async def test_every_problem_has_a_page_and_its_type_leads_there(http: httpx2.AsyncClient) -> None:
    listed = (await http.get("/problems")).json()["problems"]
    assert {kind["code"] for kind in listed} == {error.code for error in wire_errors()}
    for kind in listed:
        assert kind["title"]
        assert kind["advice"], kind["code"]
        page = await http.get(kind["type"], headers=HTML)
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["vary"] == "Accept"
        assert kind["code"] in page.text
        as_json = await http.get(kind["type"])
        assert as_json.json() == kind
        assert as_json.headers["vary"] == "Accept"
    problem(await http.get("/problems/nothing"), 404, "not-found")
    assert "job-gone" in (await http.get("/problems", headers=HTML)).text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/jobs/nothing", 404),
        ("GET", "/nowhere/at/all", 404),
        ("PUT", "/jobs", 405),
        ("POST", "/words", 415),
        ("POST", "/nothing", 404),
        ("GET", "/jobs?cursor=x", 422),
    ],
)
async def test_the_type_of_a_problem_leads_to_a_page(
    http: httpx2.AsyncClient, method: str, path: str, status: int
) -> None:
    members = problem(await http.request(method, path, content=b"x" if method == "POST" else None), status)
    assert (await http.get(members["type"])).json()["title"] == members["title"]


async def test_a_tasks_own_code_is_a_section_of_one_page(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "refuse", {"code": "no luck"}))
    assert job["error"]["type"] == "/problems/task-error#no%20luck"
    assert (await http.get(job["error"]["type"])).json()["code"] == "task-error"


async def test_what_has_get_has_head(http: httpx2.AsyncClient) -> None:
    job = await done(http, await submit(http, "words", {"text": "a"}))
    paths = [
        "/",
        "/openapi.json",
        "/docs",
        "/redoc",
        "/livez",
        "/readyz",
        "/tasks",
        "/tasks/words",
        "/jobs",
        "/problems",
    ]
    paths += ["/problems/job-gone", *job["links"].values(), f"/jobs/{job['id']}/status", f"/jobs/{job['id']}/result"]
    waiting = await submit(http, "echo", delay="60")
    paths += waiting["links"].values()
    paths += ["/jobs/nothing", "/words/nothing", "/tasks/nothing", "/nowhere/at/all", "/echo"]
    changing = {"date", "x-request-id", "transfer-encoding", "retry-after"}
    for path in paths:
        async with asyncio.timeout(10), http.stream("GET", path) as got:
            expected = {name: value for name, value in got.headers.items() if name not in changing}
        head = await http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert {name: value for name, value in head.headers.items() if name not in changing} == expected, path
    await http.delete(waiting["links"]["self"])


async def test_a_request_keeps_its_id_if_it_is_sane(http: httpx2.AsyncClient) -> None:
    for given in ("0af7651916cd43dd8448eb211c80319c", "a.b_c:d/e+f=g@h-1"):
        assert (await http.get("/livez", headers={"X-Request-Id": given})).headers["x-request-id"] == given
    made = set()
    for given in ("", "a b", "é", "x" * 129, "<script>", "a\tb"):
        response = await http.get("/nowhere", headers=[(b"X-Request-Id", given.encode())])
        assert response.headers["x-request-id"] != given
        made.add(response.headers["x-request-id"])
    assert len(made) == 6


async def test_every_answer_keeps_browsers_safe(http: httpx2.AsyncClient) -> None:
    for path in ["/livez", "/nowhere", "/jobs", "/openapi.json", *PAGES]:
        response = await http.get(path, headers=HTML)
        assert response.headers["x-content-type-options"] == "nosniff", path
        assert response.headers["referrer-policy"] == "same-origin", path
        assert response.headers["x-frame-options"] == "DENY", path
        policy = response.headers.get("content-security-policy", "")
        is_page = response.headers["content-type"].startswith("text/html")
        assert is_page == (path in PAGES)
        assert ("default-src 'none'" in policy) == is_page, path
        assert "unsafe-inline" not in policy.partition("style-src")[0], path


async def test_no_other_origin_is_let_in_unless_it_is_named(http: httpx2.AsyncClient) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    for response in (
        await http.get("/livez", headers=origin),
        await http.options("/words", headers={**origin, "Access-Control-Request-Method": "POST"}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]


async def test_forwarded_headers_of_strangers_mean_nothing(source: RedisSource) -> None:
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil"}
    async with guarded(source) as service, service.http(await service.key("acme"), **said) as http:
        response = await http.post("/quiet", json={}, headers={"Forwarded": "host=evil.example;proto=https"})
        assert response.headers["operation-location"] == f"{service.url}/jobs/{response.json()['id']}"


async def test_the_scheme_is_believed_when_a_trusted_proxy_says_it(source: RedisSource) -> None:
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    async with (
        guarded(source, trusted_proxies="10.0.0.1,127.0.0.0/8") as service,
        service.http(await service.key("acme"), **said) as http,
    ):
        response = await http.post("/quiet", json={})
        secure = service.url.replace("http://", "https://")
        assert response.headers["operation-location"] == f"{secure}/jobs/{response.json()['id']}"


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory, service_redis: ChildRedis) -> Iterator[Service]:
    """A service behind a proxy that takes `/tools` off its paths, and that lets one origin in."""
    service = Service(tmp_path_factory.mktemp("placed"), redis_url=service_redis.url)
    try:
        service.start_api(
            JOBSTREAM_PUBLIC_URL="https://example.com/tools/",
            JOBSTREAM_CORS_ORIGINS='["https://app.example.com"]',
            JOBSTREAM_TRUSTED_PROXIES="127.0.0.1",
        )
        service.start_worker()
        service.wait_until(lambda: service.knows("words"), "the worker is not there")
        yield service
    finally:
        service.close()


async def test_behind_a_prefix_every_link_leads_there(placed: Service) -> None:
    async with httpx2.AsyncClient(base_url=placed.url, timeout=20) as http:
        response = await http.post("/words", json={"text": "a"})
        job = response.json()
        assert response.headers["operation-location"] == f"https://example.com/tools/jobs/{job['id']}"
        assert response.headers["location"] == f"/tools/words/{job['id']}"
        assert response.headers["link"].startswith(f"</tools/jobs/{job['id']}>")
        assert job["links"]["events"] == f"/tools/jobs/{job['id']}/events"
        # A proxy that leaves the prefix where it is will do as well.
        for path in (f"/jobs/{job['id']}/events", job["links"]["events"]):
            frames = (await http.get(path)).text
            assert f'"self":"/tools/jobs/{job["id"]}"' in frames
        failed = await http.post("/refuse", json={}, headers={"Prefer": "wait=20"})
        assert problem(failed, 422)["type"] == "/tools/problems/task-error#refused"
        assert problem(await http.get("/a/b/c"), 404)["type"] == "/tools/problems/not-found"
        for path in ("/docs", "/redoc"):
            assert "/tools/openapi.json" in (await http.get(path)).text
        assert (await http.get("/", headers=HTML)).headers["location"] == "/tools/docs"
        assert (await http.get("/openapi.json")).json()["servers"] == [{"url": "/tools"}]
        assert '"/tools/problems/job-gone"' in (await http.get("/problems", headers=HTML)).text


async def test_a_named_origin_is_let_in_and_may_read_the_headers(placed: Service) -> None:
    origin = {"Origin": "https://app.example.com"}
    async with httpx2.AsyncClient(base_url=placed.url, timeout=20) as http:
        response = await http.post("/echo?delay=60", json={}, headers=origin)
        assert response.headers["access-control-allow-origin"] == origin["Origin"]
        exposed = response.headers["access-control-expose-headers"].lower().split(", ")
        assert {"location", "operation-location", "retry-after", "etag", "x-request-id"} <= set(exposed)
        assert "Origin" in response.headers["vary"]
        assert {"Prefer", "Accept"} <= set(response.headers["vary"].split(", "))
        asked = {**origin, "Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "prefer"}
        assert (await http.options("/jobs/x", headers=asked)).headers["access-control-allow-methods"]
        await http.delete(f"/jobs/{response.json()['id']}")
        stranger = await http.get("/livez", headers={"Origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in stranger.headers


async def test_what_was_accepted_is_answered_when_the_process_ends(tmp_path: Path, service_redis: ChildRedis) -> None:
    service = Service(tmp_path, redis_url=service_redis.url)
    try:
        api = service.start_api()
        service.start_worker()
        service.wait_until(lambda: service.knows("echo"), "the worker is not there")
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(
            b"POST /echo?delay=60 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        async with asyncio.timeout(20):
            await reader.readuntil(b"\r\n\r\n")  # 100: the request is being read
            api.terminate()
            await takes_nobody(service)
            writer.write(b"{}")
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 202 ")
        writer.close()
        await asyncio.to_thread(api.wait, 20)
        service.start_api()
        location = next(line for line in head.decode().split("\r\n") if line.startswith("location:")).split()[1]
        async with httpx2.AsyncClient(base_url=service.url) as http:
            assert (await http.get(location)).status_code == 202
            await http.delete(location)
    finally:
        service.close()


async def takes_nobody(service: Service) -> None:
    """Return when the process takes no new connection."""
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError, EOFError):
        while True:
            await raw(service.url, request)
