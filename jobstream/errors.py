"""What can go wrong, as one tree. The first line of each docstring is the `title` a client reads (RFC 9457).

JobstreamError
├── InvalidInput            422  the input does not fit the task's schema
├── InvalidParameter        422  a query option or header of the request is not understood
├── IdempotencyMismatch     422  the Idempotency-Key stands for a request with another payload
├── MalformedBody           400  the body cannot be parsed
├── Unauthorized            401  no key, token or ticket, or none that is valid
├── Forbidden               403  the caller lacks a scope
├── UnknownTask             404  no worker has announced a task of that name
├── JobNotFound             404  no job of that id
├── JobGone                 410  the job was cancelled, purged or has expired
├── JobConflict             409  the job's state does not allow the request
├── PayloadTooLarge         413  the body, a field or a file is too large
├── UnsupportedMediaType    415  the body's media type is not accepted here
├── RedisUnavailable        503  Redis is away, full or read-only for the moment
├── Draining                503  the process is shutting down
├── InvalidOutput           500  the task's result is not what its return annotation promises
├── TaskRaised              500  the task raised an exception
├── TaskCrashed             500  the process that ran the task died
├── OutboxFull              500  a task said more than could be written
├── CancelledByClient       410  why a cancelled job has no result
├── WorkerCrashed           500  the worker that ran the job died, again and again
├── ConfigurationError           a setting or a task's declaration is wrong
└── TaskError               422  raised by a task: the caller's fault, with a status of the task's choice
Retry (Exception)                raised by a task: this attempt is over, try again
JobCancelled (BaseException)     raised inside a running task that has been cancelled
"""

from __future__ import annotations

from typing import ClassVar, TypedDict


class FieldError(TypedDict):
    """One thing wrong with an input: a JSON pointer (RFC 6901) and a sentence."""

    pointer: str
    detail: str


class JobstreamError(Exception):
    """Something went wrong"""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    @classmethod
    def title(cls) -> str:
        """The sentence that a client reads: the first line of the docstring."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0].rstrip(".")


class InvalidInput(JobstreamError):
    """The input does not fit the task's schema"""

    status = 422
    code = "invalid-input"

    def __init__(self, detail: str = "", *, errors: list[FieldError] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


class InvalidParameter(JobstreamError):
    """A parameter of the request is not understood"""

    status = 422
    code = "invalid-parameter"

    def __init__(self, detail: str = "", *, errors: list[FieldError] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


class IdempotencyMismatch(JobstreamError):
    """The Idempotency-Key was used for another request"""

    status = 422
    code = "idempotency-mismatch"


class MalformedBody(JobstreamError):
    """The body cannot be parsed"""

    status = 400
    code = "malformed-body"


class Unauthorized(JobstreamError):
    """A valid API key, token or ticket is needed

    `given`: one was sent, and is not valid.
    """

    status = 401
    code = "unauthorized"

    def __init__(self, detail: str = "", *, given: bool = False) -> None:
        super().__init__(detail)
        self.given = given


class Forbidden(JobstreamError):
    """The caller may not do that

    `scope`: what it lacks.
    """

    status = 403
    code = "forbidden"

    def __init__(self, detail: str = "", *, scope: str) -> None:
        super().__init__(detail)
        self.scope = scope


class UnknownTask(JobstreamError):
    """No worker has announced a task of that name"""

    status = 404
    code = "unknown-task"


class JobNotFound(JobstreamError):
    """There is no job of that id"""

    status = 404
    code = "job-not-found"


class JobGone(JobstreamError):
    """The job has no result and never will have one"""

    status = 410
    code = "job-gone"


class JobConflict(JobstreamError):
    """The job's state does not allow that"""

    status = 409
    code = "job-conflict"


class PayloadTooLarge(JobstreamError):
    """The body is too large"""

    status = 413
    code = "payload-too-large"


class UnsupportedMediaType(JobstreamError):
    """The body's media type is not accepted here"""

    status = 415
    code = "unsupported-media-type"


class RedisUnavailable(JobstreamError):
    """The store is away for the moment"""

    status = 503
    code = "redis-unavailable"


class OutboxFull(JobstreamError):
    """The task said more than could be written"""

    code = "outbox-full"


class InvalidOutput(JobstreamError):
    """The task's result is not what it promises"""

    code = "invalid-output"


class TaskRaised(JobstreamError):
    """The task raised an exception"""

    code = "task-raised"

    def __init__(self, type_name: str, message: str, traceback_text: str, *, retryable: bool = False) -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.retryable = retryable
        """Whether the task's RetryPolicy tries again after such an exception."""
        self.type_name = type_name
        """The exception's class, without its module."""
        self.message = message
        self.traceback_text = traceback_text
        """For the worker's log; never sent to a client."""


class TaskCrashed(JobstreamError):
    """The process that ran the task died"""

    code = "task-crashed"


class WorkerCrashed(JobstreamError):
    """The worker died while it ran the job, again and again"""

    code = "worker-crashed"


class CancelledByClient(JobstreamError):
    """The job was cancelled"""

    status = 410
    code = "cancelled"


class Draining(JobstreamError):
    """The process is shutting down"""

    status = 503
    code = "draining"


class ConfigurationError(JobstreamError):
    """A setting or a declaration is wrong"""

    code = "configuration-error"


class TaskError(JobstreamError):
    """The task refused the request

    Raise it from a task when the caller is at fault: the job ends as `failed` and the result's URL answers with
    `status` (400–599) and `code`.
    """

    status = 422
    code = "task-error"

    def __init__(
        self, detail: str = "", *, status: int = 422, code: str = "task-error", retryable: bool = False
    ) -> None:
        super().__init__(detail)
        if not 400 <= status <= 599:
            raise ValueError(f"status must be an HTTP error status, 400 to 599, not {status}")
        self.http_status = status
        self.problem_code = code
        self.retryable = retryable


class Retry(Exception):
    """Raise it from a task: this attempt is over, the job is tried again.

    `after`: seconds until the next attempt; None leaves it to the task's RetryPolicy. Its `attempts` count either way.
    """

    def __init__(self, detail: str = "", *, after: float | None = None) -> None:
        super().__init__(detail)
        if after is not None and not 0 <= after < 366 * 86_400:
            raise ValueError("after is a number of seconds from 0 to a year")
        self.detail = detail
        self.after = after


class JobCancelled(BaseException):
    """The job was told to stop. Not an `Exception`, so that a task's `except Exception` does not swallow it."""
