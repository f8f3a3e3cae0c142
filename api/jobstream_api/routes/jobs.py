"""The monitor: `/jobs` and `/jobs/{id}`: what a job is doing, whatever became of it."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from jobstream.bulk import check_scope
from jobstream.caller import Scope
from jobstream.job import Job, JobStatus, job_from_record
from jobstream.queue import Outcome
from jobstream.search import parse_query
from jobstream.store import PAGE_MAX, JobFilter
from jobstream_api.auth.gate import Canceller, Reader, Submitter, Watcher
from jobstream_api.service import Service
from jobstream_api.waiting import until_moved
from jobstream_api.wire import BY_PREFERENCE, job_response, matches, not_modified, preferences


class JobPage(BaseModel):
    """A page of jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None


def add_routes(router: APIRouter, service: Service) -> None:
    """`GET /jobs`; `GET`, `DELETE /jobs/{id}` and its `/status`; `POST` to its `/cancel` and `/retry`."""

    @router.get("/jobs", tags=["jobs"], summary="List jobs, newest first", response_model=JobPage)
    async def list_jobs(
        request: Request,
        caller: Reader,
        status: Annotated[JobStatus | None, Query(description="Only jobs in this state")] = None,
        task: Annotated[str | None, Query(description="Only jobs of this task")] = None,
        tag: Annotated[str | None, Query(description="Only jobs with this tag")] = None,
        owner: Annotated[
            str | None, Query(description="Only jobs of this tenant; the caller's, unless it is an admin")
        ] = None,
        q: Annotated[str | None, Query(description="Only jobs whose input or tags say all these words")] = None,
        limit: Annotated[int, Query(ge=1, description=f"Jobs per page; more than {PAGE_MAX} is taken as that")] = 50,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
    ) -> Response:
        words = parse_query(q) if q is not None else ()
        wanted = JobFilter(status=status, task=task, tag=tag, owner=owner or caller.sees, words=words)
        jobs: list[Job] = []
        next_cursor = None
        if caller.sees in (None, wanted.owner):  # else the list of a stranger: as empty as that of nobody
            jobs, next_cursor = await service.queue.list(wanted, limit=limit, cursor=cursor)
        headers = {}
        if next_cursor is not None:
            kept = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
            query = urlencode([*kept, ("cursor", next_cursor)])
            headers["Link"] = f'<{service.prefix}/jobs?{query}>; rel="next"'
        page = JobPage(jobs=jobs, next_cursor=next_cursor)
        return Response(page.model_dump_json(), media_type="application/json", headers=headers)

    @router.get("/jobs/{job_id}/status", include_in_schema=False)
    @router.get(
        "/jobs/{job_id}",
        tags=["jobs"],
        summary="What the job is doing",
        response_model=Job,
        responses={304: {"description": "The version is still the one in `If-None-Match`"}},
    )
    async def monitor(job_id: str, request: Request, caller: Watcher) -> Response:
        job, headers = await service.queue.get(job_id, owner=caller.sees), dict(BY_PREFERENCE)
        if matches(request, job.version):
            wanted = preferences(request)
            headers |= wanted.applied()
            if wanted.wait and not job.done:
                record = await until_moved(service, request, job_id, job.version, seconds=wanted.wait)
                if record is None:
                    raise await service.queue.missing(job_id, owner=caller.sees)
                job = job_from_record(record, prefix=service.prefix)
            if matches(request, job.version):
                return not_modified(job.version, headers)
        return job_response(job, headers=headers)

    @router.post(
        "/jobs/{job_id}/cancel",
        tags=["jobs"],
        summary="Stop the job; its record stays",
        response_model=Job,
        responses={202: {"model": Job, "description": "The job stops"}, 200: {"description": "It had ended"}},
    )
    async def cancel(job_id: str, caller: Canceller) -> Response:
        outcome = await service.queue.cancel(job_id, owner=caller.sees)
        return job_response(outcome.job, status=200 if outcome.was_done else 202)

    @router.post(
        "/jobs/{job_id}/retry",
        tags=["jobs"],
        summary="Run a failed or cancelled job again, under the same id",
        status_code=202,
        response_model=Job,
    )
    async def retry(job_id: str, caller: Submitter) -> Response:
        if not caller.may(Scope.CANCEL):
            check_scope((await service.queue.get(job_id, owner=caller.sees)).task, caller)
        return job_response(await service.queue.retry(job_id, owner=caller.sees), status=202)

    @router.delete(
        "/jobs/{job_id}",
        tags=["jobs"],
        summary="Stop the job and forget it",
        status_code=204,
        responses={202: {"model": Job, "description": "It runs: it is stopped, then forgotten"}},
    )
    async def purge(job_id: str, caller: Canceller) -> Response:
        return await purged(await service.queue.purge(job_id, owner=caller.sees), service)


async def purged(outcome: Outcome, service: Service) -> Response:
    """The answer to a DELETE. A running job's files go when it has stopped, by the workers' sweep."""
    if outcome.stopping:
        return job_response(outcome.job, status=202)
    await service.drop_files(outcome.job.id)
    return Response(status_code=204)
