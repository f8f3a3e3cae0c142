"""Both clients and files: uploads from what is open, downloads that go on where they were cut and are checked."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from jobstream.client import Rejected, UnexpectedResult, calls
from jobstream.client.transfer import opened
from tests.clients import Connect, connect
from tests.unit.stub_service import Answer, StubService, answer, job

__all__ = ["connect"]

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def service() -> Iterator[StubService]:
    with StubService() as service:
        yield service


def entry(name: str = "a.bin", role: str = "result", **fields: JsonValue) -> dict[str, JsonValue]:
    return {
        "name": name,
        "size": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "content_type": None,
        "role": role,
        "url": "/jobs/j1/files/1",
        **fields,
    }


def has(service: StubService, *files: dict[str, JsonValue]) -> None:
    service.on("GET", "/jobs/j1/files", answer(200, {"files": list(files)}))


def sent(content: bytes, *, status: str = "200 OK", whole: int | None = None) -> Answer:
    """An answer with this content, cut when `whole` says that there should be more."""
    length = len(content) if whole is None else whole
    head = f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    return Answer(head.encode() + content)


async def test_the_file_that_the_result_is_is_fetched_under_its_name(
    connect: Connect, service: StubService, tmp_path: Path
) -> None:
    has(service, entry("input.bin", "input", url="/jobs/j1/files/0"), entry("../../report.csv"))
    service.on("GET", "/jobs/j1/files/1", sent(CONTENT))
    seen: list[tuple[int, int]] = []
    async with connect(service.url) as client:
        path = await client.job("j1").download(to=tmp_path, on_progress=lambda *at: seen.append(at))
    assert path == tmp_path / "report.csv"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert os.listdir(tmp_path) == ["report.csv"]


async def test_a_download_that_is_cut_goes_on_where_it_was(
    connect: Connect, service: StubService, tmp_path: Path
) -> None:
    has(service, entry())
    service.on(
        "GET",
        "/jobs/j1/files/1",
        sent(CONTENT[:5000], whole=len(CONTENT)),
        sent(CONTENT[5000:7000], status="206 Partial Content", whole=len(CONTENT) - 5000),
        sent(CONTENT[7000:], status="206 Partial Content"),
    )
    async with connect(service.url) as client:
        await client.job("j1").download("a.bin", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == CONTENT
    ranges = [request.headers.get("range") for request in service.seen("GET", "/jobs/j1/files/1")]
    assert ranges == [None, "bytes=5000-", "bytes=7000-"]


async def test_who_sends_all_of_it_again_is_understood(connect: Connect, service: StubService, tmp_path: Path) -> None:
    has(service, entry())
    service.on("GET", "/jobs/j1/files/1", sent(CONTENT[:5000], whole=len(CONTENT)), sent(CONTENT))
    async with connect(service.url) as client:
        path = await client.job("j1").download(to=tmp_path)
    assert path.read_bytes() == CONTENT


async def test_a_link_is_followed_without_the_token(connect: Connect, service: StubService, tmp_path: Path) -> None:
    with StubService() as bucket:
        has(service, entry())
        link = answer(303, None, {"Location": f"{bucket.url}/signed"})
        service.on("GET", "/jobs/j1/files/1", link)
        bucket.on("GET", "/signed", sent(CONTENT))
        async with connect(service.url, token="secret") as client:
            await client.job("j1").download(to=tmp_path)
        assert "authorization" not in bucket.requests[0].headers


async def test_what_arrives_damaged_is_not_kept(connect: Connect, service: StubService, tmp_path: Path) -> None:
    has(service, entry())
    (tmp_path / "a.bin").write_text("older")
    service.on("GET", "/jobs/j1/files/1", sent(bytes(len(CONTENT))))
    async with connect(service.url) as client:
        with pytest.raises(UnexpectedResult, match="SHA-256"):
            await client.job("j1").download(to=tmp_path)
    assert (tmp_path / "a.bin").read_text() == "older"
    assert os.listdir(tmp_path) == ["a.bin"]


async def test_a_file_that_is_not_there_is_said(connect: Connect, service: StubService, tmp_path: Path) -> None:
    has(service, entry("a"), entry("b"))
    problem: JsonValue = {"title": "no", "status": 500, "code": "file-missing"}
    service.on("GET", "/jobs/j1/files/1", answer(500, problem))
    async with connect(service.url) as client:
        for name in (None, "c"):
            with pytest.raises(LookupError, match="'a', 'b'"):
                await client.job("j1").download(name, tmp_path)
        with pytest.raises(Rejected, match="no"):
            await client.job("j1").download("a", tmp_path)
        assert [file.name for file in await client.job("j1").files()] == ["a", "b"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["..", ".", "/", "...."])
async def test_no_name_leads_out_of_the_directory(
    connect: Connect, service: StubService, tmp_path: Path, name: str
) -> None:
    has(service, entry(name))
    service.on("GET", "/jobs/j1/files/1", sent(CONTENT))
    async with connect(service.url) as client:
        assert await client.job("j1").download(to=tmp_path) == tmp_path / "unnamed"


class OnlyOnce(io.BytesIO):
    """What cannot be read again."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError

    def tell(self) -> int:
        raise OSError


async def test_what_is_open_is_uploaded_from_where_it_is(connect: Connect, service: StubService) -> None:
    stream = io.BytesIO(b"head and body")
    stream.name = "/tmp/notes.txt"
    stream.seek(5)
    cut = answer(202, job())
    service.on("POST", "/files", type(cut)(cut.data[:-20]), cut)
    async with connect(service.url) as client:
        await client.submit("files", {}, {"file": [stream]}, idempotency_key="k")
    assert len(service.requests) == 2
    for request in service.requests:
        assert b'name="file"; filename="notes.txt"' in request.body
        assert b"\r\n\r\nand body\r\n" in request.body


def test_what_can_be_read_once_is_sent_once() -> None:
    assert calls.submit("files", {}, [Path("a"), io.BytesIO()], idempotency_key="k").resends > 0
    assert calls.submit("files", {}, [OnlyOnce(b"x")], idempotency_key="k").resends == 0
    with opened(OnlyOnce(b"x")) as (name, source):
        assert (name, source.read()) == ("file", b"x")
