"""The stream as JSON lines and over a WebSocket: the same events, ids and ends as Server-Sent Events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.acceptance.service import HEARTBEAT_SECONDS, Service
from tests.acceptance.wire import EVENT_ID, Json, Puppet, all_frames, done, problem, submit

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
LINES = {"Accept": "application/x-ndjson"}
UNKNOWN = "01JD0000000000000000000000"


async def lines(http: httpx2.AsyncClient, job: Json, *, after: str | None = None) -> list[Json]:
    """The stream to its end, without pings."""
    headers = LINES | ({"Last-Event-ID": after} if after else {})
    async with http.stream("GET", job["links"]["events"], headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        said = [json.loads(line) async for line in response.aiter_lines()]
    return [line for line in said if line["event"] != "ping"]


@contextlib.asynccontextmanager
async def socket(service: Service, job_id: str, query: str = "") -> AsyncIterator[ClientConnection]:
    url = service.url.replace("http://", "ws://")
    async with asyncio.timeout(20), connect(f"{url}/jobs/{job_id}/ws{query}") as connection:
        yield connection


async def messages(connection: ClientConnection) -> list[Json]:
    """All until the close."""
    return [json.loads(message) async for message in connection]


async def until(connection: ClientConnection, event: str) -> list[Json]:
    seen: list[Json] = []
    while not seen or seen[-1]["event"] != event:
        seen.append(json.loads(await connection.recv()))
    return seen


async def closed(connection: ClientConnection) -> tuple[int, str]:
    """Code and reason of the close."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv()
    assert connection.close_code is not None
    return connection.close_code, connection.close_reason or ""


def as_events(said: list[Json]) -> list[tuple[str | None, str, Any]]:
    return [(line["id"], line["event"], line["data"]) for line in said]


async def test_all_formats_say_the_same(http: httpx2.AsyncClient, service: Service, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log one", "progress 1 2 half", 'chunk {"part": "line\\nbreak"}', "end over")
    await done(http, job)
    frames = [frame for frame in await all_frames(http, job) if frame.event != "retry"]
    said = await lines(http, job)
    assert as_events(said) == [(frame.id, frame.event, frame.data) for frame in frames]
    assert all(line.keys() == {"id", "event", "time", "data"} for line in said)
    assert all(TIME.fullmatch(line["time"]) for line in said)
    assert [line["time"] for line in said[1:]] == sorted(line["time"] for line in said[1:])
    async with socket(service, job["id"]) as connection:
        assert await messages(connection) == said
        assert connection.close_code == 1000


async def test_lines_resume_by_id_and_end_with_204(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log one", "log two", "end x")
    await done(http, job)
    whole = await lines(http, job)
    durable = [line for line in whole if line["id"]]
    rest = await lines(http, job, after=durable[2]["id"])
    assert [line for line in rest if line["id"]] == durable[3:]
    response = await http.get(job["links"]["events"], headers=LINES | {"Last-Event-ID": durable[-1]["id"]})
    assert response.status_code == 204


async def test_a_silent_stream_of_lines_pings(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    clock = asyncio.get_running_loop().time
    began = clock()
    async with http.stream("GET", job["links"]["events"], headers=LINES) as response:
        async for line in response.aiter_lines():
            if json.loads(line)["event"] == "ping":
                break
    assert clock() - began < 20 * HEARTBEAT_SECONDS


async def test_errors_of_a_stream_of_lines_are_problems(http: httpx2.AsyncClient) -> None:
    problem(await http.get(f"/jobs/{UNKNOWN}/events", headers=LINES), 404, "job-not-found")


async def test_a_socket_is_live_and_closes_with_done(
    http: httpx2.AsyncClient, service: Service, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with socket(service, job["id"]) as connection:
        first = await until(connection, "snapshot")
        puppet.do("log one", "end over")
        rest = await messages(connection)
        assert (connection.close_code, rest[-1]["event"]) == (1000, "done")
    durable = [line["id"] for line in first + rest if line["id"]]
    assert all(map(EVENT_ID.match, durable))
    assert len(set(durable)) == len(durable)


async def test_a_socket_resumes_by_its_query(http: httpx2.AsyncClient, service: Service, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log one", "log two", "end x")
    await done(http, job)
    durable = [line for line in await lines(http, job) if line["id"]]
    async with socket(service, job["id"], f"?last_event_id={durable[2]['id']}") as connection:
        assert [line for line in await messages(connection) if line["id"]] == durable[3:]
    async with socket(service, job["id"], f"?last_event_id={durable[-1]['id']}") as connection:
        assert (await closed(connection))[0] == 1000


async def test_a_socket_goes_on_behind_the_id_that_its_client_says(
    http: httpx2.AsyncClient, service: Service, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log one", "log two")
    async with socket(service, job["id"]) as connection:
        seen = await until(connection, "log")
        seen += await until(connection, "log")
        await connection.send(json.dumps({"after": seen[-2]["id"]}))
        again = await until(connection, "log")
        assert again[-1] == seen[-1]
        puppet.do("end x")
        assert (await messages(connection))[-1]["event"] == "done"


async def test_a_socket_cancels_its_job(http: httpx2.AsyncClient, service: Service) -> None:
    job = await submit(http, "hang-loop")
    async with socket(service, job["id"]) as connection:
        await until(connection, "log")
        await connection.send('{"action": "cancel"}')
        last = (await messages(connection))[-1]
    assert (last["event"], last["data"]["status"]) == ("done", "cancelled")


async def test_the_socket_of_a_job_that_was_never_there_closes_with_4404(service: Service) -> None:
    async with socket(service, UNKNOWN) as connection:
        code, reason = await closed(connection)
    assert code == 4404
    assert UNKNOWN in reason


@pytest.mark.parametrize(
    ("garbage", "code"),
    [
        (b"\x00\xff", 1003),
        ("", 1007),
        ("{", 1007),
        ("[" * 5000, 1008),
        ('{"after": 1}', 1008),
        ('{"after": "x"}', 1008),
        ('{"action": "explode"}', 1008),
        ('{"more": true}', 1008),
        ("{}", 1008),
        ("null", 1008),
        ('{"after": "' + "é" * 200 + '"}', 1008),
        ("x" * 100_000, 1009),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_garbage_closes_its_socket_and_nothing_else(
    http: httpx2.AsyncClient, service: Service, puppet: Puppet, garbage: str | bytes, code: int
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with socket(service, job["id"]) as other, socket(service, job["id"]) as connection:
        await until(connection, "snapshot")
        with contextlib.suppress(ConnectionClosed):
            await connection.send(garbage)
        assert (await closed(connection))[0] == code
        puppet.do("end x")
        assert (await messages(other))[-1]["event"] == "done"


async def test_a_malformed_id_closes_the_socket(http: httpx2.AsyncClient, service: Service) -> None:
    job = await submit(http, "echo")
    async with socket(service, job["id"], "?last_event_id=nonsense") as connection:
        assert (await closed(connection))[0] == 1008


async def test_bytes_that_are_no_handshake_are_refused(http: httpx2.AsyncClient, service: Service) -> None:
    job = await submit(http, "echo")
    for headers in (
        {"Connection": "Upgrade", "Upgrade": "websocket"},
        {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "8", "Sec-WebSocket-Key": "x"},
    ):
        response = await http.get(f"/jobs/{job['id']}/ws", headers=headers)
        assert 400 <= response.status_code < 500
    assert (await http.get("/livez")).status_code == 200
