"""Errors: all of them are problem+json, none shows a trace, and a refused submit leaves nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
import redis

from jobstream import keys
from tests.acceptance.service import MAX_BODY_BYTES, Service
from tests.acceptance.wire import problem, raw

JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
async def nothing_is_left(http: httpx2.AsyncClient, service: Service) -> AsyncIterator[None]:
    """Every request of these tests is refused: no key, no job and no file may come of it."""
    before = await _left(http, service)
    yield
    new = await _left(http, service) - before
    # Jobs of other tests may still be about to end: what comes of those is no fault of these.
    assert not {name for name in new if not any(job_id in name for job_id in before)}


async def _left(http: httpx2.AsyncClient, service: Service) -> set[str]:
    jobs = {job["id"] for job in (await http.get("/jobs?limit=1000")).json()["jobs"]}
    return jobs | service.stored_files() | _keys(service)


def _keys(service: Service) -> set[str]:
    """Those of jobs and of requests; others come and go with the time."""
    if service.redis_url is None:
        return set()
    kinds = (keys.RECORD, keys.LOG, keys.ARQ_JOB, keys.ARQ_RESULT, keys.TOMBSTONE, keys.IDEMPOTENCY)
    with redis.Redis.from_url(service.redis_url) as client:
        return {key.decode() for key in client.scan_iter(count=1000) if key.decode().startswith(kinds)}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"),
        ("GET", "/a/b/c"),
        ("POST", "/a/b/c"),
        ("GET", "/jobs/x/nothing"),
        ("GET", "/static/docs/nothing.js"),
        ("GET", "/static/docs/../../pyproject.toml"),
        ("GET", "/static/docs/%2e%2e/%2e%2e/METADATA"),
        ("GET", "/tasks/nothing"),
        ("GET", "/a%00b"),
        ("GET", "/%ED%A0%80"),
        ("GET", "//"),
    ],
)
async def test_what_is_not_there_is_404(http: httpx2.AsyncClient, service: Service, method: str, path: str) -> None:
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    problem(await raw(service.url, request.encode()), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/echo", {"POST"}),
        ("PUT", "/echo", {"POST"}),
        ("PUT", "/jobs", {"GET", "HEAD"}),
        ("PATCH", "/jobs/x", {"GET", "HEAD", "DELETE"}),
        ("GET", "/jobs/x/cancel", {"POST"}),
        ("POST", "/jobs/x/events", {"GET", "HEAD"}),
        ("PUT", "/echo/x", {"GET", "HEAD", "DELETE"}),
        ("DELETE", "/livez", {"GET", "HEAD"}),
        ("POST", "/tasks", {"GET", "HEAD"}),
        ("POST", "/openapi.json", {"GET", "HEAD"}),
        ("POST", "/static/docs/favicon.png", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_405_and_names_the_right_ones(
    http: httpx2.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    response = await http.request(method, path)
    problem(response, 405, "method-not-allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"value": 1} x', 400),
        (b"{'value': 1}", 400),
        (b'{"value": "\xff"}', 400),
        (b'\xff\xfe{\x00"\x00', 400),
        (b'{"value": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
        (b'{"value": NaN}', 400),
        (b'{"value": -Infinity}', 400),
        (b'{"value": 1e999}', 400),
        (b'{"value": ' + b"9" * 5_000 + b"}", 400),
        (b'{"value": "\\ud800"}', 400),
        (b'{"\\ud800": 1}', 400),
        (b'{"value": "\\udc00\\ud800"}', 400),
        (b'{"\\u0000": 1}', 422),
        (b"null", 422),
    ],
    ids=lambda value: str(value[:24]) if isinstance(value, bytes) else str(value),
)
async def test_a_body_that_is_not_json_is_refused(http: httpx2.AsyncClient, body: bytes, status: int) -> None:
    problem(await http.post("/echo", content=body, headers=JSON), status)


@pytest.mark.parametrize("depth", [100, 300, 900])
async def test_deep_json_is_refused_or_accepted_but_never_an_error_of_ours(
    http: httpx2.AsyncClient, depth: int
) -> None:
    body = b'{"animal": null, "children": [' * depth + b"]}" * depth
    response = await http.post("/tree", content=body + b"x", headers=JSON)
    problem(response, 400)
    wrong = body.replace(b"[]", b"[1]")
    assert (await http.post("/tree", content=wrong, headers=JSON)).status_code in (400, 422)


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/xml", "application/octet-stream", "multipart/mixed; boundary=x", "json", ""],
)
async def test_another_media_type_is_415(http: httpx2.AsyncClient, media_type: str) -> None:
    members = problem(
        await http.post("/echo", content=b"{}", headers={"Content-Type": media_type}), 415, "unsupported-media-type"
    )
    assert "application/json" in members["detail"]


@pytest.mark.parametrize("media_type", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
async def test_a_body_that_says_it_is_too_large_is_413_before_it_is_read(service: Service, media_type: str) -> None:
    head = (
        f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n"
    )
    problem(await raw(service.url, head.encode()), 413, "payload-too-large")


@pytest.mark.parametrize("length", [b"9" * 400, b"-1", b"1_0", b"x"])
async def test_a_content_length_that_is_no_number_is_no_error_of_ours(service: Service, length: bytes) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: " + length
    response = await raw(service.url, head + b"\r\nConnection: close\r\n\r\n")
    assert response.status_code in (400, 413)


async def test_a_body_that_turns_out_too_large_is_413(http: httpx2.AsyncClient) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 10_000 + 2):
            yield b"[" * 10_000

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces():
            yield piece

    problem(await http.post("/echo", content=stream(), headers=JSON), 413, "payload-too-large")


@pytest.mark.parametrize(
    "body",
    [b"value=%ff", b"&".join(b"value=1" for _ in range(1_001)), b"value=\xff"],
    ids=["escape", "many", "bytes"],
)
async def test_a_form_that_cannot_be_read_is_400(http: httpx2.AsyncClient, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    problem(await http.post("/echo", content=body, headers=headers), 400, "malformed-body")


@pytest.mark.parametrize(
    "body", [b"nothing=1", b"%00=1", b"value=1&a%2Fb=2", b"__proto__=1"], ids=["unknown", "nul", "slash", "proto"]
)
async def test_an_unknown_form_field_is_422(http: httpx2.AsyncClient, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    members = problem(await http.post("/echo", content=body, headers=headers), 422, "invalid-input")
    assert members["errors"][0]["detail"] == "unknown field"


async def test_a_client_that_goes_away_within_its_body_leaves_nothing(service: Service) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with pytest.raises(EOFError):  # nobody is there to be answered
        await raw(service.url, head + b'{"value"', half_close=True)


async def test_a_path_that_is_not_ascii_is_no_error_of_ours(service: Service) -> None:
    response = await raw(service.url, b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert response.status_code in (400, 404)
