"""`POST /jobs/batch`: many jobs of any tasks, stored all or none, in one round trip to Redis."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.responses import Response

from jobstream import queue
from jobstream.batch import BatchLinks, batch_links
from jobstream.bulk import check_scope
from jobstream.caller import Caller
from jobstream.errors import (
    FieldError,
    InvalidInput,
    InvalidParameter,
    MalformedBody,
    PayloadTooLarge,
    UnknownTask,
    UnsupportedMediaType,
)
from jobstream.idempotency import reserved
from jobstream.job import JobLinks, job_links, new_job_id
from jobstream.queue import BATCH_JOBS, Submission
from jobstream.task import field_errors, json_pointer
from jobstream_api.auth.gate import Submitter
from jobstream_api.body import check_length, check_without_files, is_json, read_body
from jobstream_api.coming import is_large
from jobstream_api.routes.results import RunQuery, idempotency_key
from jobstream_api.service import Service
from jobstream_api.validation import ERRORS_SHOWN, InputValidator
from jobstream_api.wire import PRIVATE, RETRY_AFTER

KEY_OF_BATCHES = "jobs/batch"
"""Takes the place of the task in idempotency keys; no task can have this name."""

TURN_SECONDS = 0.005
"""After so long a time others get a turn of the event loop."""


class BatchItem(RunQuery):
    """A job to be: its task, its input, and the options of a submit."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    task: str
    input: dict[str, Any] = Field({}, description="What `POST /{task}` takes as JSON")
    after: list[StrictStr | StrictInt] = Field(
        [],
        description="What must have succeeded before it runs: ids of jobs or batches, and numbers of earlier jobs of "
        "this batch, the first of which is 0",
    )


class BatchJob(BaseModel):
    """A job that was stored."""

    id: str
    task: str
    links: JobLinks


class StoredBatch(BaseModel):
    """A batch that was stored, with its jobs in the order of the request."""

    id: str
    jobs: list[BatchJob]
    links: BatchLinks


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": BATCH_JOBS,
                    "items": BatchItem.model_json_schema(),
                }
            }
        },
    }
}


def add_routes(router: APIRouter, service: Service) -> None:
    """`POST /jobs/batch`."""

    @router.post(
        "/jobs/batch",
        tags=["jobs"],
        summary="Submit many jobs, all or none",
        status_code=202,
        response_model=StoredBatch,
        openapi_extra=_BODY,
    )
    async def submit_batch(request: Request, caller: Submitter) -> Response:
        key, batch_id = idempotency_key(request), new_job_id()
        headers = {"Retry-After": RETRY_AFTER, "Cache-Control": PRIVATE}
        key = f"{KEY_OF_BATCHES}:{key}" if key else ""
        replays = False
        async with contextlib.AsyncExitStack() as stack:
            if key:  # before the body is read: while it arrives, the key is in use
                replays = await stack.enter_async_context(reserved(service.client, key, batch_id, owner=caller.tenant))
            media_type, _ = parse_options_header(request.headers.get("content-type", ""))
            if not is_json(media_type.decode("latin-1").lower()):
                raise UnsupportedMediaType("Send application/json: an array of jobs")
            check_length(request, at_most=service.settings.max_batch_bytes)
            if is_large(request.headers.raw) and not replays:
                await service.queue.check_room(owner=caller.tenant)  # which queues, only the body says
            body = await read_body(request, at_most=service.settings.max_batch_bytes)
            order = await _Reader(service, caller).read(body)
            stored, replayed = await service.queue.submit_batch(
                order.submissions,
                batch_id=batch_id,
                owner=caller.tenant,
                key=key,
                fingerprint=order.fingerprint,
                on_quota=lambda quota: headers.update(quota.headers()),
            )
        links = batch_links(stored.batch_id, prefix=service.prefix)
        headers |= {
            "Location": links.self,
            "Operation-Location": service.origin(request) + links.self,
            "Link": f'<{links.self}>; rel="monitor", <{links.events}>; rel="alternate"; type="text/event-stream"',
        }
        return Response(
            await _answer(stored, order.submissions, service.prefix),
            status_code=202,
            media_type="application/json",
            headers=headers | ({"Idempotent-Replayed": "true"} if replayed else {}),
        )


class _Order(msgspec.Struct):
    """A batch that is valid from its first job to its last."""

    submissions: list[Submission]
    fingerprint: str


class _Reader:
    """Reads one batch, and lets others have a turn now and then."""

    def __init__(self, service: Service, caller: Caller) -> None:
        self._service = service
        self._caller = caller
        self._errors: list[FieldError] = []

    async def read(self, body: bytes) -> _Order:
        """The whole batch. Raises MalformedBody, PayloadTooLarge, Forbidden, InvalidInput with a pointer per error."""
        raw = _items(body)
        if len(raw) > BATCH_JOBS:
            raise PayloadTooLarge(f"A batch has at most {BATCH_JOBS:,} jobs")
        fingerprint = hashlib.sha256()
        submissions: list[Submission] = []
        turn = time.monotonic()
        for number, item in enumerate(raw):
            try:
                data = msgspec.json.decode(item)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise MalformedBody(f"Job {number} of the batch is not JSON: {error}") from None
            fingerprint.update(msgspec.json.encode(data, order="deterministic"))
            if (submission := await self._submission(number, data)) is not None:
                submissions.append(submission)
            if len(self._errors) >= ERRORS_SHOWN:
                break
            if time.monotonic() - turn > TURN_SECONDS:
                await asyncio.sleep(0)
                turn = time.monotonic()
        if self._errors:
            first = self._errors[0]
            raise InvalidInput(f"Nothing was stored: {first['detail']} (at {first['pointer']})", errors=self._errors)
        return _Order(submissions, fingerprint.hexdigest())

    async def _submission(self, number: int, data: object) -> Submission | None:
        try:
            item = BatchItem.model_validate(data)
        except ValidationError as error:
            self._refuse(number, "", field_errors(error))
            return None
        try:
            validator = await self._service.tasks.validator(item.task)
        except UnknownTask as error:
            self._refuse(number, "/task", [FieldError(pointer="", detail=error.detail)])
            return None
        check_scope(item.task, self._caller)
        if (refusal := _needs_files(validator)) is not None:
            self._refuse(number, "/task", [FieldError(pointer="", detail=refusal)])
            return None
        try:
            options = item.options(item.after)
            options.check()
            if options.callback_url is not None:
                await self._service.targets.check(options.callback_url, option="callback_url")
        except InvalidParameter as error:
            self._refuse(number, "", error.errors)
            return None
        try:
            checked = check_without_files(validator, item.input)
        except InvalidInput as error:
            self._refuse(number, "/input", error.errors or [FieldError(pointer="", detail=error.detail)])
            return None
        announced = validator.task
        return Submission(
            announced.name,
            checked,
            options,
            announced.queue,
            announced.ttl,
            announced.max_attempts,
            owner=self._caller.tenant,
        )

    def _refuse(self, number: int, within: str, errors: Sequence[FieldError]) -> None:
        where = json_pointer([number]) + within
        self._errors += [FieldError(pointer=where + error["pointer"], detail=error["detail"]) for error in errors]


def _items(body: bytes) -> list[msgspec.Raw]:
    """The members of the array, unread: what they say is read one by one."""
    items: list[msgspec.Raw] = []
    with contextlib.suppress(msgspec.ValidationError):  # JSON, but no array
        try:
            items = msgspec.json.decode(body, type=list[msgspec.Raw])
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedBody(f"The body is not JSON: {error}") from None
    if not items:
        wrong = "an array of at least one job"
        raise InvalidInput(f"A batch is {wrong}", errors=[FieldError(pointer="", detail=wrong)])
    return items


def _needs_files(validator: InputValidator) -> str | None:
    task = validator.task
    if not set(task.file_fields) & set(task.input_schema.get("required", ())):
        return None
    return f"Task {task.name!r} needs files, which a batch cannot carry: send multipart/form-data to /{task.name}"


async def _answer(stored: queue.StoredBatch, submissions: Sequence[Submission], prefix: str) -> bytes:
    parts: list[bytes] = []
    turn = time.monotonic()
    for job_id, submission in zip(stored.job_ids, submissions, strict=True):
        links = job_links(job_id, submission.task, prefix=prefix)
        parts.append(msgspec.json.encode({"id": job_id, "task": submission.task, "links": links.model_dump()}))
        if time.monotonic() - turn > TURN_SECONDS:
            await asyncio.sleep(0)
            turn = time.monotonic()
    found = msgspec.json.encode(batch_links(stored.batch_id, prefix=prefix).model_dump())
    return b'{"id":"%b","jobs":[%b],"links":%b}' % (stored.batch_id.encode(), b",".join(parts), found)
