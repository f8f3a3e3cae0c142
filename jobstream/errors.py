"""What can go wrong, as one tree. The first line of each docstring is the `title` a client reads (RFC 9457), the next
paragraph what it may do about it, shown at `/problems/{code}`.

JobstreamError
├── InvalidInput            422  the input does not fit the task's schema
├── InvalidParameter        422  a query option or header of the request is not understood
├── IdempotencyMismatch     422  the Idempotency-Key stands for a request with another payload
├── IdempotencyInFlight     409  the first request with that Idempotency-Key has not been answered yet
├── MalformedBody           400  the body cannot be parsed
├── Unauthorized            401  no key, token or ticket, or none that is valid
├── Forbidden               403  the caller lacks a scope
├── PathNotFound            404  there is nothing at that path
├── MethodNotAllowed        405  the path does not take that method
├── UnknownTask             404  no worker has announced a task of that name
├── JobNotFound             404  no job of that id
├── BatchNotFound           404  no batch of that id
├── WebhookNotFound         404  no endpoint of that id
├── DeliveryNotFound        404  no delivery of that id
├── ScheduleNotFound        404  no schedule of that name
├── ScheduleConflict        409  the schedule's origin, or the number of them, does not allow the request
├── PreconditionFailed      412  what is to be changed is not as the caller believes
├── JobGone                 410  the job was cancelled, purged or has expired
├── JobConflict             409  the job's state does not allow the request
├── FileNotFound            404  no file of that name belongs to the job
├── RangeNotSatisfiable     416  the file has no such bytes
├── FileMissing             500  the storage lacks a file that the job says it has
├── StorageFull             507  there is no room for files
├── StorageUnavailable      503  files cannot be kept or read for the moment
├── PayloadTooLarge         413  the body, a field or a file is too large
├── UnsupportedMediaType    415  the body's media type is not accepted here
├── RedisUnavailable        503  Redis is away, full or read-only for the moment
├── IdentityUnavailable     503  the identity provider's keys cannot be read
├── OverQuota               429  the tenant submits faster than it may
├── QueueFull               503  the queue holds as many jobs as it may
├── Draining                503  the process is shutting down
├── InvalidOutput           500  the task's result is not what its return annotation promises
├── TaskRaised              500  the task raised an exception
├── TaskCrashed             500  the process that ran the task died
├── OutboxFull              500  a task said more than could be written
├── TaskTimeout             504  the task took longer than it may
├── TaskMissing             500  no worker has a task of that name
├── PayloadExpired          500  the job waited so long that its payload is gone
├── PayloadUnreadable       500  the job's payload cannot be decoded
├── CancelledByClient       410  why a cancelled job has no result
├── WorkerCrashed           500  the worker that ran the job died, again and again
├── PredecessorFailed       424  a job that it was to run after did not succeed
├── ConfigurationError           a setting or a task's declaration is wrong
└── TaskError               422  raised by a task: the caller's fault, with a status of the task's choice
Retry (Exception)                raised by a task: this attempt is over, try again
JobCancelled (BaseException)     raised inside a running task that has been cancelled
"""

from __future__ import annotations

from typing import ClassVar, TypedDict

from jobstream.quota import Quota


class FieldError(TypedDict):
    """One thing wrong with an input: a JSON pointer (RFC 6901) and a sentence."""

    pointer: str
    detail: str


class JobstreamError(Exception):
    """Something went wrong

    It is not your fault. The service's log has more, under the request's `X-Request-Id`.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    @classmethod
    def title(cls) -> str:
        """The sentence that a client reads: the first line of the docstring."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0].rstrip(".")

    @classmethod
    def advice(cls) -> str:
        """What a client may do about it: the second paragraph of the docstring."""
        paragraphs = (cls.__doc__ or "").split("\n\n")
        return " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else ""


class InvalidInput(JobstreamError):
    """The input does not fit the task's schema

    `errors` says where, as JSON pointers into the input. The schema is at `/tasks/{task}` and in `/openapi.json`.
    """

    status = 422
    code = "invalid-input"

    def __init__(self, detail: str = "", *, errors: list[FieldError] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


class InvalidParameter(JobstreamError):
    """A parameter of the request is not understood

    A query option or a header has a value that it cannot have, or no such option exists. `errors` names it.
    """

    status = 422
    code = "invalid-parameter"

    def __init__(self, detail: str = "", *, errors: list[FieldError] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


class IdempotencyMismatch(JobstreamError):
    """The Idempotency-Key was used for another request

    A key stands for one request for 24 hours: its input, files and query. Use a new key for another request.
    """

    status = 422
    code = "idempotency-mismatch"


class IdempotencyInFlight(JobstreamError):
    """The first request with this Idempotency-Key is still under way

    Wait for its answer, or send this request again after `Retry-After`: it then gets that answer.
    """

    status = 409
    code = "idempotency-in-flight"


class MalformedBody(JobstreamError):
    """The body cannot be parsed

    It is not JSON, not a form, not UTF-8, or it was cut off.
    """

    status = 400
    code = "malformed-body"


class Unauthorized(JobstreamError):
    """A valid API key, token or ticket is needed

    Send it as `Authorization: Bearer …`.

    `given`: one was sent, and is not valid.
    """

    status = 401
    code = "unauthorized"

    def __init__(self, detail: str = "", *, given: bool = False) -> None:
        super().__init__(detail)
        self.given = given


class Forbidden(JobstreamError):
    """The caller may not do that

    The key or token is valid, but lacks the scope that `detail` names.

    `scope`: what it lacks.
    """

    status = 403
    code = "forbidden"

    def __init__(self, detail: str = "", *, scope: str) -> None:
        super().__init__(detail)
        self.scope = scope


class PathNotFound(JobstreamError):
    """There is nothing at this path

    `/openapi.json` lists all paths.
    """

    status = 404
    code = "not-found"


class MethodNotAllowed(JobstreamError):
    """The path does not take this method

    `Allow` names those that it takes.
    """

    status = 405
    code = "method-not-allowed"


class UnknownTask(JobstreamError):
    """No worker has announced a task of that name

    `GET /tasks` lists those that have been announced. A new task is known as soon as its first worker has started.
    """

    status = 404
    code = "unknown-task"


class JobNotFound(JobstreamError):
    """There is no job of that id

    It was never known, its record has expired, or it is not yours.
    """

    status = 404
    code = "job-not-found"


class BatchNotFound(JobstreamError):
    """There is no such batch

    Its id is wrong, it belongs to somebody else, or the time to live of its jobs is over.
    """

    status = 404
    code = "batch-not-found"


class WebhookNotFound(JobstreamError):
    """There is no webhook of that id

    It was never registered, it was deleted, or it is not yours. `GET /webhooks` lists yours.
    """

    status = 404
    code = "webhook-not-found"


class DeliveryNotFound(JobstreamError):
    """There is no delivery of that id

    It was never made, it is not yours, or the two weeks for which it is kept have passed.
    """

    status = 404
    code = "delivery-not-found"


class ScheduleNotFound(JobstreamError):
    """There is no schedule of that name

    It was never made, it was deleted, or it is not yours. `GET /schedules` lists yours.
    """

    status = 404
    code = "schedule-not-found"


class ScheduleConflict(JobstreamError):
    """The schedule cannot be made, changed or deleted

    A task's own cron is changed where the task is declared; it can be paused. Or you have as many schedules as you may.
    """

    status = 409
    code = "schedule-conflict"


class PreconditionFailed(JobstreamError):
    """It is not as you believe

    Somebody has changed, made or deleted it since you looked: `If-Match` or `If-None-Match` says otherwise. Read it
    again.
    """

    status = 412
    code = "precondition-failed"


class JobGone(JobstreamError):
    """The job has no result and never will have one

    It was cancelled, or it was purged within the last day.
    """

    status = 410
    code = "job-gone"


class JobConflict(JobstreamError):
    """The job's state does not allow that

    Only a failed or cancelled job is run again.
    """

    status = 409
    code = "job-conflict"


class FileNotFound(JobstreamError):
    """The job has no such file

    `GET /jobs/{id}/files` lists those that it has.
    """

    status = 404
    code = "file-not-found"


class RangeNotSatisfiable(JobstreamError):
    """The file has no such bytes

    `Content-Range` says how many it has.

    `size`: in bytes.
    """

    status = 416
    code = "range-not-satisfiable"

    def __init__(self, detail: str = "", *, size: int) -> None:
        super().__init__(detail)
        self.size = size


class FileMissing(JobstreamError):
    """A file of the job is not in the storage

    The job says that it has it. API and workers may look in different places: they must share one storage.
    """

    code = "file-missing"


class StorageFull(JobstreamError):
    """There is no room for files

    Nothing was accepted, and nothing of the upload was kept.
    """

    status = 507
    code = "storage-full"


class StorageUnavailable(JobstreamError):
    """The storage of files is away for the moment

    Nothing was accepted. Try again after `Retry-After`.
    """

    status = 503
    code = "storage-unavailable"


class PayloadTooLarge(JobstreamError):
    """The body is too large

    The limits of the body, of a file and of the number of files are settings of the service.
    """

    status = 413
    code = "payload-too-large"


class UnsupportedMediaType(JobstreamError):
    """The body's media type is not accepted here

    Inputs are `application/json`, `multipart/form-data` or `application/x-www-form-urlencoded`.
    """

    status = 415
    code = "unsupported-media-type"


class RedisUnavailable(JobstreamError):
    """The store is away for the moment

    Nothing was accepted. Try again after `Retry-After`, with the same Idempotency-Key if you sent one.
    """

    status = 503
    code = "redis-unavailable"


class OverQuota(JobstreamError):
    """More jobs than the quota lets through

    Nothing was accepted. Try again after `Retry-After`; `RateLimit` says how many jobs may be submitted now, and
    `RateLimit-Policy` how many in which time.
    """

    status = 429
    code = "over-quota"

    def __init__(self, detail: str = "", *, quota: Quota, retry_after: int) -> None:
        super().__init__(detail)
        self.quota = quota
        self.retry_after = retry_after


class QueueFull(JobstreamError):
    """The queue holds as many jobs as it may

    Nothing was accepted. Try again after `Retry-After`, which is an estimate by how fast the workers clear the queue.
    """

    status = 503
    code = "queue-full"

    def __init__(self, detail: str = "", *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class OutboxFull(JobstreamError):
    """The task said more than could be written

    The store was away or slow while the task went on producing output. Run the job again.
    """

    code = "outbox-full"


class IdentityUnavailable(JobstreamError):
    """Tokens cannot be checked for the moment

    The identity provider's keys could not be read for a while. API keys go on working.
    """

    status = 503
    code = "identity-unavailable"


class InvalidOutput(JobstreamError):
    """The task's result is not what it promises

    The task is at fault, not the request: what it returned does not fit its own return annotation.
    """

    code = "invalid-output"


class TaskRaised(JobstreamError):
    """The task raised an exception

    The task is at fault, or what it depends on. The traceback is in the worker's log.
    """

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
    """The process that ran the task died

    It was killed, ran out of memory, or ended itself.
    """

    code = "task-crashed"


class TaskTimeout(JobstreamError):
    """The task took longer than it may

    Its `timeout` is in the catalogue; a request may ask for another one with `?timeout=`.
    """

    status = 504
    code = "timeout"


class TaskMissing(JobstreamError):
    """No worker has a task of that name

    Every worker of the queue runs an older or another set of tasks.
    """

    code = "task-missing"


class PayloadExpired(JobstreamError):
    """The job's payload is gone: it waited too long

    A job may wait for seven days. Submit it again.
    """

    code = "payload-expired"


class PayloadUnreadable(JobstreamError):
    """The job's payload cannot be decoded

    It was not written by this service, or with another serializer.
    """

    code = "payload-unreadable"


class WorkerCrashed(JobstreamError):
    """The worker died while it ran the job, again and again

    A job that takes its workers down is given up after some of them, since it would go on for ever.
    """

    code = "worker-crashed"


class CancelledByClient(JobstreamError):
    """The job was cancelled

    Somebody asked for it. `POST /jobs/{id}/retry` runs it again.
    """

    status = 410
    code = "cancelled"


class PredecessorFailed(JobstreamError):
    """A job that it was to run after did not succeed

    It has not run. Run the other one again first, and then this one.
    """

    status = 424
    code = "predecessor-failed"


class Draining(JobstreamError):
    """The process is shutting down

    Another process takes over. Try again after `Retry-After`.
    """

    status = 503
    code = "draining"


class ConfigurationError(JobstreamError):
    """A setting or a declaration is wrong"""

    code = "configuration-error"


class TaskError(JobstreamError):
    """The task refused the request

    `detail` says why, in the task's own words, and `code` may be the task's own too.

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


def wire_errors() -> list[type[JobstreamError]]:
    """Every error that a client may be told of; each has a `code` of its own, and a page under `/problems/`."""
    unseen: list[type[JobstreamError]] = [JobstreamError]
    found: list[type[JobstreamError]] = []
    while unseen:
        error = unseen.pop()
        unseen += error.__subclasses__()
        if error.__module__ == __name__ and error is not ConfigurationError:
            found.append(error)
    return sorted(found, key=lambda error: (error.status, error.code))
