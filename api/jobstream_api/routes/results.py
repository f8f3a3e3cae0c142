"""The task's own resource: `POST /{task}` submits, `GET /{task}/{id}` is the result, once there is one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jobstream.bulk import check_scope
from jobstream.caller import Caller, Scope
from jobstream.errors import InvalidParameter, JobGone, JobNotFound
from jobstream.events import read_snapshot
from jobstream.idempotency import reserved
from jobstream.job import Job, JobStatus, Record, job_from_record, new_job_id
from jobstream.queue import SubmitOptions
from jobstream.quota import Quota
from jobstream.redis import is_unavailable
from jobstream.store import is_job, is_visible, read_record
from jobstream.task import RESERVED_NAMES
from jobstream_api.auth.gate import Canceller, Known, Submitter, Watcher
from jobstream_api.auth.tickets import PARAMETER
from jobstream_api.body import BodyReader
from jobstream_api.coming import is_large
from jobstream_api.problems import described, respond
from jobstream_api.routes.files import with_spilled_result
from jobstream_api.routes.jobs import purged
from jobstream_api.service import Service
from jobstream_api.validation import InputValidator
from jobstream_api.waiting import until_done, until_moved
from jobstream_api.web.page import job_page, problem_page
from jobstream_api.wire import (
    BY_PREFERENCE_AND_KIND,
    RETRY_AFTER,
    accepted,
    accepts_html,
    matches,
    monitor_link,
    not_modified,
    preferences,
    result_response,
)


class TaskConvertor(StringConvertor):
    """A path segment that may be a task's name: none that the service keeps for itself, and no file name."""

    regex = rf"(?!(?:{'|'.join(sorted(RESERVED_NAMES))})(?:/|$))[^/.]+"


register_url_convertor("task", TaskConvertor())


_KEY = re.compile(r"[\x20-\x7e]{1,255}\Z")


class RunQuery(BaseModel):
    """How a job is to be run. Times in seconds."""

    model_config = ConfigDict(extra="forbid")

    delay: float = 0.0
    run_at: datetime | None = None
    queue: str | None = None
    priority: int = 0
    tags: list[str] = []
    timeout: float | None = None
    ttl: float | None = None
    callback_url: str | None = None

    def options(self, after: Sequence[str | int]) -> SubmitOptions:
        """As the queue takes them; tags may be repeated or separated by commas."""
        given = self.model_dump(include=set(RunQuery.model_fields))
        return SubmitOptions(**(given | {"tags": _words(self.tags), "after": after}))


class SubmitQuery(RunQuery):
    """The query options of a submit."""

    after: list[str] = Field([], description="Jobs or batches, by their ids, that must have succeeded before it runs")

    @property
    def predecessors(self) -> list[str]:
        """The ids; they may be repeated or separated by commas."""
        return _words(self.after)


def _words(texts: Sequence[str]) -> list[str]:
    return [word.strip() for text in texts for word in text.split(",") if word.strip()]


def add_routes(router: APIRouter, service: Service) -> None:
    """The routes of every task: of all first segments but those that the service keeps for itself."""

    # Documented per task, with types, by jobstream_api.openapi.
    @router.post("/{task:task}", include_in_schema=False)
    async def submit(
        task: str, request: Request, caller: Submitter, query: Annotated[SubmitQuery, Query()]
    ) -> Response:
        validator = await service.tasks.validator(task)
        check_scope(task, caller)
        options = query.options(query.predecessors)
        options.check()
        if options.callback_url is not None:
            await service.targets.check(options.callback_url, option="callback_url")
        key = idempotency_key(request)
        key = f"{task}:{key}" if key else ""
        headers: dict[str, str] = {}
        job, replayed = await _store(
            service,
            request,
            validator,
            options,
            owner=caller.tenant,
            key=key,
            on_quota=lambda quota: headers.update(quota.headers()),
        )
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        status = 303 if accepts_html(request) else service.accepted_status(validator.task)
        wanted = preferences(request)
        if wanted.wait and not accepts_html(request):
            record = await _ended(service, request, job.id, seconds=wanted.wait)
            if record is not None:
                response = result_response(
                    record, service, headers={"Content-Location": job.links.result, **wanted.applied(), **headers}
                )
                return await with_spilled_result(response, record, service)
        return accepted(job, request, service, status=status, headers=wanted.applied(asynchronous=True) | headers)

    @router.api_route("/{task:task}", methods=["GET", "HEAD", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def only_post(task: str, caller: Known) -> Response:
        await service.tasks.validator(task)  # what is no task is 404, whatever the method
        raise HTTPException(405, headers={"Allow": "POST"})

    @router.get("/{task:task}/{job_id}", include_in_schema=False)
    async def result(task: str, job_id: str, request: Request, caller: Watcher) -> Response:
        if accepts_html(request):
            return await _result_page(service, task, job_id, request, caller)
        return await _result(service, request, job_id, owner=caller.sees, task=task)

    @router.get(
        "/jobs/{job_id}/result",
        tags=["jobs"],
        summary="The result, once there is one",
        response_model=Any,
        responses={202: {"model": Job, "description": "Not done yet"}},
    )
    async def result_of_job(job_id: str, request: Request, caller: Watcher) -> Response:
        return await _result(service, request, job_id, owner=caller.sees, task=None)

    @router.delete("/{task:task}/{job_id}", include_in_schema=False)
    async def purge(task: str, job_id: str, caller: Canceller) -> Response:
        _check_task(await service.queue.get(job_id, owner=caller.sees), task)
        return await purged(await service.queue.purge(job_id, owner=caller.sees), service)


async def _store(
    service: Service,
    request: Request,
    validator: InputValidator,
    options: SubmitOptions,
    *,
    owner: str | None,
    key: str,
    on_quota: Callable[[Quota], None],
) -> tuple[Job, bool]:
    """Read the body and store the job: the job, and whether it is that of an earlier request under the same key."""
    announced, job_id = validator.task, new_job_id()
    reader = BodyReader(request, validator, service.settings, service.files, job_id, service.hold_upload)
    async with contextlib.AsyncExitStack() as stack:
        replays = False
        if key:  # before the body is read: while it arrives, the key is in use
            replays = await stack.enter_async_context(reserved(service.client, key, job_id, owner=owner))
        reader.check_head()
        if is_large(request.headers.raw) and not replays:
            await service.queue.check_room(queue=options.queue or announced.queue, owner=owner)
        try:
            data = await reader.read()
            job, replayed = await service.queue.submit_once(
                announced.name,
                data,
                options=options,
                default_queue=announced.queue,
                default_ttl=announced.ttl,
                max_attempts=announced.max_attempts,
                job_id=job_id,
                owner=owner,
                key=key,
                fingerprint=_fingerprint(request, data, validator) if key else "",
                on_quota=on_quota,
                files=reader.stored,
            )
        except BaseException as error:
            if isinstance(error, Exception) and not is_unavailable(error):
                await service.drop_files(job_id)
            else:  # cut off, or Redis did not answer: it may have been stored, and need its files
                service.uploads_in_doubt.add(job_id)
            raise
    if replayed:
        await service.drop_files(job_id)
    return job, replayed


async def _ended(service: Service, request: Request, job_id: str, *, seconds: float) -> Record | None:
    """The record of a job that ends in time. The job is stored: nothing that goes wrong here is an error any more."""
    try:
        record = await until_done(service, request, job_id, seconds=seconds)
    except Exception as error:
        if not is_unavailable(error):
            raise
        return None
    return record if record is not None and JobStatus(record[b"status"].decode()).done else None


async def _result(service: Service, request: Request, job_id: str, *, owner: str | None, task: str | None) -> Response:
    try:
        return await _result_data(service, request, job_id, owner=owner, task=task)
    except Exception as error:
        response = respond(error, request, service.prefix)
        response.headers["Vary"] = BY_PREFERENCE_AND_KIND["Vary"]
        return response


async def _result_data(
    service: Service, request: Request, job_id: str, *, owner: str | None, task: str | None
) -> Response:
    record = await _record(service, job_id, owner=owner, task=task)
    wanted, version = preferences(request), int(record[b"version"])
    if wanted.wait and not JobStatus(record[b"status"].decode()).done:
        if "if-none-match" not in request.headers:
            later = await until_done(service, request, job_id, seconds=wanted.wait)
            record = later or await _record(service, job_id, owner=owner, task=task)
        elif matches(request, version):
            later = await until_moved(service, request, job_id, version, seconds=wanted.wait)
            record = later or await _record(service, job_id, owner=owner, task=task)
    headers = wanted.applied()
    if task is None:
        headers["Content-Location"] = job_from_record(record, prefix=service.prefix).links.result
    response = result_response(record, service, headers=headers)
    if "location" in response.headers and (ticket := request.query_params.get(PARAMETER)) is not None:
        response.headers["location"] += f"?{urlencode({PARAMETER: ticket})}"  # a link has no other credentials
    if response.status_code < 300 and matches(request, int(record[b"version"])):
        return not_modified(int(record[b"version"]), {**BY_PREFERENCE_AND_KIND, **headers})
    return await with_spilled_result(response, record, service)


async def _result_page(service: Service, task: str, job_id: str, request: Request, caller: Caller) -> Response:
    """The same for a browser: the status is the same, the body a page that follows the job."""
    try:
        snapshot = await read_snapshot(service.client, job_id, after=0)
        if (
            snapshot is None
            or not is_job(snapshot.record)
            or not is_visible(snapshot.record.get(b"owner"), caller.sees)
        ):
            raise await service.queue.missing(job_id, owner=caller.sees)
        job = job_from_record(snapshot.record, prefix=service.prefix)
        _check_task(job, task)
    except Exception as error:
        members, headers = described(error, request)
        return problem_page(members, headers=headers | BY_PREFERENCE_AND_KIND, prefix=service.prefix)
    headers = {"Link": monitor_link(job), **BY_PREFERENCE_AND_KIND} | ({} if job.done else {"Retry-After": RETRY_AFTER})
    ticket = request.query_params.get(PARAMETER)
    return job_page(
        job,
        snapshot.events,
        status=_result_status(job),
        headers=headers,
        prefix=service.prefix,
        query=f"?{urlencode({PARAMETER: ticket})}" if ticket else "",
        may_cancel=caller.may(Scope.CANCEL),
    )


def _result_status(job: Job) -> int:
    if not job.done:
        return 202
    if job.status is JobStatus.CANCELLED:
        return JobGone.status
    return job.error.status if job.error is not None else 200


async def _record(service: Service, job_id: str, *, owner: str | None, task: str | None) -> Record:
    """Raises JobNotFound, also for another owner's or another task's job, and JobGone."""
    record = await read_record(service.client, job_id)
    if record is None or not is_visible(record.get(b"owner"), owner):
        raise await service.queue.missing(job_id, owner=owner)
    if task is not None:
        _check_task(job_from_record(record), task)
    return record


def idempotency_key(request: Request) -> str:
    """The Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a quoted string; a bare token is accepted."""
    text = request.headers.get("idempotency-key")
    if text is None:
        return ""
    text = text.strip()
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        text = text[1:-1]
    if not _KEY.match(text):
        raise InvalidParameter("Idempotency-Key is a quoted string of 1 to 255 visible characters")
    return text


def _fingerprint(request: Request, data: dict[str, Any], validator: InputValidator) -> str:
    """SHA-256 of all that the request asks for. Files count by name and content, not by where they were stored."""
    plain = dict(data)
    for name in validator.task.file_fields:
        files = plain.get(name)
        if isinstance(files, list):
            plain[name] = [file | {"key": ""} for file in files]
        elif isinstance(files, dict):
            plain[name] = files | {"key": ""}
    query = sorted(request.query_params.multi_items())
    return hashlib.sha256(json.dumps([plain, query], sort_keys=True).encode()).hexdigest()


def _check_task(job: Job, task: str) -> None:
    if job.task != task:
        raise JobNotFound(f"There is no job {job.id!r} of task {task[:64]!r}")
