"""Schedules: jobs that are handed in again and again, when a cron says so."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.responses import Response

from jobstream.bulk import check_scope
from jobstream.caller import Caller
from jobstream.catalogue import read_workers
from jobstream.errors import (
    FieldError,
    InvalidInput,
    InvalidParameter,
    PreconditionFailed,
    ScheduleConflict,
    ScheduleNotFound,
    UnknownTask,
    UnsupportedMediaType,
)
from jobstream.job import Job, WireTime, from_ms
from jobstream.queue import SubmitOptions
from jobstream.redis import time_ms
from jobstream.schedule import CRON_TAG, OF_TASK, SCHEDULE_NAME, Schedule
from jobstream.schedules import (
    LISTED_MOST,
    Definition,
    Found,
    ScheduleId,
    delete,
    get_schedule,
    job_statuses,
    last_run,
    list_schedules,
    next_ticks,
    note_run,
    pause,
    put_schedule,
    resume,
    view,
)
from jobstream.task import field_errors
from jobstream_api.auth.gate import Reader, Submitter
from jobstream_api.body import check_without_files, is_json, read_body
from jobstream_api.routes.results import idempotency_key
from jobstream_api.service import Service
from jobstream_api.wire import PRIVATE, accepted

TICKS_MOST = 100

Owner = Annotated[
    str | None, Query(description="Whose it is: for admins, who touch their own without it; empty: nobody's")
]
Name = Annotated[str, Path(description="`task:` and a task's name for the task's own")]


class ScheduleInput(BaseModel):
    """A schedule to be: a task, an input, when, and the options of a submit."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    task: str
    cron: str = Field(
        description="Minute, hour, day of the month, month, day of the week, as in Debian's cron", max_length=200
    )
    timezone: str = Field("UTC", description="IANA name; the cron's times are local times there", max_length=64)
    input: dict[str, Any] = Field({}, description="What `POST /{task}` takes as JSON")
    queue: str | None = None
    priority: int = 0
    tags: list[str] = []
    timeout: float | None = None
    ttl: float | None = None
    callback_url: str | None = None


class SchedulePage(BaseModel):
    """Tasks' own schedules, then those of clients by name."""

    schedules: list[Schedule]
    next_cursor: str | None


class ScheduleTicks(BaseModel):
    """When a schedule is due next, paused or not."""

    ticks: list[WireTime]


def add_routes(router: APIRouter, service: Service) -> None:
    """`/schedules` and what is under it."""
    client = service.client
    tags: list[str | Enum] = ["schedules"]

    @router.get("/schedules", tags=tags, summary="List schedules")
    async def list_all(
        caller: Reader,
        owner: Annotated[str | None, Query(description="Only those of this tenant; empty: of nobody")] = None,
        limit: Annotated[int, Query(ge=1, description=f"More than {LISTED_MOST} is taken as that")] = 100,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
    ) -> SchedulePage:
        wanted = caller.sees if owner is None else owner
        if caller.sees not in (None, wanted):
            return SchedulePage(schedules=[], next_cursor=None)
        await service.tasks.refresh()
        found, behind = await list_schedules(
            client,
            service.tasks.tasks,
            owner=wanted,
            limit=min(limit, LISTED_MOST),
            after=_decoded(cursor, wanted) if cursor else "",
        )
        return SchedulePage(schedules=await _views(service, found, caller), next_cursor=behind and _encoded(behind))

    @router.get("/schedules/{schedule_name}", tags=tags, summary="One schedule", response_model=Schedule)
    async def schedule(schedule_name: Name, caller: Reader, owner: Owner = None) -> Response:
        return await _answer(service, await get_schedule(client, _id(schedule_name, caller, owner)), caller)

    @router.put(
        "/schedules/{schedule_name}",
        tags=tags,
        summary="Make a schedule, or give it another definition",
        response_model=Schedule,
        responses={201: {"model": Schedule, "description": "It is new"}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ScheduleInput.model_json_schema()}},
            }
        },
    )
    async def put(schedule_name: Name, request: Request, caller: Submitter, owner: Owner = None) -> Response:
        definition = await _definition(service, schedule_name, request, caller)
        wanted = _id(schedule_name, caller, owner)
        if wanted.task is not None:
            await get_schedule(client, wanted)
            raise ScheduleConflict("A task's own schedule is changed where the task is declared")
        if not SCHEDULE_NAME.match(schedule_name):
            raise InvalidParameter(
                "A schedule's name is 1 to 50 lower case letters, digits and the signs _ . -, from a letter or digit on"
            )
        found, new = await put_schedule(
            client,
            wanted,
            definition,
            most=service.settings.max_schedules,
            words=service.settings.search_words,
            if_match=_if_match(request),
            if_none=request.headers.get("if-none-match", "").strip() == "*",
        )
        return await _answer(service, found, caller, new=new)

    @router.delete("/schedules/{schedule_name}", tags=tags, summary="Forget a schedule; its jobs stay", status_code=204)
    async def forget(schedule_name: Name, request: Request, caller: Submitter, owner: Owner = None) -> Response:
        await delete(client, _id(schedule_name, caller, owner), if_match=_if_match(request))
        return Response(status_code=204)

    @router.post("/schedules/{schedule_name}/pause", tags=tags, summary="No more ticks", response_model=Schedule)
    async def pause_it(schedule_name: Name, caller: Submitter, owner: Owner = None) -> Response:
        found = await get_schedule(client, _id(schedule_name, caller, owner))
        await pause(client, found)
        return await _answer(service, await get_schedule(client, found.id), caller)

    @router.post(
        "/schedules/{schedule_name}/resume",
        tags=tags,
        summary="Ticks again, from the next one on",
        response_model=Schedule,
    )
    async def resume_it(schedule_name: Name, caller: Submitter, owner: Owner = None) -> Response:
        found = await get_schedule(client, _id(schedule_name, caller, owner))
        await resume(client, found)
        return await _answer(service, await get_schedule(client, found.id), caller)

    @router.post(
        "/schedules/{schedule_name}/run",
        tags=tags,
        summary="Run it once now, whatever its cron says, and paused too",
        status_code=202,
        response_model=Job,
    )
    async def run(schedule_name: Name, request: Request, caller: Submitter, owner: Owner = None) -> Response:
        found = await get_schedule(client, _id(schedule_name, caller, owner))
        check_scope(found.definition.task, caller)
        return await _run(service, request, found)

    @router.get("/schedules/{schedule_name}/next", tags=tags, summary="Its next ticks, paused or not")
    async def ticks(
        schedule_name: Name,
        caller: Reader,
        owner: Owner = None,
        count: Annotated[int, Query(ge=1, le=TICKS_MOST)] = 10,
    ) -> ScheduleTicks:
        found = await get_schedule(client, _id(schedule_name, caller, owner))
        return ScheduleTicks(ticks=next_ticks(found, now=await _now(service), count=count))


def _id(name: str, caller: Caller, owner: str | None) -> ScheduleId:
    """Which schedule is meant. Raises ScheduleNotFound for one that the caller cannot see."""
    whose = caller.tenant if owner is None and not name.startswith(OF_TASK) else (owner or None)
    if caller.sees is not None and whose != caller.sees:
        raise ScheduleNotFound(f"There is no schedule {name[:64]!r}")
    return ScheduleId(whose, name)


async def _definition(service: Service, name: str, request: Request, caller: Caller) -> Definition:
    """The body, valid for the task that it names. Raises UnsupportedMediaType, PayloadTooLarge, InvalidInput."""
    media_type, _ = parse_options_header(request.headers.get("content-type", ""))
    if not is_json(media_type.decode("latin-1").lower()):
        raise UnsupportedMediaType("Send application/json")
    body = await read_body(request, at_most=service.settings.max_body_bytes)
    try:
        said = ScheduleInput.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(field_errors(error)) from None
    try:
        validator = await service.tasks.validator(said.task)
    except UnknownTask as error:
        raise _refusal([FieldError(pointer="/task", detail=error.detail)]) from None
    check_scope(said.task, caller)
    if set(validator.task.file_fields) & set(validator.task.input_schema.get("required", ())):
        raise _refusal([FieldError(pointer="/task", detail="a task that needs files cannot have a schedule")])
    try:
        checked = check_without_files(validator, said.input)
    except InvalidInput as error:
        below = error.errors or [FieldError(pointer="", detail=error.detail)]
        raise _refusal(
            [FieldError(pointer="/input" + each["pointer"], detail=each["detail"]) for each in below]
        ) from None
    definition = Definition(
        task=said.task,
        cron=" ".join(said.cron.split()),
        timezone=said.timezone,
        input=checked,
        queue=said.queue,
        priority=said.priority,
        tags=tuple(said.tags),
        timeout=said.timeout,
        ttl=said.ttl,
        callback_url=said.callback_url,
    )
    definition.options(name if SCHEDULE_NAME.match(name) else "-").check()
    if said.callback_url is not None:
        await service.targets.check(said.callback_url, option="callback_url")
    return definition


def _refusal(errors: list[FieldError]) -> InvalidInput:
    first = errors[0]
    return InvalidInput(f"{first['detail']} (at {first['pointer'] or 'the body'})", errors=errors)


async def _run(service: Service, request: Request, found: Found) -> Response:
    definition, owner = found.definition, found.id.owner
    validator = await service.tasks.validator(definition.task)
    own = found.id.task is not None
    key, headers = idempotency_key(request), {}
    job, replayed = await service.queue.submit_once(
        definition.task,
        definition.input,
        options=SubmitOptions(tags=(CRON_TAG,)) if own else definition.options(found.id.name),
        default_queue=validator.task.queue,
        default_ttl=validator.task.ttl,
        max_attempts=validator.task.max_attempts,
        owner=owner,
        key=f"schedules/{found.id.name}:{key}" if key else "",
        fingerprint="run" if key else "",
        on_quota=lambda quota: headers.update(quota.headers()),
    )
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    else:
        await note_run(service.client, found, job_id=job.id, at=job.created_at)
    return accepted(job, request, service, status=202, headers=headers)


async def _answer(service: Service, found: Found, caller: Caller, *, new: bool = False) -> Response:
    [shown] = await _views(service, [found], caller)
    headers = {"ETag": f'"{shown.version}"', "Cache-Control": PRIVATE} | ({"Location": shown.links.self} if new else {})
    return Response(
        shown.model_dump_json(), status_code=201 if new else 200, media_type="application/json", headers=headers
    )


async def _views(service: Service, found: Sequence[Found], caller: Caller) -> list[Schedule]:
    now = await _now(service)
    alive = frozenset(task for worker in await read_workers(service.client) for task in worker.tasks)
    runs = [last[0] for each in found if (last := last_run(each, now=now)) is not None]
    statuses = await job_statuses(service.client, runs)
    return [
        view(
            each,
            now=now,
            statuses=statuses,
            alive=alive,
            known=service.tasks.tasks.__contains__,
            prefix=service.prefix,
            foreign=each.id.owner != caller.tenant and each.id.task is None,
        )
        for each in found
    ]


async def _now(service: Service) -> datetime:
    return from_ms(await time_ms(service.client))


def _if_match(request: Request) -> str:
    """The version that `If-Match` (RFC 9110, section 13.1.1) names. Raises PreconditionFailed for one that is none."""
    wanted = request.headers.get("if-match")
    if wanted is None or wanted.strip() == "*":
        return "" if wanted is None else "*"
    version = wanted.strip().removeprefix("W/").strip('"')
    if not version.isdecimal():
        raise PreconditionFailed("If-Match names no version of the schedule")
    return version


def _encoded(stored: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(stored).encode()).decode().rstrip("=")


def _decoded(cursor: str, owner: str | None) -> str:
    """Behind which schedule the page begins. Raises InvalidParameter for what no list has given."""
    try:
        text = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        schedule = ScheduleId.read(str(text))
        if schedule.stored != text or (owner is not None and (schedule.owner or "") != owner):
            raise ValueError
        return schedule.stored
    except (binascii.Error, ValueError):
        raise InvalidParameter("The cursor is not one that a list has given") from None
