"""What a worker and its child processes say to each other: four bytes of length (big endian), then msgpack."""

from __future__ import annotations

import msgspec

from jobstream.children import Order
from jobstream.context import text
from jobstream.errors import (
    ConfigurationError,
    FieldError,
    FileMissing,
    InvalidInput,
    InvalidOutput,
    InvalidParameter,
    JobConflict,
    JobGone,
    JobstreamError,
    Retry,
    StorageFull,
    StorageUnavailable,
    TaskError,
    TaskRaised,
    UnknownTask,
)
from jobstream.outbox import Batch

LENGTH_BYTES = 4


class Start(msgspec.Struct, tag=True, frozen=True):
    """Worker to child: run this. `reference` is `module:qualname`, `data` the input as JSON."""

    reference: str
    task: str
    data: bytes
    job_id: str
    attempt: int
    max_attempts: int
    scratch: str = ""
    """Where copies of files may be put; the worker removes it."""
    trace: dict[str, str] | None = None


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Worker to child: end what you run, then yourself."""


class Asked(msgspec.Struct, tag=True, frozen=True):
    """Child to worker: a question of the running job, which the worker answers by its number."""

    number: int
    order: Order
    body: bytes


class Said(msgspec.Struct, tag=True, frozen=True):
    """Child to worker: progress, log lines and chunks."""

    batch: Batch


class Returned(msgspec.Struct, tag=True, frozen=True):
    """Child to worker: the result as JSON."""

    result: bytes


class Failed(msgspec.Struct, tag=True, frozen=True):
    """Child to worker: the input, the result or the set-up is wrong. `kind` is the error's code."""

    kind: str
    detail: str
    errors: list[FieldError] = []


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Child to worker: the task raised TaskError."""

    detail: str
    status: int
    code: str
    retryable: bool


class Raised(msgspec.Struct, tag=True, frozen=True):
    """Child to worker: the task raised anything else."""

    type_name: str
    message: str
    traceback_text: str
    retryable: bool


class Again(msgspec.Struct, tag=True, frozen=True):
    """Child to worker: the task raised Retry."""

    detail: str
    after: float | None


class Answered(msgspec.Struct, tag=True, frozen=True):
    """Worker to child: what became of a question; either a body or an error."""

    number: int
    body: bytes = b""
    error: Failed | Refused | Raised | Again | None = None
    timed_out: bool = False


Request = Start | Stop | Answered
Answer = Returned | Failed | Refused | Raised | Again
Reply = Said | Asked | Answer

_PLAIN: dict[str, type[JobstreamError]] = {
    error.code: error
    for error in (
        InvalidOutput,
        FileMissing,
        StorageFull,
        StorageUnavailable,
        UnknownTask,
        InvalidParameter,
        JobConflict,
        JobGone,
    )
}
"""Errors of which the detail says all."""

_encoder = msgspec.msgpack.Encoder()
requests = msgspec.msgpack.Decoder(Request)
replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytes:
    """A message as it goes over the socket."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def answer_of(error: JobstreamError | Retry) -> Answer:
    """The error as a message."""
    match error:
        case TaskError():
            return Refused(text(error.detail), int(error.http_status), text(error.problem_code), bool(error.retryable))
        case TaskRaised():
            return Raised(error.type_name, error.message, error.traceback_text, error.retryable)
        case Retry():
            return Again(text(error.detail), error.after)
        case InvalidInput():
            errors = [FieldError(pointer=text(e["pointer"]), detail=text(e["detail"])) for e in error.errors]
            return Failed(error.code, text(error.detail), errors)
        case _:
            return Failed(error.code, text(error.detail))


def error_of(answer: Failed | Refused | Raised | Again) -> JobstreamError | Retry:
    """The message as an error: what `answer_of` was given."""
    match answer:
        case Refused():
            return TaskError(answer.detail, status=answer.status, code=answer.code, retryable=answer.retryable)
        case Raised():
            return TaskRaised(answer.type_name, answer.message, answer.traceback_text, retryable=answer.retryable)
        case Again():
            return Retry(answer.detail, after=answer.after)
        case Failed(kind=InvalidInput.code):
            return InvalidInput(answer.detail, errors=answer.errors)
        case Failed(kind=kind) if kind in _PLAIN:
            return _PLAIN[kind](answer.detail)
        case _:
            return ConfigurationError(answer.detail)
