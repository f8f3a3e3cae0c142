"""Message: what a receiver is told of the end of a job, in the form of Standard Webhooks, below 20 KB."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from jobstream.job import Job, job_from_record, new_job_id
from jobstream.traces import Carrier, checked

BODY_BYTES = 20_000

_LEFT_OUT = ("result", "errors", "progress", "error")
"""What is left out, in this order, of a job that is too large; all of it is at the job's links."""


def ended_job(entry: bytes, *, base: str = "") -> Job:
    """The job of an entry of the mailbag. `base` goes before its links. Raises ValueError for what is no record."""
    try:
        record = msgspec.json.decode(entry, type=dict[str, str])
        return job_from_record({name.encode(): value.encode() for name, value in record.items()}, prefix=base)
    except (msgspec.DecodeError, KeyError) as error:
        raise ValueError(f"not a record: {error}") from error


def callback_url_of(entry: bytes) -> str | None:
    """The `callback_url` that the job was submitted with."""
    found: str | None = msgspec.json.decode(entry, type=dict[str, str]).get("callback_url")
    return found


def trace_of(entry: bytes) -> Carrier | None:
    """The trace that the job was submitted in."""
    return checked(msgspec.json.decode(entry, type=dict[str, str]))


def result_was_left_out(entry: bytes) -> bool:
    """True when the result was too large for the mailbag."""
    return "result_omitted" in msgspec.json.decode(entry, type=dict[str, str])


def body_of(event: str, timestamp: str, data: Mapping[str, Any], *, omitted: tuple[str, ...] = ()) -> bytes:
    """The body. Members of `data` go, the largest kinds first, until it is small enough; `omitted` names them."""
    kept, gone = dict(data), list(omitted)
    for name in (None, *_LEFT_OUT):
        if name is not None and kept.get(name):
            kept[name] = [] if name == "errors" else None
            gone.append(name)
        elif name is not None:
            continue
        message = {"type": event, "timestamp": timestamp, "data": kept} | ({"omitted": gone} if gone else {})
        body = msgspec.json.encode(message)
        if len(body) < BODY_BYTES:
            break
    return body


def message_id_of(job: Job) -> str:
    """The same for all receivers of this end of this job, at every attempt: they know by it what they have."""
    return f"msg_{job.id}_{job.version}"


def delivery_id_of(message_id: str, receiver: str, *, now_ms: int) -> str:
    """An id that is always the same for this message to this receiver, and sorts by time."""
    digest = hashlib.sha256(f"{message_id} {receiver}".encode()).digest()
    return new_job_id(now_ms=now_ms, entropy=int.from_bytes(digest[:10]))
