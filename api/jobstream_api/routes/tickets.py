"""`POST /jobs/{id}/ticket`, `POST /events/ticket`: a ticket for what cannot send headers."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from jobstream.batch import batch_from_record
from jobstream.batches import find_batch
from jobstream.job import JobStatus, WireTime
from jobstream_api.auth.gate import Reader
from jobstream_api.auth.tickets import NOT_ASKED, PARAMETER, Ticket
from jobstream_api.service import Service


class TicketView(BaseModel):
    """A ticket: until it expires, whoever has it may watch what it was made for."""

    ticket: str
    expires_at: WireTime
    url: str = Field(description="What it was made for, with the ticket")


def add_routes(router: APIRouter, service: Service) -> None:
    """Tickets for one job, and for the stream of all jobs that a filter shows."""

    @router.post(
        "/jobs/{job_id}/ticket", tags=["jobs"], summary="A ticket for watching this job", response_model=TicketView
    )
    async def job_ticket(job_id: str, caller: Reader) -> Response:
        job = await service.queue.get(job_id, owner=caller.sees)
        return _response(await service.tickets.for_job(job.id, caller), job.links.events, [])

    @router.post(
        "/batches/{batch_id}/ticket",
        tags=["batches"],
        summary="A ticket for watching this batch",
        response_model=TicketView,
    )
    async def batch_ticket(batch_id: str, caller: Reader) -> Response:
        batch = batch_from_record(await find_batch(service.client, batch_id, owner=caller.sees), prefix=service.prefix)
        return _response(await service.tickets.for_batch(batch.id, caller), batch.links.events, [])

    @router.post(
        "/events/ticket", tags=["jobs"], summary="A ticket for watching all jobs of a filter", response_model=TicketView
    )
    async def filter_ticket(
        request: Request,
        caller: Reader,
        task: Annotated[str | None, Query(description="Only jobs of this task")] = None,
        status: Annotated[JobStatus | None, Query(description="Only jobs in this state")] = None,
        tag: Annotated[str | None, Query(description="Only jobs with this tag")] = None,
    ) -> Response:
        wanted = [pair for pair in request.query_params.multi_items() if pair[0] not in NOT_ASKED]
        return _response(await service.tickets.for_filter(wanted, caller), f"{service.prefix}/events", wanted)


def _response(ticket: Ticket, url: str, query: list[tuple[str, str]]) -> Response:
    view = TicketView(
        ticket=ticket.text,
        expires_at=ticket.expires_at,
        url=f"{url}?{urlencode([*query, (PARAMETER, ticket.text)])}",
    )
    headers = {"Cache-Control": "no-store"}
    return Response(view.model_dump_json(), media_type="application/json", headers=headers)
