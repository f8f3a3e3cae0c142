"""Bytes that no client of ours would send, over real HTTP: refused or accepted, and never a 5xx."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.acceptance.service import Service

EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HEADER = st.lists(st.sampled_from([9, *range(32, 127), *range(128, 256)]), max_size=80).map(lambda v: bytes(v).strip())
"""What a client can be made to send."""
PART = st.binary(max_size=40)
MULTIPART = st.lists(
    st.sampled_from(
        [
            b"--b\r\n",
            b"--b--\r\n",
            b"\r\n",
            b'Content-Disposition: form-data; name="files"; filename="a"\r\n\r\n',
            b'Content-Disposition: form-data; name="label"\r\n\r\n',
            b"Content-Type: text/plain\r\n",
        ]
    )
    | PART,
    max_size=12,
).map(b"".join)


@pytest.fixture
def client(service: Service) -> Iterator[httpx2.Client]:
    """Used in a thread of its own: hypothesis knows no coroutines."""
    with httpx2.Client(base_url=service.url, timeout=20) as client:
        yield client


def _fine(response: httpx2.Response) -> None:
    assert response.status_code < 500, (response.status_code, response.text)


async def test_headers_of_any_bytes(client: httpx2.Client) -> None:
    names = st.sampled_from(
        [b"Prefer", b"Idempotency-Key", b"If-None-Match", b"Accept", b"X-Request-Id", b"Content-Type"]
    )

    @EXAMPLES
    @given(name=names, value=HEADER)
    def check(name: bytes, value: bytes) -> None:
        headers = [(name, value)]
        _fine(client.post("/echo", content=b"{}", headers=headers))
        _fine(client.get("/jobs/nothing", headers=headers))

    await asyncio.to_thread(check)


async def test_last_event_ids_and_cursors_of_any_bytes(client: httpx2.Client) -> None:
    @EXAMPLES
    @given(value=HEADER, text=st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_=-]{1,60}", fullmatch=True))
    def check(value: bytes, text: str) -> None:
        _fine(client.get("/jobs/nothing/events", headers=[(b"Last-Event-ID", value)]))
        _fine(client.get("/jobs", params={"cursor": text}))
        _fine(client.get("/jobs/nothing/events", params={"last_event_id": text}))

    await asyncio.to_thread(check)


async def test_tickets_of_any_text(client: httpx2.Client) -> None:
    """Those that were tampered with, too: none of them opens anything."""
    job = client.post("/echo?delay=600", json={}).json()["id"]
    good = client.post(f"/jobs/{job}/ticket").json()["ticket"]
    near = st.tuples(st.integers(0, len(good) - 2), st.sampled_from("-_.A0z=")).map(
        lambda change: good[: change[0]] + change[1] + good[change[0] + 1 :]
    )

    @EXAMPLES
    @given(text=near | st.text(min_size=1, max_size=80) | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True))
    def check(text: str) -> None:
        for path in (f"/jobs/{job}", f"/jobs/{job}/events", "/events"):
            if text != good:
                assert client.get(path, params={"ticket": text}).status_code == 401, text

    assert client.get(f"/jobs/{job}", params={"ticket": good}).status_code == 200
    await asyncio.to_thread(check)
    assert client.delete(f"/jobs/{job}").status_code == 204


async def test_multipart_bodies_of_any_bytes(client: httpx2.Client) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    @EXAMPLES
    @given(body=MULTIPART)
    def check(body: bytes) -> None:
        _fine(client.post("/measure?delay=600&tags=fuzz", content=body, headers=headers))

    await asyncio.to_thread(check)
    for job in client.get("/jobs?tag=fuzz&limit=1000").json()["jobs"]:
        assert client.delete(job["links"]["self"]).status_code == 204
