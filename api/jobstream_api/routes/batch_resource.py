"""`/batches/{id}`: what a batch is doing, its jobs, its one event stream, and its end by request."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, WebSocket
from starlette.responses import Response

from jobstream.batch import Batch, batch_from_record
from jobstream.batches import cancel_batch, find_batch, list_batch, read_batch
from jobstream.errors import BatchNotFound
from jobstream.job import JobStatus
from jobstream.store import PAGE_MAX
from jobstream_api.auth.gate import Canceller, Watcher
from jobstream_api.routes.events import STREAM, Behind, serve_socket, stream_of
from jobstream_api.routes.jobs import JobPage
from jobstream_api.service import Service
from jobstream_api.waiting import until_moved
from jobstream_api.wire import BY_PREFERENCE, batch_response, matches, not_modified, preferences


def add_routes(router: APIRouter, service: Service) -> None:
    """`GET /batches/{id}`, its `/jobs`, `/events` and `/ws`, `POST` to its `/cancel`."""

    @router.get(
        "/batches/{batch_id}",
        tags=["batches"],
        summary="How far the batch is",
        response_model=Batch,
        responses={304: {"description": "The version is still the one in `If-None-Match`"}},
    )
    async def batch(batch_id: str, request: Request, caller: Watcher) -> Response:
        found = batch_from_record(await find_batch(service.client, batch_id, owner=caller.sees), prefix=service.prefix)
        headers = dict(BY_PREFERENCE)
        if matches(request, found.version):
            wanted = preferences(request)
            headers |= wanted.applied()
            if wanted.wait and not found.done:
                record = await until_moved(
                    service, request, batch_id, found.version, seconds=wanted.wait, read=read_batch
                )
                if record is None:
                    raise BatchNotFound(f"There is no batch {batch_id[:64]!r}")
                found = batch_from_record(record, prefix=service.prefix)
            if matches(request, found.version):
                return not_modified(found.version, headers)
        return batch_response(found, headers=headers)

    @router.get(
        "/batches/{batch_id}/jobs", tags=["batches"], summary="Its jobs, in their order", response_model=JobPage
    )
    async def batch_jobs(
        batch_id: str,
        request: Request,
        caller: Watcher,
        status: Annotated[JobStatus | None, Query(description="Only jobs in this state")] = None,
        limit: Annotated[int, Query(description=f"Jobs per page, {PAGE_MAX} at most")] = 50,
        cursor: Annotated[
            str | None, Query(description="Where the page begins: `next_cursor` of the one before")
        ] = None,
    ) -> Response:
        record = await find_batch(service.client, batch_id, owner=caller.sees)
        page = await list_batch(
            service.client, record, status=status, limit=limit, cursor=cursor, prefix=service.prefix
        )
        headers = {}
        if page.next_cursor is not None:
            kept = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
            query = urlencode([*kept, ("cursor", page.next_cursor)])
            headers["Link"] = f'<{service.prefix}/batches/{batch_id}/jobs?{query}>; rel="next"'
        body = JobPage(jobs=page.jobs, next_cursor=page.next_cursor).model_dump_json()
        return Response(body, media_type="application/json", headers=headers)

    @router.post(
        "/batches/{batch_id}/cancel",
        tags=["batches"],
        summary="Stop all its jobs; their records stay",
        response_model=Batch,
        responses={202: {"model": Batch, "description": "Its jobs stop"}, 200: {"description": "It had ended"}},
    )
    async def cancel_whole_batch(batch_id: str, caller: Canceller) -> Response:
        record, was_done = await cancel_batch(service.client, batch_id, owner=caller.sees)
        return batch_response(batch_from_record(record, prefix=service.prefix), status=200 if was_done else 202)

    @router.get(
        "/batches/{batch_id}/events",
        tags=["batches"],
        summary="Follow the batch: snapshot, status, progress, done",
        response_class=Response,
        responses={
            200: STREAM,
            204: {"description": "`done` was seen already: there is nothing to follow"},
        },
    )
    async def batch_events(
        request: Request,
        batch_id: str,
        caller: Watcher,
        after: Behind,
    ) -> Response:
        visible = find_batch(service.client, batch_id, owner=caller.sees)
        return await stream_of(service, request, batch_id, after, visible)

    @router.websocket("/batches/{batch_id}/ws")
    async def batch_socket(websocket: WebSocket, batch_id: str, caller: Watcher) -> None:
        async def visible() -> None:
            await find_batch(service.client, batch_id, owner=caller.sees)

        async def cancel_all() -> None:
            await cancel_batch(service.client, batch_id, owner=caller.sees)

        await serve_socket(service, websocket, caller, batch_id, visible=visible, cancel=cancel_all)
