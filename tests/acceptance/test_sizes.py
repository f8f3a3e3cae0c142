"""How large a request may be: what is too much is refused by name, and the process stays as small as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from arq.connections import ArqRedis

from jobstream import keys
from jobstream.files import JobFile
from jobstream.redis import RedisSource
from jobstream.task import task
from tests.acceptance.guarded import Guarded, announce, guarded

MOST = 100_000
FLOOD = 200 << 20


@task(name="keeps")
async def keeps(files: list[JobFile], label: str = "") -> int:
    """A task that takes files and a field, which nobody runs."""
    return len(files)


@pytest.fixture
async def service(source: RedisSource, client: ArqRedis, tmp_path: Path) -> AsyncIterator[Guarded]:
    """A service with small limits, in this process."""
    await announce(client, [keeps])
    limits = {"max_body_bytes": MOST, "max_file_bytes": MOST, "max_files": 3, "max_batch_bytes": MOST}
    async with guarded(source, auth="open", files_dir=tmp_path / "files", max_head_bytes=8192, **limits) as service:
        yield service
        assert await service.client.zcard(keys.INDEX) == 0
        assert files_in(tmp_path) == []


def files_in(directory: Path) -> list[Path]:
    """All files below."""
    return [path for path in directory.rglob("*") if path.is_file()]


@contextlib.contextmanager
def no_growth(most: int = 64 << 20) -> Iterator[None]:
    """Fail when this process, which serves and asks, has grown by more meanwhile."""
    before = _peak()
    yield
    assert _peak() - before < most


def _peak() -> int:
    """Bytes that the process had in memory at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def told(service: Guarded, head: bytes, pieces: Iterator[bytes]) -> tuple[int, dict[str, object]]:
    """Send a request's head, and pieces for as long as the service reads them: status and problem."""
    port = int(service.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(_answer(reader))
    try:
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                if answer.done():
                    break
                writer.write(piece)
                await writer.drain()
        async with asyncio.timeout(20):
            return await answer
    finally:
        answer.cancel()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, object]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].split()[0])
    assert "application/problem+json" in head
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


def post(path: str, media_type: str, *, length: int | None = None) -> bytes:
    """The head of a request; without a length its body comes in chunks."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n{framing}\r\n\r\n".encode()


def chunks(first: bytes, piece: bytes) -> Iterator[bytes]:
    """A chunked body that does not end by itself."""
    yield b"%x\r\n%b\r\n" % (len(first), first)
    for _ in range(FLOOD // len(piece)):
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


JSON, FORM, MULTIPART = "application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n'
FILE = PART % (b"files", b'; filename="a"')


@pytest.mark.parametrize(
    ("path", "media_type", "first", "piece", "says"),
    [
        ("/quiet", JSON, b'{"text":"', b"x" * 65_536, "100000 bytes"),
        ("/quiet", JSON, b"[", b"[" * 65_536, "100000 bytes"),
        ("/quiet", FORM, b"text=", b"x" * 65_536, "100000 bytes"),
        ("/quiet", FORM, b"a=", b"&a=" * 20_000, "100000 bytes"),
        ("/quiet", FORM, b"", b"x" * 65_536, "100000 bytes"),
        ("/jobs/batch", JSON, b"[", b"{}," * 20_000, "100000 bytes"),
        ("/keeps", MULTIPART, PART % (b"label", b""), b"x" * 65_536, "100000 bytes"),
        ("/keeps", MULTIPART, FILE, b"x" * 65_536, "100000 bytes"),
        ("/keeps", MULTIPART, b"", FILE + b"x\r\n", "3 files"),
        ("/keeps", MULTIPART, b"", (PART % (b"label", b"") + b"\r\n") * 50, "parts"),
    ],
)
async def test_a_body_without_end_is_cut_off_by_name(
    service: Guarded, path: str, media_type: str, first: bytes, piece: bytes, says: str
) -> None:
    first = first or piece
    with no_growth():
        status, problem = await told(service, post(path, media_type), chunks(first, piece))
    assert (status, problem["code"]) == (413, "payload-too-large")
    assert says in str(problem["detail"])


@pytest.mark.parametrize("path", ["/quiet", "/jobs/batch"])
async def test_a_body_that_says_how_long_it_is_need_not_be_sent(service: Guarded, path: str) -> None:
    status, problem = await told(service, post(path, JSON, length=10**12), iter(()))
    assert (status, problem["code"]) == (413, "payload-too-large")


@pytest.mark.parametrize("depth", [500, 40_000])
@pytest.mark.parametrize("path", ["/quiet", "/jobs/batch"])
async def test_json_of_any_depth_is_no_error_of_ours(service: Guarded, path: str, depth: int) -> None:
    body = b'[{"task":"quiet","input":{"text":' + b"[" * depth + b"]" * depth + b"}}]"
    status, problem = await told(service, post(path, JSON, length=len(body)), iter((body,)))
    assert status in (400, 422), problem


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n", b"X-A: %b\r\n" % (b"x" * 1000)),
        (b"GET /jobs HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"x" * 65_536),
        (b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n" * 100),
        (b"GET /jobs?", b"x" * 65_536),
        (b"POST /quiet HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: ", b"x" * 65_536),
    ],
    ids=["many large headers", "one large header", "many small headers", "a large target", "a large trailer"],
)
async def test_a_head_without_end_is_cut_off(service: Guarded, start: bytes, piece: bytes) -> None:
    with no_growth():
        status, problem = await told(service, start, iter([piece] * (FLOOD // len(piece))))
    assert (status, problem["code"]) == (431, "head-too-large")
    assert "8192 bytes" in str(problem["detail"])


async def test_many_requests_on_one_connection_are_no_large_head(service: Guarded) -> None:
    async with service.http() as http:
        for _ in range(30):
            assert (await http.get("/livez", headers={"X-A": "x" * 3_000})).status_code == 200
