"""Problem: an error on the wire (RFC 9457), made in one place for responses and for the records of failed jobs."""

from __future__ import annotations

from typing import Any

from jobstream.errors import InvalidInput, InvalidParameter, JobstreamError, TaskError, TaskRaised


def problem(error: JobstreamError) -> dict[str, Any]:
    """The problem object of an error: `type`, `title`, `status`, `detail`, `code`, and `errors` where there are any."""
    status, code = error.status, error.code
    if isinstance(error, TaskError):
        status, code = error.http_status, error.problem_code
    members: dict[str, Any] = {
        "type": f"/problems/{code}",
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
