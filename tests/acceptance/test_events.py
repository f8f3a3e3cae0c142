"""The event stream: a snapshot, every change in order, `done`; and after a cut nothing is lost and nothing twice."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from tests.acceptance.service import HEARTBEAT_SECONDS
from tests.acceptance.wire import (
    DURABLE,
    EVENT_ID,
    Frame,
    Puppet,
    all_frames,
    done,
    events,
    last_id,
    problem,
    said,
    submit,
    until,
    versions,
)

UNKNOWN = "01JD0000000000000000000000"


async def test_the_stream_says_what_it_is(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo")
    async with http.stream("GET", job["links"]["events"], headers={"Accept": "text/event-stream"}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"


async def test_a_fresh_stream_is_retry_snapshot_changes_done(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with events(http, job) as stream:
        first = await until(stream, "snapshot")
        assert [frame.event for frame in first] == ["retry", "snapshot"]
        assert first[0].data == 2000
        assert first[1].data["id"] == job["id"]
        puppet.do("log one", "progress 1 2 half", 'chunk {"part": 2}', "log three", "end over")
        rest = [frame async for frame in stream if frame.event != "comment"]
    assert rest[-1].event == "done"
    assert rest[-1].data == (await http.get(job["links"]["self"])).json()
    assert rest[-1].data["result"] == "over"
    assert said(rest) == ["one", {"part": 2}, "three"]
    assert {"level": "info", "message": "one"} in [frame.data for frame in rest]
    _is_orderly([*first, *rest])
    progress = [frame for frame in rest if frame.event == "progress"]
    assert progress[-1].data["percent"] == 50.0
    statuses = [frame.data["status"] for frame in rest if frame.event == "status"]
    assert statuses in (["queued", "running"], ["running"], [])  # what came before is in the snapshot or behind it


def _is_orderly(seen: list[Frame]) -> None:
    """Ids on durable events only, strictly rising, of one epoch."""
    for frame in seen:
        assert (frame.id is not None) == (frame.event in DURABLE), frame
        assert frame.id is None or EVENT_ID.match(frame.id)
    numbers = versions(seen)
    assert numbers == sorted(set(numbers))
    assert len({frame.id.partition("-")[0] for frame in seen if frame.id}) == 1
    assert [frame.event for frame in seen].count("snapshot") <= 1
    assert [frame.event for frame in seen].count("retry") == 1


async def test_a_late_joiner_gets_the_log_from_the_beginning_behind_its_snapshot(
    http: httpx2.AsyncClient, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do(*(f"log {number}" for number in range(50)), "end x")
    ended = await done(http, job)
    seen = await all_frames(http, job)
    assert [frame.event for frame in seen[:2]] == ["retry", "snapshot"]
    assert seen[1].data == ended
    assert said(seen) == [str(number) for number in range(50)]
    assert seen[-1].event == "done"
    _is_orderly(seen)


async def test_silence_is_broken_by_pings(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    clock = asyncio.get_running_loop().time
    pings = 0
    async with events(http, job) as stream:
        await until(stream, "snapshot")
        began = clock()
        async for frame in stream:
            if frame.event == "comment":
                assert frame.data == "ping"
                pings += 1
            if pings == 2:
                break
    assert clock() - began < 10 * HEARTBEAT_SECONDS


async def test_a_cut_anywhere_loses_nothing_and_repeats_nothing(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do(*(f"log {number}" for number in range(20)), "progress 1 1 x", "chunk [1]", "end x")
    await done(http, job)
    whole = await all_frames(http, job)
    durable = [frame for frame in whole if frame.id is not None]
    for position, frame in enumerate(durable[:-1]):
        rest = await all_frames(http, job, after=frame.id)
        assert [other for other in rest if other.id is not None] == durable[position + 1 :]
        assert [other.event for other in rest if other.id is None] in (["retry"], ["retry", "progress"])


async def test_a_running_job_is_followed_across_cuts(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    seen: list[Frame] = []
    after: str | None = None
    for number in range(5):
        async with events(http, job, after=after) as stream:
            puppet.do(f"log {number} a", f"log {number} b")
            async for frame in stream:
                if frame.id is not None:
                    seen.append(frame)
                if frame.event == "log":
                    break  # the connection is cut; `b` is said while nobody listens, or is on its way
        after = last_id(seen)
    puppet.do("end x")
    seen += [frame for frame in await all_frames(http, job, after=after) if frame.id is not None]
    assert said(seen) == [f"{number} {letter}" for number in range(5) for letter in "ab"]
    assert versions(seen) == sorted(set(versions(seen)))
    assert seen[-1].event == "done"


async def test_the_query_resumes_like_the_header(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log one", "log two", "end x")
    await done(http, job)
    whole = await all_frames(http, job)
    first = next(frame for frame in whole if frame.event == "log")
    assert first.id is not None
    async with events(http, job, params={"last_event_id": first.id}) as stream:
        rest = [frame async for frame in stream if frame.id is not None]
    assert [frame.event for frame in rest] == ["log", "done"]
    async with events(http, job, after=rest[0].id, params={"last_event_id": first.id}) as stream:
        assert [frame.event async for frame in stream if frame.id is not None] == ["done"]  # the header is the newer


async def test_at_or_behind_done_the_answer_is_204(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "echo")
    end = last_id(await all_frames(http, job))
    epoch, _, version = end.partition("-")
    for seen in (end, f"{epoch}-{int(version) + 1}"):
        response = await http.get(job["links"]["events"], headers={"Last-Event-ID": seen})
        if seen == end:
            assert (response.status_code, response.content) == (204, b"")
        else:  # ahead of all that is known: history went back, or the id is made up
            assert response.status_code in (200, 204)
    response = await http.get(job["links"]["events"], params={"last_event_id": end})
    assert response.status_code == 204


async def test_an_id_of_another_history_gets_a_snapshot(http: httpx2.AsyncClient) -> None:
    job = await submit(http, "refuse")
    await done(http, job)
    whole = await all_frames(http, job)
    epoch = last_id(whole).partition("-")[0]
    other = "00000000" if epoch != "00000000" else "11111111"
    seen = await all_frames(http, job, after=f"{other}-2")
    assert seen == whole
    assert last_id(seen).startswith(epoch)


@pytest.mark.parametrize(
    "wrong", ["x", "1", "-1", "0-0-0", "zzzzzzzz-1", "00000000-", "00000000-" + "9" * 30, "00000000-١", "a" * 4_000]
)
async def test_a_malformed_id_is_422(http: httpx2.AsyncClient, wrong: str) -> None:
    job = await submit(http, "echo")
    problem(await http.get(job["links"]["events"], params={"last_event_id": wrong}), 422, "invalid-parameter")
    if wrong.isascii():
        header = {"Last-Event-ID": wrong}
        problem(await http.get(job["links"]["events"], headers=header), 422, "invalid-parameter")
    await done(http, job)


async def test_the_stream_of_a_job_that_was_never_there_is_404(http: httpx2.AsyncClient) -> None:
    problem(await http.get(f"/jobs/{UNKNOWN}/events"), 404, "job-not-found")


async def test_a_failed_job_ends_with_its_error(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log trying", "fail no paper")
    last = (await all_frames(http, job))[-1]
    assert (last.event, last.data["status"]) == ("done", "failed")
    assert (last.data["error"]["detail"], last.data["error"]["code"]) == ("no paper", "task-error")


async def test_many_watchers_see_the_same(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    joined = asyncio.Barrier(21)

    async def watch() -> list[Frame]:
        async with events(http, job) as stream:
            first = await until(stream, "snapshot")
            await joined.wait()
            return first + [frame async for frame in stream if frame.event != "comment"]

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        watchers = [group.create_task(watch()) for _ in range(20)]
        await joined.wait()
        puppet.do(*(f"log {number}" for number in range(200)), "end x")
    for watcher in watchers:
        seen = watcher.result()
        _is_orderly(seen)
        assert said(seen) == [str(number) for number in range(200)]
        assert seen[-1].event == "done"


async def test_text_of_every_kind_arrives_in_one_frame(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do('chunk "line\\nbreak\\r\\nid: 7\\n\\ndata: x"', "log \u2028\x85é😀", 'chunk "\\u0000"', "end x")
    assert said(await all_frames(http, job)) == ["line\nbreak\r\nid: 7\n\ndata: x", "\u2028\x85é😀", "\0"]


async def test_a_watcher_that_leaves_is_forgotten(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    async def watchers() -> int:
        return int((await http.get("/readyz?verbose")).json()["watchers"])

    job = await submit(http, "puppet", puppet.input)
    async with events(http, job) as stream:
        await until(stream, "snapshot")
        assert await watchers() >= 1
    async with asyncio.timeout(10):
        while await watchers():
            pass


async def test_a_client_library_reads_it(http: httpx2.AsyncClient, puppet: Puppet) -> None:
    job = await submit(http, "puppet", puppet.input)
    puppet.do("log hello", "end x")
    async with http.sse(job["links"]["events"]) as source:
        names = [event.event async for event in source if event.data]
    assert (names[0], names[-1]) == ("snapshot", "done")
    assert "log" in names
    assert set(names) <= DURABLE
