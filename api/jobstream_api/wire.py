"""Responses of the contract: a Job with its headers, where to poll, when to come back."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from jobstream.job import Job

RETRY_AFTER = "1"
"""Seconds until it is worth asking again."""


def etag(job: Job) -> str:
    """The job's version as a weak validator."""
    return f'W/"{job.version}"'


def monitor_link(job: Job) -> str:
    """The Link header that names the monitor and the event stream."""
    return f'<{job.links.self}>; rel="monitor", <{job.links.events}>; rel="alternate"; type="text/event-stream"'


def job_response(job: Job, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The Job as JSON; `Retry-After` while it is not done."""
    more = {} if job.done else {"Retry-After": RETRY_AFTER}
    return Response(
        job.model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers={"ETag": etag(job), **more, **(headers or {})},
    )


def accepted(job: Job, request: Request, *, status: int) -> Response:
    """The answer to a submit: 202, or 303, with all that a client needs to go on."""
    headers = {
        "Location": job.links.result,
        "Operation-Location": str(request.base_url).rstrip("/") + job.links.self,
        "Link": monitor_link(job),
        "Vary": "Prefer, Accept",
    }
    return job_response(job, status=status, headers=headers)


def matches(request: Request, job: Job) -> bool:
    """True when `If-None-Match` (RFC 9110, section 13.1.2) names the job's version."""
    wanted = request.headers.get("if-none-match", "")
    current = etag(job).removeprefix("W/")
    return wanted.strip() == "*" or current in (tag.strip().removeprefix("W/") for tag in wanted.split(","))


def accepts_html(request: Request) -> bool:
    """True for a browser: HTML is named in `Accept`, and JSON is not."""
    accept = request.headers.get("accept", "").lower()
    return "text/html" in accept and "application/json" not in accept
