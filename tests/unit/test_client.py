"""Both HTTP clients against a scripted service: what they send, how they heal cuts, and what they raise."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from pydantic import BaseModel, JsonValue, TypeAdapter

from jobstream.client import (
    Event,
    Gone,
    JobCancelled,
    JobFailed,
    NotFound,
    Rejected,
    StillRunning,
    SyncClient,
    Unauthorized,
    Unavailable,
    UnexpectedResult,
    Unreachable,
)
from jobstream.job import JobStatus
from tests.clients import AnyClient, Connect, connect
from tests.unit.stub_service import StubService, answer, error, frame, job, sse

__all__ = ["connect"]

RETRY = "retry: 1\n\n"


@pytest.fixture
def service() -> Iterator[StubService]:
    with StubService() as service:
        yield service


async def collect(client: AnyClient, job_id: str = "j1", after: str | None = None) -> list[Event]:
    return [event async for event in client.job(job_id).events(after)]


async def test_a_submit_sends_json_and_answers_a_handle(connect: Connect, service: StubService) -> None:
    service.on("POST", "/words", answer(202, job("j7", "queued")))
    async with connect(service.url, token="secret") as client:
        handle = await client.submit("words", {"text": "to be"}, delay=2.5, tags=["a", "b"], idempotency_key="k1")
    (request,) = service.requests
    assert handle.id == "j7"
    assert json.loads(request.body) == {"text": "to be"}
    assert request.query == {"delay": ["2.5"], "tags": ["a", "b"]}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == '"k1"'
    assert request.headers["authorization"] == "Bearer secret"


async def test_a_submit_takes_a_pydantic_model(connect: Connect, service: StubService) -> None:
    class Input(BaseModel):
        text: str

    service.on("POST", "/words", answer(202, job()))
    async with connect(service.url) as client:
        await client.submit("words", Input(text="to be"))
    assert json.loads(service.requests[0].body) == {"text": "to be"}


async def test_files_are_sent_as_parts_beside_the_fields(
    connect: Connect, service: StubService, tmp_path: Path
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"content of {name}")
    service.on("POST", "/files", answer(202, job(task="files")))
    async with connect(service.url) as client:
        await client.submit("files", {"deep": True, "title": "two"}, [tmp_path / "a.txt", tmp_path / "b.txt"])
    (request,) = service.requests
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert request.body.count(b'name="files"; filename=') == 2
    for part in (b'filename="b.txt"', b"content of b.txt", b'name="deep"\r\n\r\ntrue', b'name="title"\r\n\r\ntwo'):
        assert part in request.body


async def test_a_303_is_an_accepted_submit_too(connect: Connect, service: StubService) -> None:
    service.on("POST", "/words", answer(303, job("j8"), {"Location": "/words/j8"}))
    async with connect(service.url) as client:
        assert (await client.submit("words", {})).id == "j8"


async def test_a_submit_with_a_key_is_sent_again_after_a_cut(connect: Connect, service: StubService) -> None:
    cut = answer(202, job("j9"))
    service.on("POST", "/words", type(cut)(cut.data[:-20]), cut)
    async with connect(service.url) as client:
        assert (await client.submit("words", {}, idempotency_key="k")).id == "j9"
    assert [request.headers["idempotency-key"] for request in service.requests] == ['"k"', '"k"']


async def test_a_submit_without_a_key_is_never_sent_twice(connect: Connect, service: StubService) -> None:
    whole = answer(202, job("j9"))
    service.on("POST", "/words", type(whole)(whole.data[:-20]))
    async with connect(service.url) as client:
        with pytest.raises(Unreachable):
            await client.submit("words", {})
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unauthorized),
        (403, Unauthorized),
        (404, NotFound),
        (410, Gone),
        (409, Rejected),
        (429, Rejected),
        (503, Unavailable),
    ],
)
async def test_a_problem_becomes_the_error_of_its_status(
    connect: Connect, service: StubService, status: int, kind: type[Rejected]
) -> None:
    service.on("GET", "/jobs/j1", answer(status, {"title": "no", "status": status, "code": "some-code"}))
    async with connect(service.url) as client:
        with pytest.raises(kind) as caught:
            await client.job("j1").get()
    assert type(caught.value) is kind
    assert caught.value.problem.code == "some-code"


async def test_an_invalid_input_names_its_fields(connect: Connect, service: StubService) -> None:
    errors: list[JsonValue] = [{"pointer": "/text", "detail": "field required"}]
    service.on("POST", "/words", answer(422, {"detail": "not valid", "status": 422, "errors": errors}))
    async with connect(service.url) as client:
        with pytest.raises(Rejected, match=r"not valid \(/text: field required\)"):
            await client.submit("words", {})


async def test_nothing_listening_is_unreachable(connect: Connect) -> None:
    with StubService() as gone:
        url = gone.url
    async with connect(url) as client:
        with pytest.raises(Unreachable, match="no answer"):
            await client.job("j1").get()
        with pytest.raises(Unreachable):
            await collect(client)


async def test_another_kind_of_server_is_told_apart(connect: Connect, service: StubService) -> None:
    service.on("GET", "/jobs/j1", answer(200, {"hello": "world"}))
    service.on("GET", "/jobs/j1/events", answer(200, {"hello": "world"}))
    async with connect(service.url) as client:
        with pytest.raises(Unreachable, match="does not speak"):
            await client.job("j1").get()
        with pytest.raises(Unreachable, match="does not stream"):
            await collect(client)


async def test_events_come_in_order_and_end_with_done(connect: Connect, service: StubService) -> None:
    service.on(
        "GET",
        "/jobs/j1/events",
        sse(
            "retry: 2000\n\n",
            ": ping\n\n",
            frame("snapshot", job(), "e-1"),
            frame("progress", {"current": 1}),
            frame("log", {"message": "a\u2028b"}, "e-2"),
            frame("done", job(status="succeeded"), "e-3"),
            frame("log", {"message": "behind the end"}, "e-4"),
        ),
    )
    async with connect(service.url) as client:
        events = await collect(client)
    assert [event.event for event in events] == ["snapshot", "progress", "log", "done"]
    assert [event.id for event in events] == ["e-1", "e-1", "e-2", "e-3"]
    assert events[2].data == {"message": "a\u2028b"}
    assert events[0].job is not None
    assert events[0].job.status == JobStatus.RUNNING
    assert events[1].job is None


async def test_a_cut_stream_goes_on_behind_the_last_event(connect: Connect, service: StubService) -> None:
    service.on(
        "GET",
        "/jobs/j1/events",
        sse(RETRY, frame("snapshot", job(), "e-1"), frame("log", 1, "e-2"), "id: e-3\ndata: half", cut=True),
        sse(RETRY, frame("log", 2, "e-3"), cut=True),
        sse(RETRY),  # a draining service closes at once
        sse(RETRY, frame("done", job(status="succeeded"), "e-4")),
    )
    async with connect(service.url) as client:
        events = await collect(client)
    assert [(event.id, event.event) for event in events] == [
        ("e-1", "snapshot"),
        ("e-2", "log"),
        ("e-3", "log"),
        ("e-4", "done"),
    ]
    sent = [request.headers.get("last-event-id") for request in service.requests]
    assert sent == [None, "e-2", "e-3", "e-3"]


async def test_a_service_that_is_away_for_a_moment_is_waited_for(connect: Connect, service: StubService) -> None:
    service.on(
        "GET",
        "/jobs/j1/events",
        sse(RETRY, frame("snapshot", job(), "e-1"), cut=True),
        answer(503, {"status": 503}),
        sse(frame("done", job(status="failed"), "e-2")),
    )
    async with connect(service.url) as client:
        assert [event.id for event in await collect(client)] == ["e-1", "e-2"]


async def test_patience_ends(connect: Connect, service: StubService) -> None:
    service.on(
        "GET", "/jobs/j1/events", sse(RETRY, frame("snapshot", job(), "e-1"), cut=True), answer(503, {"status": 503})
    )
    async with connect(service.url, patience=0.02) as client:
        with pytest.raises(Unavailable):
            await collect(client)


async def test_events_of_a_finished_job_end_with_204(connect: Connect, service: StubService) -> None:
    service.on("GET", "/jobs/j1/events", answer(204))
    async with connect(service.url) as client:
        assert await collect(client, after="e-9") == []
    assert service.requests[0].headers["last-event-id"] == "e-9"


async def test_events_of_an_unknown_job_are_not_found(connect: Connect, service: StubService) -> None:
    async with connect(service.url) as client:
        with pytest.raises(NotFound):
            await collect(client)


def ends(service: StubService, status: str, *, detail: str | None = None) -> None:
    last = job(status=status, error=error(detail) if detail else None)
    service.on("GET", "/jobs/j1/events", sse(frame("snapshot", job(), "e-1"), frame("done", last, "e-2")))
    service.on("GET", "/jobs/j1", answer(200, last))


async def test_a_result_is_what_the_task_returned(connect: Connect, service: StubService) -> None:
    ends(service, "succeeded")
    service.on("GET", "/words/j1", answer(200, {"total": 6}))
    async with connect(service.url) as client:
        assert await client.job("j1").result() == {"total": 6}


async def test_a_result_is_found_behind_a_prefix(connect: Connect, service: StubService) -> None:
    links: JsonValue = {"self": "/v1/jobs/j1", "result": "/v1/words/j1", "events": "/v1/jobs/j1/events"}
    last = job(status="succeeded", links=links)
    service.on("GET", "/v1/jobs/j1/events", sse(frame("done", last, "e-2")))
    service.on("GET", "/v1/jobs/j1", answer(200, last))
    service.on("GET", "/v1/words/j1", answer(200, 6))
    async with connect(service.url + "/v1/") as client:
        assert await client.job("j1").result() == 6


async def test_a_file_result_is_followed_and_given_as_bytes(connect: Connect, service: StubService) -> None:
    ends(service, "succeeded")
    service.on("GET", "/words/j1", answer(303, None, {"Location": "/words/j1/file"}))
    service.on("GET", "/words/j1/file", answer(200, "x", {"Content-Type": "text/plain"}))
    async with connect(service.url) as client:
        assert await client.job("j1").result() == b'"x"'


async def test_a_failed_job_raises_its_error(connect: Connect, service: StubService) -> None:
    ends(service, "failed", detail="no such file")
    async with connect(service.url) as client:
        with pytest.raises(JobFailed, match="no such file") as caught:
            await client.job("j1").result()
    assert caught.value.job.error is not None
    assert caught.value.job.error.status == 500


async def test_a_cancelled_job_raises_job_cancelled(connect: Connect, service: StubService) -> None:
    ends(service, "cancelled")
    async with connect(service.url) as client:
        with pytest.raises(JobCancelled):
            await client.job("j1").result()


async def test_a_wait_that_is_over_leaves_the_job_running(connect: Connect, service: StubService) -> None:
    service.on("GET", "/jobs/j1/events", sse(frame("snapshot", job(), "e-1"), hold=True))
    async with connect(service.url) as client:
        with pytest.raises(StillRunning, match=r"not done after 0\.05 s"):
            await client.job("j1").result(timeout=0.05)
    assert not [request for request in service.requests if request.method != "GET"]


async def test_a_list_follows_its_cursor_to_the_limit(connect: Connect, service: StubService) -> None:
    service.on(
        "GET",
        "/jobs",
        answer(200, {"jobs": [job("a"), job("b")], "next_cursor": "c1"}),
        answer(200, {"jobs": [job("c"), job("d")], "next_cursor": "c2"}),
    )
    async with connect(service.url) as client:
        assert [found.id async for found in client.jobs(status="failed", limit=3)] == ["a", "b", "c"]
    assert [request.query for request in service.requests] == [
        {"status": ["failed"], "limit": ["3"]},
        {"status": ["failed"], "limit": ["1"], "cursor": ["c1"]},
    ]


async def test_a_list_ends_with_the_last_page(connect: Connect, service: StubService) -> None:
    service.on("GET", "/jobs", answer(200, {"jobs": [job("a")], "next_cursor": None}))
    async with connect(service.url) as client:
        assert [found.id async for found in client.jobs()] == ["a"]


async def test_cancel_and_purge_are_one_request_each(connect: Connect, service: StubService) -> None:
    service.on("POST", "/jobs/j1/cancel", answer(202, job(status="cancelling")))
    service.on("DELETE", "/jobs/j1", answer(204))
    async with connect(service.url) as client:
        assert (await client.job("j1").cancel()).status == JobStatus.CANCELLING
        await client.job("j1").purge()
    assert [(request.method, request.path) for request in service.requests] == [
        ("POST", "/jobs/j1/cancel"),
        ("DELETE", "/jobs/j1"),
    ]


async def test_an_id_cannot_leave_its_path_segment(connect: Connect, service: StubService) -> None:
    async with connect(service.url) as client:
        with pytest.raises(NotFound):
            await client.job("../tasks?x=").get()
    assert service.requests[0].path == "/jobs/..%2Ftasks%3Fx%3D"


class Count(BaseModel):
    total: int


async def test_a_result_is_of_the_type_that_was_asked_for(connect: Connect, service: StubService) -> None:
    ends(service, "succeeded")
    service.on("GET", "/words/j1", answer(200, {"total": 6}))
    async with connect(service.url) as client:
        handle = client.job("j1")
        assert (await handle.result(type=Count)).total == 6
        assert await handle.result(5, type=dict[str, int]) == {"total": 6}
        assert await handle.result(type=TypeAdapter(Count | None)) == Count(total=6)
        with pytest.raises(UnexpectedResult, match="not what was asked for"):
            await handle.result(type=list[int])


async def test_a_file_result_is_bytes_when_asked_for(connect: Connect, service: StubService) -> None:
    ends(service, "succeeded")
    service.on("GET", "/words/j1", answer(200, "x", {"Content-Type": "text/plain"}))
    async with connect(service.url) as client:
        assert await client.job("j1").result(type=bytes) == b'"x"'


async def test_a_result_survives_a_restart_behind_the_stream(connect: Connect, service: StubService) -> None:
    ends(service, "succeeded")
    service.on("GET", "/words/j1", answer(503, {"status": 503}), answer(200, 6))
    async with connect(service.url) as client:
        assert await client.job("j1").result() == 6


async def test_a_submit_with_a_key_is_sent_again_after_a_503(connect: Connect, service: StubService) -> None:
    service.on("POST", "/words", answer(503, {"status": 503}), answer(202, job("j9")))
    async with connect(service.url) as client:
        assert (await client.submit("words", {}, idempotency_key="k")).id == "j9"


async def test_a_submit_whose_first_copy_is_still_read_is_sent_again(connect: Connect, service: StubService) -> None:
    first = answer(202, job("j9"))
    busy = answer(409, {"status": 409, "code": "idempotency-in-flight"})
    service.on("POST", "/words", type(first)(first.data[:-20]), busy, first)
    async with connect(service.url) as client:
        assert (await client.submit("words", {}, idempotency_key="k")).id == "j9"


async def test_a_conflict_is_no_reason_to_ask_again(connect: Connect, service: StubService) -> None:
    service.on("POST", "/words", answer(409, {"status": 409, "code": "other"}))
    async with connect(service.url) as client:
        with pytest.raises(Rejected):
            await client.submit("words", {}, idempotency_key="k")
    assert len(service.requests) == 1


async def test_a_wait_keeps_its_time_although_the_stream_goes_on_pinging(
    connect: Connect, service: StubService
) -> None:
    service.on("GET", "/jobs/j1/events", sse(frame("snapshot", job(), "e-1"), ping=0.05))
    began = time.monotonic()
    async with connect(service.url) as client:
        with pytest.raises(StillRunning):
            await client.job("j1").wait(timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    assert len(service.requests) == 1


async def test_a_wait_keeps_its_time_while_the_service_is_away(connect: Connect, service: StubService) -> None:
    service.on("GET", "/jobs/j1/events", sse(frame("snapshot", job(), "e-1"), cut=True), answer(503, {"status": 503}))
    async with connect(service.url) as client:
        with pytest.raises(StillRunning):
            await client.job("j1").wait(timeout=0.2)


async def test_dead_silence_is_a_cut(connect: Connect, service: StubService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobstream.client.stream.SILENCE", 0.2)
    service.on(
        "GET",
        "/jobs/j1/events",
        sse(RETRY, frame("snapshot", job(), "e-1"), hold=True),
        sse(RETRY, frame("done", job(status="succeeded"), "e-2")),
    )
    async with connect(service.url) as client:
        assert [event.id for event in await collect(client)] == ["e-1", "e-2"]


async def test_a_service_that_only_ever_says_come_back_later_ends_the_patience(
    connect: Connect, service: StubService
) -> None:
    service.on("GET", "/jobs/j1/events", sse(RETRY))
    async with connect(service.url, patience=0.1) as client:
        with pytest.raises(Unreachable, match="sends everybody away"):
            await collect(client)
    assert len(service.requests) > 1


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorized), (404, NotFound), (410, Gone)])
async def test_what_no_waiting_can_heal_ends_a_stream_at_once(
    connect: Connect, service: StubService, status: int, kind: type[Rejected]
) -> None:
    service.on(
        "GET",
        "/jobs/j1/events",
        sse(RETRY, frame("snapshot", job(), "e-1"), cut=True),
        answer(status, {"title": "no", "status": status}),
    )
    async with connect(service.url) as client, aclosing(client.job("j1").events()) as events:
        assert (await anext(events)).id == "e-1"
        with pytest.raises(kind) as caught:
            await anext(events)
    assert type(caught.value) is kind


async def test_a_frame_that_is_no_json_is_another_protocol(connect: Connect, service: StubService) -> None:
    service.on("GET", "/jobs/j1/events", sse("id: e-1\nevent: log\ndata: {half\n\n"))
    async with connect(service.url) as client:
        with pytest.raises(Unreachable, match="does not speak"):
            await collect(client)


async def test_leaving_a_stream_closes_its_connection(connect: Connect, service: StubService) -> None:
    service.on("GET", "/jobs/j1/events", sse(frame("snapshot", job(), "e-1"), hold=True))
    async with connect(service.url) as client:
        async with aclosing(client.job("j1").events()) as events:
            async for event in events:
                assert event.event == "snapshot"
                break
        assert await asyncio.to_thread(service.wait_for_leaver)


async def test_progress_events_carry_progress(connect: Connect, service: StubService) -> None:
    last = frame("done", job(status="succeeded"), "e-1")
    service.on("GET", "/jobs/j1/events", sse(frame("progress", {"current": 1, "percent": 50}), last))
    async with connect(service.url) as client:
        events = await collect(client)
    assert events[0].progress is not None
    assert events[0].progress.percent == 50
    assert events[1].progress is None


def test_a_blocking_client_works_inside_a_running_loop(service: StubService) -> None:
    ends(service, "succeeded")
    service.on("GET", "/words/j1", answer(200, 6))

    async def careless() -> object:
        with SyncClient(service.url) as client:
            return client.job("j1").result(5)

    assert asyncio.run(careless()) == 6


@pytest.mark.parametrize("call", ["list(job.events())", "job.result()", "job.result(60)"])
def test_ctrl_c_ends_a_blocking_call(service: StubService, call: str) -> None:
    service.on("GET", "/jobs/j1/events", sse(frame("snapshot", job(), "e-1"), ping=0.05))
    script = f"""
from jobstream.client import SyncClient
with SyncClient({service.url!r}) as client:
    job = client.job("j1")
    {call}
"""
    waiting = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert service.wait_for_request()
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=10)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert service.wait_for_leaver()


async def test_a_service_that_has_just_answered_is_worth_waiting_for(connect: Connect, service: StubService) -> None:
    service.on("POST", "/words", answer(202, job()))
    service.on("GET", "/jobs/j1/events", answer(503, {"status": 503}), sse(frame("done", job(), "e-2")))
    async with connect(service.url, max_pause=0.01) as client:
        handle = await client.submit("words", {})
        assert [event.id async for event in handle.events()] == ["e-2"]


async def test_a_result_comes_where_something_holds_streams_back(
    connect: Connect, service: StubService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstream.client.stream.SILENCE", 0.1)
    monkeypatch.setattr("jobstream.client.calls.LOOK_SECONDS", 0.01)
    service.on("GET", "/jobs/j1/events", sse(hold=True))
    service.on("GET", "/jobs/j1", answer(200, job()), answer(200, job(status="succeeded")))
    service.on("GET", "/words/j1", answer(200, 6))
    async with connect(service.url, max_pause=0.01) as client:
        assert await client.job("j1").result(20) == 6
