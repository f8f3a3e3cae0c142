"""`POST /jobs/cancel` and `POST /jobs/retry`: all jobs that match a filter, by a job that does it."""

from __future__ import annotations

from typing import Annotated

import pydantic_core
from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from jobstream.bulk import ATTEMPTS, CANCEL_JOBS, RETRY_JOBS, BulkFilter, CancelFilter, RetryFilter
from jobstream.caller import Caller, Scope
from jobstream.catalogue import read_workers
from jobstream.errors import Forbidden
from jobstream.job import DEFAULT_QUEUE, Job
from jobstream.queue import PRIORITY_MAX, SubmitOptions
from jobstream.search import parse_query
from jobstream_api.auth.gate import Canceller, Submitter
from jobstream_api.routes.results import idempotency_key
from jobstream_api.service import Service
from jobstream_api.wire import accepted

_OWNER = Field(None, description="Only jobs of this tenant: for admins, who touch those of all tenants without it")


class CancelQuery(CancelFilter):
    """The query of `POST /jobs/cancel`."""

    owner: str | None = _OWNER


class RetryQuery(RetryFilter):
    """The query of `POST /jobs/retry`."""

    owner: str | None = _OWNER


def add_routes(router: APIRouter, service: Service) -> None:
    """`POST /jobs/cancel`, `POST /jobs/retry`."""

    @router.post(
        "/jobs/cancel",
        tags=["jobs"],
        summary="Stop all jobs that match",
        status_code=202,
        response_model=Job,
        description="By a job, whose result says how many. Only jobs that are there now are touched.",
    )
    async def cancel_jobs(request: Request, caller: Canceller, query: Annotated[CancelQuery, Query()]) -> Response:
        return await _submit(service, request, caller, CANCEL_JOBS, query, owner=query.owner)

    @router.post(
        "/jobs/retry",
        tags=["jobs"],
        summary="Run all failed jobs again that match",
        status_code=202,
        response_model=Job,
        description="By a job, whose result says how many. Only jobs that have ended by now are touched.",
    )
    async def retry_jobs(request: Request, caller: Submitter, query: Annotated[RetryQuery, Query()]) -> Response:
        return await _submit(service, request, caller, RETRY_JOBS, query, owner=query.owner)


async def _submit(
    service: Service, request: Request, caller: Caller, task: str, wanted: BulkFilter, *, owner: str | None
) -> Response:
    """The job's owner is whose jobs it touches. Raises Forbidden for somebody else's."""
    if caller.sees is not None and owner not in (None, caller.sees):
        raise Forbidden("The jobs of another tenant are an admin's to change", scope=Scope.ADMIN.value)
    if wanted.q is not None:
        parse_query(wanted.q)  # now: in the worker it would be too late for an answer
    owner = owner or caller.sees
    data = wanted.model_dump(exclude={"owner"}, exclude_defaults=True)
    key = idempotency_key(request)
    job, replayed = await service.queue.submit_once(
        task,
        data,
        options=SubmitOptions(priority=PRIORITY_MAX),  # what it cancels would be in front of it
        default_queue=await _queue(service),
        max_attempts=ATTEMPTS,
        owner=owner,
        key=f"jobs/{task}:{key}" if key else "",
        fingerprint=pydantic_core.to_json([data, owner]).decode() if key else "",
    )
    headers = {"Idempotent-Replayed": "true"} if replayed else {}
    return accepted(job, request, service, status=202, headers=headers)


async def _queue(service: Service) -> str:
    """Every worker has the tasks; so the queue is one that some worker serves."""
    served = {queue for worker in await read_workers(service.client) for queue in worker.queues}
    return min(served) if served and DEFAULT_QUEUE not in served else DEFAULT_QUEUE
