"""Responses of the contract: a Job with its headers, its result, where to poll, when to come back."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from jobstream.batch import Batch
from jobstream.errors import JobGone
from jobstream.files import JobFile, file_result, is_spilled
from jobstream.job import Job, JobStatus, Record, job_from_record
from jobstream.problem import problem
from jobstream_api.preferences import Preferences, parse_preferences
from jobstream_api.problems import problem_response
from jobstream_api.service import Service

RETRY_AFTER = "1"
"""Seconds until it is worth asking again."""

PRIVATE = "private, no-cache"
"""Jobs are for whoever may see them, and change: a cache has to ask each time, which an ETag makes cheap."""

BY_PREFERENCE = {"Vary": "Prefer", "Cache-Control": PRIVATE}
BY_PREFERENCE_AND_KIND = {"Vary": "Prefer, Accept", "Cache-Control": PRIVATE}


def etag(version: int) -> str:
    """A job's version as a weak validator."""
    return f'W/"{version}"'


def monitor_link(job: Job) -> str:
    """The Link header that names the monitor and the event stream."""
    return f'<{job.links.self}>; rel="monitor", <{job.links.events}>; rel="alternate"; type="text/event-stream"'


def batch_response(batch: Batch, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The Batch as JSON; `Retry-After` while it is not done."""
    more = {} if batch.done else {"Retry-After": RETRY_AFTER}
    return Response(
        batch.model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers={"ETag": etag(batch.version), "Cache-Control": PRIVATE, **more, **(headers or {})},
    )


def job_response(job: Job, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The Job as JSON; `Retry-After` while it is not done."""
    more = {} if job.done else {"Retry-After": RETRY_AFTER}
    return Response(
        job.model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers={"ETag": etag(job.version), "Cache-Control": PRIVATE, **more, **(headers or {})},
    )


def accepted(job: Job, request: Request, service: Service, *, status: int, headers: dict[str, str]) -> Response:
    """The answer to a submit: 202, or 303, with all that a client needs to go on."""
    more = {
        "Location": job.links.result,
        "Operation-Location": service.origin(request) + job.links.self,
        "Link": monitor_link(job),
        **BY_PREFERENCE_AND_KIND,
    }
    return job_response(job, status=status, headers=more | headers)


def result_response(record: Record, service: Service, *, headers: dict[str, str]) -> Response:
    """What the result's URL says of a job: 202 and the Job, 200 and the result, or the problem that it ended with."""
    job = job_from_record(record, prefix=service.prefix)
    headers = {"Link": monitor_link(job), **BY_PREFERENCE_AND_KIND, **headers}
    if not job.done:
        return job_response(job, status=202, headers=headers)
    if job.status is JobStatus.CANCELLED:
        gone = problem(JobGone(f"Job {job.id} was cancelled"))
        return problem_response(gone, instance=job.links.result, prefix=service.prefix, headers=headers)
    if job.error is not None:
        return problem_response(job.error.model_dump(), instance=job.links.result, headers=headers)
    if (file := file_result(record.get(b"result"), job.id)) is not None and not is_spilled(file):
        headers["Location"] = file_url(file, service.prefix)
        return Response(file.model_dump_json(), status_code=303, media_type="application/json", headers=headers)
    headers["ETag"] = etag(job.version)
    return Response(record.get(b"result", b"null"), media_type="application/json", headers=headers)


def file_url(file: JobFile, prefix: str) -> str:
    """Where a file of a job is downloaded."""
    job_id, _, name = file.key.partition("/")
    return f"{prefix}/jobs/{job_id}/files/{name}"


def not_modified(version: int, headers: dict[str, str]) -> Response:
    """304, with the headers that the 200 would have."""
    return Response(status_code=304, headers={"ETag": etag(version), **headers})


def matches(request: Request, version: int) -> bool:
    """True when `If-None-Match` (RFC 9110, section 13.1.2) names the job's version."""
    wanted = request.headers.get("if-none-match", "")
    current = etag(version).removeprefix("W/")
    return wanted.strip() == "*" or current in (tag.strip().removeprefix("W/") for tag in wanted.split(","))


def preferences(request: Request) -> Preferences:
    """What the request prefers."""
    return parse_preferences(request.headers.getlist("prefer"))


def accepts_html(request: Request) -> bool:
    """True for a browser: HTML is named in `Accept`, and JSON is not."""
    accept = request.headers.get("accept", "").lower()
    return "text/html" in accept and "application/json" not in accept
