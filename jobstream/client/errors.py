"""What can go wrong for a client.

ClientError
├── Unreachable          no answer: nothing listens there, or the connection broke
├── Rejected             the service answered with a problem (RFC 9457)
│   ├── Unauthorized     401, 403
│   ├── NotFound         404
│   │   └── Gone         410: it was there
│   └── Unavailable      502, 503, 504: away for the moment
├── JobFailed            the job has ended without a result; `job.error` says why
├── JobCancelled         the job was cancelled
├── StillRunning         the time given to `wait` or `result` is over; the job goes on (also a TimeoutError)
└── UnexpectedResult     the result is not of the type that was asked for (also a ValueError)
"""

from __future__ import annotations

from http import HTTPStatus

import httpx2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobstream.job import Job


class FieldProblem(BaseModel):
    """One thing wrong with the request: a JSON pointer and a sentence."""

    pointer: str = ""
    detail: str = ""


class Problem(BaseModel):
    """An error on the wire (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    instance: str | None = None
    code: str = ""
    errors: list[FieldProblem] = Field(default_factory=list)

    def __str__(self) -> str:
        said = self.detail or self.title or f"HTTP {self.status}"
        unsaid = [error for error in self.errors if error.detail not in said]
        fields = "; ".join(f"{error.pointer or 'input'}: {error.detail}" for error in unsaid)
        return f"{said} ({fields})" if fields else said


class ClientError(Exception):
    """Something went wrong between this client and the service."""


class Unreachable(ClientError):
    """No answer: nothing listens there, or the connection broke."""


class Rejected(ClientError):
    """The service said no; `problem` says why."""

    def __init__(self, problem: Problem, *, retry_after: float | None = None) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.retry_after = retry_after
        """Seconds after which the service asks to be asked again; None if it does not say."""


class Unauthorized(Rejected):
    """The token is missing, wrong or not allowed to do that."""


class NotFound(Rejected):
    """There is no such job or task."""


class Gone(NotFound):
    """It was there: the job was cancelled, or purged within a day."""


class Unavailable(Rejected):
    """The service is away, full or draining for the moment."""


class JobFailed(ClientError):
    """The job has failed; `job.error` says why."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.error.detail or job.error.title if job.error else "the job failed")
        self.job = job


class JobCancelled(ClientError):
    """The job was cancelled."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} was cancelled")
        self.job = job


class StillRunning(ClientError, TimeoutError):
    """The time to wait is over; the job goes on."""

    def __init__(self, job_id: str, seconds: float) -> None:
        super().__init__(f"job {job_id} is not done after {seconds:g} s")


class UnexpectedResult(ClientError, ValueError):
    """The result is not of the type that was asked for."""


_BY_STATUS: dict[int, type[Rejected]] = {
    HTTPStatus.UNAUTHORIZED: Unauthorized,
    HTTPStatus.FORBIDDEN: Unauthorized,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.GONE: Gone,
    HTTPStatus.BAD_GATEWAY: Unavailable,
    HTTPStatus.SERVICE_UNAVAILABLE: Unavailable,
    HTTPStatus.GATEWAY_TIMEOUT: Unavailable,
}


def checked(response: httpx2.Response) -> httpx2.Response:
    """The response, which has been read. Raises the tree of `Rejected` for what is not a success."""
    if response.is_success or response.has_redirect_location:  # 303 is a task's other way to say "accepted"
        return response
    status = response.status_code
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(title=f"HTTP {status} {response.reason_phrase}".strip(), detail=response.text[:200])
    problem.status = problem.status or status
    raise _BY_STATUS.get(status, Rejected)(problem, retry_after=_seconds(response.headers.get("retry-after", "")))


def unreachable(base_url: str, error: Exception) -> Unreachable:
    """No answer, in words."""
    return Unreachable(f"no answer from {base_url}: {str(error) or type(error).__name__}")


def _seconds(header: str) -> float | None:
    return float(header) if header.isascii() and header.isdecimal() else None
