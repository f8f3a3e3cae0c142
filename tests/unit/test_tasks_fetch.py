"""fetch: what comes is measured as it comes, and whatever a third party does wrong has a name, a status and an end."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import socket
from pathlib import Path
from typing import NoReturn

import pytest
from pydantic import HttpUrl

from jobstream import JobCancelled, TaskError
from jobstream.errors import ConfigurationError, InvalidInput
from jobstream_workers.tasks import fetch
from jobstream_workers.tasks.fetch import MAX_REDIRECTS, Fetched
from tests.unit.scripted_server import redirects, says, sends, serving, stalls
from tests.unit.task_bench import Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose `fetch` may reach 127.0.0.1, and nothing else that is private."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOBSTREAM_FETCH_ALLOW", "127.0.0.1")
    return Bench.at(tmp_path)


async def run(bench: Bench, url: str) -> Fetched:
    result = await fetch(bench.job, HttpUrl(url))
    assert isinstance(result, Fetched)
    return result


async def fault(bench: Bench, url: str) -> tuple[int, str, bool]:
    """Status, code and retryable of the error that the fetch ends with."""
    with pytest.raises(TaskError) as caught:
        await run(bench, url)
    return caught.value.http_status, caught.value.problem_code, caught.value.retryable


async def test_a_body_is_measured_and_hashed(bench: Bench) -> None:
    body = b"0123456789" * 50_000
    async with serving({"/data?q=1": says(body, headers="Content-Type: text/csv\r\n")}) as server:
        url = server.url("/data?q=1")
        result = await run(bench, url)
    assert result.model_dump(exclude={"elapsed"}) == {
        "url": url,
        "status": 200,
        "content_type": "text/csv",
        "size": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    assert 0 < result.elapsed < 60
    assert bench.progress == (len(body), len(body), "Receiving from 127.0.0.1", ())
    assert "accept-encoding: identity" in server.heads[0].lower()


async def test_progress_moves_while_a_slow_body_comes(bench: Bench) -> None:
    half_seen = asyncio.Event()
    bench.outbox.listener = lambda state: half_seen.set() if state.current == 4 else None

    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nfour")
        await half_seen.wait()
        writer.write(b"more")

    async with serving({"/": slow}) as server:
        assert (await run(bench, server.url("/"))).size == 8
    assert [state.current for state in bench.outbox.states] == [0, 4, 8]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nfive!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nfi\r\n3\r\nve!\r\n0\r\n\r\n",
    ],
)
async def test_without_a_content_length_the_total_is_unknown(answer: bytes, bench: Bench) -> None:
    async with serving({"/": sends(answer)}) as server:
        result = await run(bench, server.url("/"))
    assert (result.size, result.content_type) == (5, None)
    assert bench.progress[:2] == (5, None)


async def test_an_empty_answer_is_one(bench: Bench) -> None:
    async with serving({"/": sends(b"HTTP/1.1 204 No Content\r\n\r\n")}) as server:
        result = await run(bench, server.url("/"))
    assert (result.status, result.size, result.sha256) == (204, 0, hashlib.sha256().hexdigest())


async def test_only_what_was_promised_is_read(bench: Bench) -> None:
    async with serving({"/": sends(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour and more")}) as server:
        assert (await run(bench, server.url("/"))).size == 4


@pytest.mark.parametrize(
    ("status", "retryable"), [("404 Not Found", False), ("429 Slow Down", True), ("500 Oh", True), ("503 Busy", True)]
)
async def test_an_error_answer_is_a_bad_gateway(status: str, retryable: bool, bench: Bench) -> None:
    async with serving({"/": says(b"no", status=status)}) as server:
        with pytest.raises(TaskError, match=rf"http://127\.0\.0\.1:{server.port}/ answered {status}$") as caught:
            await run(bench, server.url("/"))
    assert (caught.value.http_status, caught.value.retryable) == (502, retryable)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nfour",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nfour",
    ],
)
async def test_an_answer_cut_or_garbled_is_a_bad_gateway(answer: bytes, bench: Bench) -> None:
    async with serving({"/": sends(answer)}) as server:
        assert await fault(bench, server.url("/")) == (502, "upstream-unreachable", True)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nfour"])
async def test_silence_is_a_gateway_timeout(answer: bytes, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBSTREAM_FETCH_TIMEOUT", "0.1")
    async with serving({"/": stalls(answer)}) as server:
        assert await fault(bench, server.url("/")) == (504, "upstream-timeout", True)


async def test_a_closed_port_is_a_bad_gateway(bench: Bench) -> None:
    async with serving({}) as server:
        url = server.url("/")
    assert await fault(bench, url) == (502, "upstream-unreachable", True)


async def test_an_unknown_name_is_a_bad_gateway(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*args: object, **kwargs: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    assert await fault(bench, "http://nowhere.invalid/") == (502, "upstream-unreachable", True)


async def test_redirects_are_followed_and_logged(bench: Bench) -> None:
    async with serving(
        {"/a": redirects("/b?x=1"), "/b?x=1": redirects("//127.0.0.1/c"), "/c": says(b"here")}
    ) as server:
        server.scripts = {**server.scripts, "/b?x=1": redirects(server.url("/c"))}
        result = await run(bench, server.url("/a"))
        assert result.url == server.url("/c")
        assert bench.logs() == [
            f"302: {server.url('/a')} redirects to {server.url('/b?x=1')}",
            f"302: {server.url('/b?x=1')} redirects to {server.url('/c')}",
        ]


async def test_a_redirect_to_a_private_address_is_refused(bench: Bench) -> None:
    async with serving({"/": redirects("/"), "/secret": says(b"secret")}) as server:
        server.scripts = {**server.scripts, "/": redirects(server.url("/secret", host="127.0.0.2"))}
        assert await fault(bench, server.url("/")) == (422, "address-refused", False)
        assert server.paths == ["/"]


async def test_a_redirect_loop_ends(bench: Bench) -> None:
    async with serving({"/": redirects("/")}) as server:
        assert await fault(bench, server.url("/")) == (502, "too-many-redirects", False)
        assert len(server.paths) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "location", ["ftp://127.0.0.1/", "file:///etc/passwd", "ws://127.0.0.1/", "http://a:b/", "data:,"]
)
async def test_a_redirect_to_what_is_no_web_address_is_refused(location: str, bench: Bench) -> None:
    async with serving({"/": redirects(location)}) as server:
        assert await fault(bench, server.url("/")) == (502, "bad-redirect", False)


async def test_the_body_of_a_redirect_is_not_read(bench: Bench) -> None:
    written = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /here\r\n\r\n")
        for written in itertools.count():  # noqa: B007
            writer.write(b"x" * 65_536)
            await writer.drain()  # raises when the client has closed

    async with serving({"/": endless, "/here": says(b"here")}) as server:
        assert (await run(bench, server.url("/"))).size == 4
    assert written < 1_000


async def test_a_body_said_to_be_too_large_is_not_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBSTREAM_FETCH_MAX_BYTES", "10")
    async with serving({"/": stalls(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n")}) as server:
        assert await fault(bench, server.url("/")) == (413, "body-too-large", False)


async def test_a_body_that_grows_too_large_is_cut_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBSTREAM_FETCH_MAX_BYTES", "10")
    async with serving({"/ten": sends(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 10)}) as server:
        assert (await run(bench, server.url("/ten"))).size == 10
    async with serving({"/": stalls(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 11)}) as server:
        assert await fault(bench, server.url("/")) == (413, "body-too-large", False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"])
async def test_private_addresses_are_refused_by_default(
    host: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOBSTREAM_FETCH_ALLOW")
    async with serving({"/": says(b"secret")}) as server:
        assert await fault(bench, server.url("/", host=host)) == (422, "address-refused", False)
        assert server.heads == []


async def test_a_setting_that_says_nothing_sensible_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBSTREAM_FETCH_ALLOW", "10.0.0.0/99")
    with pytest.raises(ConfigurationError, match=r"10\.0\.0\.0/99"):
        await run(bench, "http://127.0.0.1/")


async def test_proxies_in_the_environment_are_not_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving({"/": says(b"direct")}) as server, serving({}) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        assert (await run(bench, server.url("/"))).size == 6
        assert proxy.heads == []


async def test_passwords_in_urls_are_sent_and_never_told(bench: Bench) -> None:
    async with serving({"/": redirects("/"), "/b": says(b"")}) as server:
        server.scripts = {**server.scripts, "/": redirects(server.url("/b", host="me:secret@127.0.0.1"))}
        result = await run(bench, server.url("/", host="me:secret@127.0.0.1"))
        assert "authorization: basic" in server.heads[0].lower()
        assert result.url == server.url("/b")
        assert "secret" not in str(bench.logs())
        server.scripts = {"/": stalls(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")}
        with pytest.raises(TaskError) as caught:
            await run(bench, server.url("/", host="me:secret@127.0.0.1"))
        assert "secret" not in caught.value.detail


async def test_a_cancelled_job_hangs_up(bench: Bench) -> None:
    bench.outbox.listener = lambda state: bench.cancelled.set()
    hung_up = asyncio.Event()

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
        except OSError:
            hung_up.set()

    async with serving({"/": endless}) as server:
        with pytest.raises(JobCancelled):
            await run(bench, server.url("/"))
        await asyncio.wait_for(hung_up.wait(), 10)


@pytest.mark.parametrize("url", ["ftp://example.org/", "file:///etc/passwd", "example.org", "http://"])
def test_only_web_addresses_are_accepted(url: str) -> None:
    with pytest.raises(InvalidInput):
        fetch.parse_input({"url": url})
