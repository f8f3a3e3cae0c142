"""`/jobs/{id}/events`, `/jobs/{id}/ws`, `/events`: every change of a job, or of many, in three formats."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, WebSocket
from starlette.responses import Response

from jobstream.caller import Caller, Scope
from jobstream.errors import Forbidden, InvalidParameter
from jobstream.events import EventId, parse_event_id
from jobstream.job import JobStatus
from jobstream.redis import is_unavailable
from jobstream.store import JobFilter
from jobstream_api import problems
from jobstream_api.auth.gate import Watcher
from jobstream_api.live.follow import Follower
from jobstream_api.live.frame import WireFormat
from jobstream_api.live.many import ManyFollower
from jobstream_api.live.ndjson import NDJSON
from jobstream_api.live.sse import SSE
from jobstream_api.live.stream import EventStream, come_back
from jobstream_api.live.websocket import Socket, refuse_socket
from jobstream_api.service import Service

STREAM: dict[str, Any] = {
    "content": {
        "text/event-stream": {"schema": {"type": "string"}},
        "application/x-ndjson": {"schema": {"type": "string"}},
    }
}
_LINES = ("application/x-ndjson", "application/ndjson", "application/jsonl")


async def _behind(
    last_event_id: Annotated[str | None, Header(description="Resume behind this event")] = None,
    after: Annotated[str | None, Query(alias="last_event_id", description="The same, for a first connection")] = None,
) -> EventId | None:
    return event_id(last_event_id or after)


Behind = Annotated[EventId | None, Depends(_behind)]
"""Where a client says that it was."""


def add_routes(router: APIRouter, service: Service) -> None:
    """The event stream of one job, and that of all that match a filter."""

    @router.get(
        "/jobs/{job_id}/events",
        tags=["jobs"],
        summary="Follow the job: snapshot, status, progress, log, chunk, done",
        response_class=Response,
        responses={
            200: STREAM,
            204: {"description": "`done` was seen already: there is nothing to follow"},
        },
    )
    async def events(
        request: Request,
        job_id: str,
        caller: Watcher,
        after: Behind,
    ) -> Response:
        visible = service.queue.check_visible(job_id, owner=caller.sees)
        return await stream_of(service, request, job_id, after, visible)

    @router.get(
        "/events",
        tags=["jobs"],
        summary="Follow many jobs on one connection",
        description="A `snapshot` of every job that matches and is not done, then `listed`, then every event of all "
        'that match: the data of each is `{"job":…,"task":…,"time":…,"data":…}`. It does not end by itself.',
        response_class=Response,
        responses={200: STREAM},
    )
    async def many_events(
        request: Request,
        caller: Watcher,
        after: Behind,
        status: Annotated[
            JobStatus | None, Query(description="Only jobs in this state; the event that leaves it is included")
        ] = None,
        task: Annotated[str | None, Query(description="Only jobs of this task")] = None,
        tag: Annotated[str | None, Query(description="Only jobs with this tag")] = None,
    ) -> Response:
        wanted = JobFilter(status=status, task=task, tag=tag, owner=caller.sees)
        return _stream(service, request, ManyFollower(service.tape, wanted, after=after))

    @router.websocket("/jobs/{job_id}/ws")
    async def socket(websocket: WebSocket, job_id: str, caller: Watcher) -> None:
        async def visible() -> None:
            await service.queue.check_visible(job_id, owner=caller.sees)

        async def cancel_job() -> None:
            await service.queue.cancel(job_id, owner=caller.sees)

        await serve_socket(service, websocket, caller, job_id, visible=visible, cancel=cancel_job)


async def stream_of(
    service: Service, request: Request, job_id: str, after: EventId | None, visible: Awaitable[object]
) -> Response:
    """The stream of one job, or batch, in the format that is asked for. `visible` raises when the caller sees none."""
    try:
        await visible
    except Exception as error:
        if not is_unavailable(error):
            raise
        return come_back(wanted_format(request))
    return _stream(service, request, Follower(service.hub, job_id, after=after))


def _stream(service: Service, request: Request, follower: Follower | ManyFollower) -> Response:
    def refuse(error: Exception, request: Request) -> Response:
        return problems.respond(error, request, service.prefix)

    return EventStream(follower, wanted_format(request), service.streams, refuse=refuse)


async def serve_socket(
    service: Service,
    websocket: WebSocket,
    caller: Caller,
    job_id: str,
    *,
    visible: Callable[[], Awaitable[None]],
    cancel: Callable[[], Awaitable[None]],
) -> None:
    """The same over a WebSocket, by which callers that may can also cancel."""

    async def cancel_if_allowed() -> None:
        if not caller.may(Scope.CANCEL):
            raise Forbidden(f"The caller lacks the scope {Scope.CANCEL.value!r}", scope=Scope.CANCEL.value)
        await cancel()

    await websocket.accept()
    try:
        after = event_id(websocket.query_params.get("last_event_id"))
        await visible()
    except Exception as error:
        await refuse_socket(websocket, error)
        return
    follower = Follower(service.hub, job_id, after=after)
    await Socket(websocket, follower, service.streams, cancel_job=cancel_if_allowed).serve()


def wanted_format(request: Request) -> WireFormat:
    """JSON lines when `Accept` names them and not event streams, which are the default."""
    accept = request.headers.get("accept", "").lower()
    lines = any(name in accept for name in _LINES) and "text/event-stream" not in accept
    return NDJSON if lines else SSE


def event_id(text: str | None) -> EventId | None:
    """The id to resume behind. Raises InvalidParameter for one that no stream has given."""
    if not text:
        return None
    parsed = parse_event_id(text)
    if parsed is None:
        raise InvalidParameter("Last-Event-ID is not one that a stream has given")
    return parsed
