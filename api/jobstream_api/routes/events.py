"""`GET /jobs/{id}/events`: every change of a job, live and resumable."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from jobstream.errors import InvalidParameter
from jobstream.events import EventId, parse_event_id
from jobstream_api.live.follow import Follower
from jobstream_api.live.sse import event_stream
from jobstream_api.service import Service


def add_routes(router: APIRouter, service: Service) -> None:
    """The event stream of one job, as Server-Sent Events."""

    @router.get(
        "/jobs/{job_id}/events",
        tags=["jobs"],
        summary="Follow the job: snapshot, status, progress, log, chunk, done",
        response_class=Response,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            204: {"description": "`done` was seen already: there is nothing to follow"},
        },
    )
    async def events(
        job_id: str,
        last_event_id: Annotated[str | None, Header(description="Resume behind this event")] = None,
        after: Annotated[
            str | None, Query(alias="last_event_id", description="The same, for a first connection")
        ] = None,
    ) -> Response:
        follower = Follower(
            service.client,
            service.hub,
            job_id,
            epoch=await service.epoch(),
            after=_event_id(last_event_id or after),
            heartbeat=service.settings.heartbeat_seconds,
            prefix=service.prefix,
        )
        return await event_stream(follower.frames()) or Response(status_code=204)


def _event_id(text: str | None) -> EventId | None:
    if not text:
        return None
    parsed = parse_event_id(text)
    if parsed is None:
        raise InvalidParameter("Last-Event-ID is not one that a stream has given")
    return parsed
