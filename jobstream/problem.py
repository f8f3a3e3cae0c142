"""Problem: an error on the wire (RFC 9457), made in one place for responses and for the records of failed jobs."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from jobstream.errors import InvalidInput, InvalidParameter, JobstreamError, TaskError, TaskRaised

PROBLEMS = "/problems/"
"""Where the problem types have their pages: behind it comes the code."""


def problem(error: JobstreamError) -> dict[str, Any]:
    """The problem object of an error: `type`, `title`, `status`, `detail`, `code`, and `errors` where there are any."""
    status, code, page = error.status, error.code, error.code
    if isinstance(error, TaskError):
        status, code = error.http_status, error.problem_code
        if code != page:  # a task's own codes are not known here: they are sections of one page
            page += f"#{quote(code, safe='')}"
    members: dict[str, Any] = {
        "type": PROBLEMS + page,
        "title": error.title(),
        "status": status,
        "detail": error.detail or error.title(),
        "code": code,
    }
    if isinstance(error, InvalidInput | InvalidParameter) and error.errors:
        members["errors"] = error.errors
    return members


def job_problem(error: JobstreamError, *, attempt: int) -> dict[str, Any]:
    """The problem of a failed job: it also says in which attempt, and whether trying again could help."""
    retryable = error.retryable if isinstance(error, TaskError | TaskRaised) else False
    return problem(error) | {"retryable": retryable, "attempt": attempt}


def placed(members: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The problem with a `type` that leads to its page where the service is reached under a prefix."""
    type_ = members.get("type", "")
    return members | {"type": prefix + type_} if prefix and type_.startswith(PROBLEMS) else members
