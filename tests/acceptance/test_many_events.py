"""The stream of many jobs: snapshots, `listed`, every change of all that match; cut anywhere, none is lost or twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from jobstream.embedded import ChildRedis
from jobstream.guard import GuardedProcess
from tests.acceptance.service import Service
from tests.acceptance.wire import (
    EVENT_ID,
    Frame,
    Json,
    Puppet,
    all_frames,
    done,
    frames,
    last_id,
    problem,
    puppet,
    submit,
    until,
    versions,
)


@contextlib.asynccontextmanager
async def following(
    http: httpx2.AsyncClient, *, after: str | None = None, **filters: str
) -> AsyncIterator[AsyncIterator[Frame]]:
    headers = {"Last-Event-ID": after} if after else {}
    async with http.stream("GET", "/events", headers=headers, params=filters) as response:
        if response.status_code != 200:
            await response.aread()
        assert response.status_code == 200, response.text
        yield frames(response)


async def take(stream: AsyncIterator[Frame], event: str, job: Json | None = None) -> list[Frame]:
    """Frames up to and with the first of that kind, of that job; without comments and `retry`."""
    seen = []
    async with asyncio.timeout(20):
        async for frame in stream:
            if frame.event not in ("comment", "retry"):
                seen.append(frame)
            if frame.event == event and (job is None or frame.data["job"] == job["id"]):
                return seen
    raise AssertionError(f"the stream ended: {seen}")


def told(seen: list[Frame]) -> list[tuple[str, Any]]:
    """Job and what was said of it, in order: all that has an id."""
    return [(frame.data["job"], (frame.event, frame.data["data"])) for frame in seen if frame.id and frame.data["job"]]


@pytest.fixture
def tag() -> str:
    """Of this test's jobs only: the service is that of many tests."""
    return f"test:{uuid4().hex[:12]}"


@pytest.fixture
def puppets(tmp_path: Path) -> Iterator[list[Puppet]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(puppet(tmp_path, f"pipe{number}")) for number in range(3)]


async def test_a_fresh_stream_is_snapshots_listed_and_what_happens(
    http: httpx2.AsyncClient, puppets: list[Puppet], tag: str
) -> None:
    first, second = [await submit(http, "puppet", one.input, tags=tag) for one in puppets[:2]]
    async with following(http, tag=tag) as stream:
        seen = await take(stream, "listed")
        assert [(frame.event, frame.data["job"], frame.id is None) for frame in seen] == [
            ("snapshot", second["id"], True),
            ("snapshot", first["id"], True),
            ("listed", None, False),
        ]
        assert seen[0].data["data"]["links"] == second["links"]
        assert seen[0].data.keys() == {"job", "task", "time", "data"}
        assert seen[2].data["data"] == {"jobs": 2, "more": False}
        third = await submit(http, "puppet", puppets[2].input, tags=tag)
        puppets[1].do("log one", "progress 1 2 half", "chunk 2", "end x")
        rest = await take(stream, "done", second)
        puppets[2].do("fail no")
        rest += await take(stream, "done", third)
    assert rest[-1].data["data"] == (await http.get(third["links"]["self"])).json()
    assert {frame.data["task"] for frame in rest} == {"puppet"}
    own = [frame for frame in rest if frame.data["job"] == second["id"]]
    assert [frame.event for frame in own if frame.event not in ("status", "progress")] == ["log", "chunk", "done"]
    assert [frame.data["data"]["percent"] for frame in own if frame.event == "progress"] == [50.0]
    assert all((frame.id is None) == (frame.event == "progress") for frame in rest)
    assert all(frame.id is None or EVENT_ID.match(frame.id) for frame in rest)
    assert versions(rest) == sorted(set(versions(rest)))


async def test_what_it_is_comes_as_json_lines_too(http: httpx2.AsyncClient, puppet: Puppet, tag: str) -> None:
    job = await submit(http, "puppet", puppet.input, tags=tag)
    headers = {"Accept": "application/x-ndjson"}
    async with http.stream("GET", "/events", headers=headers, params={"tag": tag}) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        lines = []
        async for line in response.aiter_lines():
            lines.append(json.loads(line))
            if lines[-1]["event"] == "listed":
                puppet.do("end x")
            if lines[-1]["event"] == "done":
                break
    events = [line["event"] for line in lines if line["event"] not in ("ping", "status")]
    assert events == ["snapshot", "listed", "done"]
    assert lines[0].keys() == {"id", "event", "time", "data"}
    assert (lines[0]["data"]["job"], lines[-1]["data"]["job"]) == (job["id"], job["id"])


async def test_two_watchers_with_different_filters(http: httpx2.AsyncClient, puppets: list[Puppet], tag: str) -> None:
    async with following(http, tag=tag, task="puppet") as one, following(http, tag=tag, status="failed") as two:
        await take(one, "listed")
        await take(two, "listed")
        jobs = [await submit(http, "puppet", one.input, tags=tag) for one in puppets[:2]]
        other = await submit(http, "echo", tags=tag)
        puppets[0].do("log x", "fail no")
        failed = await take(two, "done")
        puppets[1].do("end x")
        seen = await take(one, "done", jobs[1])
        assert [(frame.event, frame.data["job"]) for frame in failed] == [("done", jobs[0]["id"])]
        assert {frame.data["job"] for frame in seen} == {job["id"] for job in jobs}
        again = await http.post(f"/jobs/{jobs[0]['id']}/retry")
        assert again.status_code == 202
        left = await take(two, "status")
        assert [(frame.data["job"], frame.data["data"]["status"]) for frame in left] == [(jobs[0]["id"], "queued")]
        puppets[0].do("end x")
        await take(one, "done", jobs[0])
    await done(http, other)


async def test_jobs_are_followed_across_cuts(http: httpx2.AsyncClient, puppets: list[Puppet], tag: str) -> None:
    async with following(http, tag=tag) as stream:
        seen = await take(stream, "listed")
    jobs = [await submit(http, "puppet", one.input, tags=tag) for one in puppets]
    for number in range(4):
        async with following(http, tag=tag, after=last_id(seen)) as stream:
            for one in puppets:
                one.do(f"log {number} a", f"log {number} b")
            seen += [frame for frame in await take(stream, "log") if frame.id]  # and it is cut
    for one in puppets:
        one.do("end x")
    async with following(http, tag=tag, after=last_id(seen)) as stream:
        left = {job["id"] for job in jobs}
        async for frame in stream:
            if frame.id:
                seen.append(frame)
            if frame.event == "done":
                left.discard(frame.data["job"])
            if not left:
                break
    assert versions(seen) == sorted(set(versions(seen)))
    for job in jobs:
        whole = [(frame.event, frame.data) for frame in await all_frames(http, job) if frame.id]
        assert [what for job_id, what in told(seen) if job_id == job["id"]] == whole[1:]


async def test_fifty_jobs_and_watchers_that_are_cut_at_random(http: httpx2.AsyncClient, tag: str) -> None:
    """What the watchers have seen is what the jobs' own streams tell: no gap, nothing twice."""
    dice = random.Random(11)

    async def watch(start: str, **filters: str) -> list[Frame]:
        seen: list[Frame] = []
        after, ended = start, 0
        while True:
            async with following(http, after=after, tag=tag, **filters) as stream:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(dice.random() * 0.3):
                        async for frame in stream:
                            if frame.id:
                                seen.append(frame)
                                after = frame.id
                            ended += frame.event == "done"
                            if ended == 50:
                                return seen

    async with following(http, tag=tag) as stream:
        start = last_id(await take(stream, "listed"))
    async with asyncio.timeout(60):
        watchers = [asyncio.create_task(watch(start)) for _ in range(3)]
        jobs = [await submit(http, dice.choice(["echo", "refuse"]), tags=tag) for _ in range(50)]
        streams = await asyncio.gather(*watchers)
    assert len({tuple(versions(seen)) for seen in streams}) == 1
    assert versions(streams[0]) == sorted(set(versions(streams[0])))
    for job in jobs:
        whole = [(frame.event, frame.data) for frame in await all_frames(http, job) if frame.id]
        assert [what for job_id, what in told(streams[0]) if job_id == job["id"]] == whole[1:]


async def test_an_id_of_another_history_gets_snapshots(http: httpx2.AsyncClient, puppet: Puppet, tag: str) -> None:
    job = await submit(http, "puppet", puppet.input, tags=tag)
    async with following(http, tag=tag, after="00000000-3") as stream:
        assert [frame.event for frame in await take(stream, "listed")] == ["snapshot", "listed"]
        puppet.do("end x")
        await take(stream, "done", job)


@pytest.mark.parametrize(
    "query", ["last_event_id=x", "last_event_id=00000000-", "status=finished", "status=queued&status=x"]
)
async def test_what_makes_no_sense_is_422(http: httpx2.AsyncClient, query: str) -> None:
    problem(await http.get(f"/events?{query}"), 422)


async def test_silence_is_broken_by_pings(http: httpx2.AsyncClient, tag: str) -> None:
    async with following(http, tag=tag) as stream:
        await until(stream, "listed")
        frame = await anext(stream)
        assert (frame.event, frame.data) == ("comment", "ping")


async def test_a_watcher_that_leaves_is_forgotten(http: httpx2.AsyncClient, tag: str) -> None:
    async def watchers() -> int:
        return int((await http.get("/readyz?verbose")).json()["watchers"])

    async with following(http, tag=tag) as stream:
        await until(stream, "listed")
        assert await watchers() >= 1
    async with asyncio.timeout(10):
        while await watchers():
            pass


# --- the API ends, and another one goes on ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lonely(service_redis: ChildRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker, and no API yet."""
    service = Service(tmp_path_factory.mktemp("many"), redis_url=service_redis.url)
    service.start_worker()
    try:
        yield service
    finally:
        service.close()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
async def test_a_stream_goes_on_in_another_process(
    lonely: Service, puppet: Puppet, tag: str, by: signal.Signals
) -> None:
    async def start() -> GuardedProcess:
        process = await asyncio.to_thread(lonely.start_api)
        await asyncio.to_thread(
            lonely.wait_until, lambda: lonely.knows("puppet"), "the worker has not announced itself"
        )
        return process

    async with httpx2.AsyncClient(base_url=lonely.url, timeout=20) as http:
        api = await start()
        seen: list[Frame] = []
        job: Json = {}

        async def watch_and_end() -> None:
            nonlocal job
            async with following(http, tag=tag) as stream:
                seen.extend(await take(stream, "listed"))
                job = await submit(http, "puppet", puppet.input, tags=tag)
                puppet.do("log before")
                seen.extend(await take(stream, "log"))
                os.kill(api.pid, by)
                rest = [frame async for frame in stream if frame.event != "comment"]
                assert [frame.event for frame in rest] == ["retry"]

        if by == signal.SIGTERM:
            await watch_and_end()
        else:
            with pytest.raises(httpx2.TransportError):
                await watch_and_end()
        await asyncio.to_thread(api.wait, 10)
        puppet.do("log while nobody listened")
        api = await start()
        try:
            async with following(http, tag=tag, after=last_id(seen)) as stream:
                puppet.do("log after", "end x")
                seen += await take(stream, "done")
        finally:
            await asyncio.to_thread(api.stop, 10)
        said = [frame.data["data"]["message"] for frame in seen if frame.event == "log"]
        assert said == ["before", "while nobody listened", "after"]
        assert [frame.event for frame in seen].count("snapshot") == 0
        assert versions(seen) == sorted(set(versions(seen)))
