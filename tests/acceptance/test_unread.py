"""What headers alone can tell is answered before the body: it need not be sent, and nothing of it is stored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from arq.connections import ArqRedis

from jobstream import keys
from jobstream.redis import RedisSource
from tests.acceptance.guarded import Guarded, announce, guarded
from tests.acceptance.test_sizes import FILE, JSON, MULTIPART, files_in, keeps

MOST = 100_000
LARGE = 90_000
END = b"\r\n--b--\r\n"


@pytest.fixture
async def service(real_source: RedisSource, real_client: ArqRedis, tmp_path: Path) -> AsyncIterator[Guarded]:
    """A service that takes one job a minute of each tenant, and one in a queue."""
    await announce(real_client, [keeps])
    limits = {"max_body_bytes": MOST, "max_file_bytes": 8 << 20, "max_files": 3, "max_batch_bytes": MOST}
    settings = {"tenant_rate": "1/m", "queue_depth": 1, "files_dir": tmp_path / "files"}
    async with guarded(real_source, **settings, **limits) as service:
        yield service


class Answer(NamedTuple):
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """Of the problem that it is."""
        assert self.headers["content-type"] == "application/problem+json"
        return str(json.loads(self.body)["code"])


class Line:
    """A connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self.reader, self.writer, self._key = reader, writer, key

    def head(self, path: str, media_type: str, length: int | None, *headers: str) -> None:
        """Send a request's head; without a length its body comes in chunks."""
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {self._key}"]
        lines += [f"Content-Type: {media_type}", framing, *headers]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())

    async def answer(self) -> Answer:
        """The next one."""
        async with asyncio.timeout(20):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return Answer(int(first.split()[1]), headers, body)

    async def ended(self) -> bool:
        """Wait for what comes next: the end, or not."""
        async with asyncio.timeout(20):
            return await self.reader.read(1) == b""


@contextlib.asynccontextmanager
async def line(service: Guarded, tenant: str = "acme") -> AsyncIterator[Line]:
    """A connection of a tenant's."""
    key = await service.key(tenant)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
    try:
        yield Line(reader, writer, key)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def use_up(service: Guarded, tenant: str = "acme", *, queue: str = "other") -> None:
    """What the tenant may submit for now."""
    async with service.http(await service.key(tenant)) as http:
        assert (await http.post("/quiet", json={}, params={"queue": queue})).status_code == 202


async def flood(line: Line) -> None:
    """Send chunks until the connection breaks."""
    while True:
        line.writer.write(b"10000\r\n" + bytes(65_536) + b"\r\n")
        await line.writer.drain()


async def nothing_but(service: Guarded, jobs: int, tmp_path: Path) -> None:
    """Fail if more was stored."""
    assert await service.client.zcard(keys.INDEX) == jobs
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("length", [LARGE, None], ids=["long", "chunked"])
@pytest.mark.parametrize(("path", "media_type"), [("/quiet", JSON), ("/keeps", MULTIPART), ("/jobs/batch", JSON)])
async def test_over_the_quota_a_body_need_not_be_sent(
    service: Guarded, tmp_path: Path, path: str, media_type: str, length: int | None
) -> None:
    await use_up(service)
    async with line(service) as acme:
        acme.head(path, media_type, length)
        refused = await acme.answer()
        assert (refused.status, refused.code) == (429, "over-quota")
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["ratelimit"].startswith('"submit";r=0;')
        assert refused.headers["connection"] == "close"
        assert await acme.ended()
    await nothing_but(service, 1, tmp_path)


async def test_for_a_full_queue_a_body_need_not_be_sent(service: Guarded, tmp_path: Path) -> None:
    await use_up(service, queue="default")
    async with line(service, "globex") as globex:
        globex.head("/quiet", JSON, LARGE)
        refused = await globex.answer()
        assert (refused.status, refused.code) == (503, "queue-full")
        assert int(refused.headers["retry-after"]) > 0
    await nothing_but(service, 1, tmp_path)
    async with line(service, "globex") as globex:  # and nothing was charged
        globex.head("/quiet?queue=elsewhere", JSON, 2)
        globex.writer.write(b"{}")
        assert (await globex.answer()).status == 202


@pytest.mark.parametrize(
    ("path", "media_type", "length", "status"),
    [
        ("/quiet", JSON, 10**12, 413),
        ("/quiet", "text/plain", 10**12, 413),
        ("/jobs/batch", JSON, 10**12, 413),
        ("/keeps", MULTIPART, 10**12, 413),
        ("/quiet", "text/plain", LARGE, 415),
        ("/jobs/batch", "text/plain", 10**12, 415),
        ("/no-such-task", JSON, 10**12, 404),
        ("/quiet?priority=high", JSON, 10**12, 422),
    ],
)
async def test_what_headers_tell_is_answered_at_once(
    service: Guarded, tmp_path: Path, path: str, media_type: str, length: int, status: int
) -> None:
    async with line(service) as acme:
        acme.head(path, media_type, length)
        refused = await acme.answer()
        assert (refused.status, refused.headers["connection"]) == (status, "close")
        assert await acme.ended()
    await nothing_but(service, 0, tmp_path)


async def test_who_asks_first_is_told_to_go_on_or_why_not(service: Guarded, tmp_path: Path) -> None:
    expect = "Expect: 100-continue"
    async with line(service) as acme:
        acme.head("/quiet", JSON, 2, expect, 'Idempotency-Key: "k"')
        assert (await acme.answer()).status == 100
        acme.writer.write(b"{}")
        accepted = await acme.answer()
        assert (accepted.status, accepted.headers.get("connection")) == (202, None)
        acme.head("/quiet?queue=other", JSON, 2, expect)  # the connection lives on
        refused = await acme.answer()
        assert (refused.status, refused.code, refused.headers["connection"]) == (429, "over-quota", "close")
        assert await acme.ended()
    async with line(service) as acme:  # what is sent again under its key has been paid for
        acme.head("/quiet", JSON, 2, expect, 'Idempotency-Key: "k"')
        assert (await acme.answer()).status == 100
        acme.writer.write(b"{}")
        replayed = await acme.answer()
        assert (replayed.status, replayed.headers["idempotent-replayed"]) == (202, "true")
    await nothing_but(service, 1, tmp_path)


async def test_who_goes_on_sending_and_reads_afterwards_still_finds_the_answer(
    service: Guarded, tmp_path: Path
) -> None:
    await use_up(service)
    body = FILE + bytes(6 << 20) + END
    async with line(service) as acme:
        acme.head("/keeps", MULTIPART, len(body))
        for at in range(0, len(body), 1 << 16):
            acme.writer.write(body[at : at + (1 << 16)])
            await acme.writer.drain()
        refused = await acme.answer()
        assert (refused.status, refused.code) == (429, "over-quota")
        assert await acme.ended()
    await nothing_but(service, 1, tmp_path)


async def test_who_never_ends_is_left_in_the_end(service: Guarded, tmp_path: Path) -> None:
    await use_up(service)
    async with line(service) as acme:
        acme.head("/keeps", MULTIPART, None)
        assert (await acme.answer()).status == 429
        async with asyncio.timeout(60):
            with pytest.raises(ConnectionError):
                await flood(acme)
    await nothing_but(service, 1, tmp_path)


async def test_a_small_refused_body_costs_no_connection(service: Guarded) -> None:
    await use_up(service)
    async with line(service) as acme:
        for _ in range(3):
            acme.head("/quiet", JSON, 2)
            acme.writer.write(b"{}")
            refused = await acme.answer()
            assert (refused.status, refused.headers.get("connection")) == (429, None)


async def test_a_large_body_that_is_welcome_costs_no_connection(service: Guarded) -> None:
    body = json.dumps({"text": "x" * LARGE}).encode()
    async with line(service) as acme:
        acme.head("/quiet", JSON, len(body))
        acme.writer.write(body)
        accepted = await acme.answer()
        assert (accepted.status, accepted.headers.get("connection")) == (202, None)
        acme.head("/quiet?queue=other", JSON, 2)
        acme.writer.write(b"{}")
        assert (await acme.answer()).status == 429


async def test_curl_sends_none_of_a_file_that_is_not_wanted(service: Guarded, tmp_path: Path) -> None:
    await use_up(service)
    curl = shutil.which("curl")
    assert curl is not None, "curl is missing: scripts/setup --dev installs it"
    large = tmp_path / "large"
    large.write_bytes(bytes(4 << 20))
    form = ["-F", f"files=@{large}", "-H", f"Authorization: Bearer {await service.key('acme')}", f"{service.url}/keeps"]
    patient = ["--max-time", "40", "--expect100-timeout", "20"]
    curling = await asyncio.create_subprocess_exec(
        *(curl, "-sS", *patient, "-w", "\n%{http_code} %{size_upload}", *form),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await curling.communicate()
    assert curling.returncode == 0
    assert said.decode().splitlines()[-1] == "429 0"
    large.unlink()
    await nothing_but(service, 1, tmp_path)
