"""Schedules in Redis: those that clients make, and what is known of the tasks' own; and how a tick comes to its queue.

A schedule has one tick ahead of it: a job that waits for its time. Why a tick runs exactly once, however many workers
there are:

- Its job has an id made of schedule and time, and it is stored by one script (tick.lua) together with the schedule's
  marker, which says which tick was queued last. So there is no moment between the two in which a worker could die, and
  of many workers the first one stores it. The marker outlives the job: a tick whose record has expired, was cancelled
  or purged is not queued again, and one that lies before the marker is not either, should Redis's clock step back.
- Only a tick that is still ahead by Redis's clock is queued, and only one at a time, and none while the one before has
  not begun. What is sent while Redis is frozen arrives too late and is refused: after an outage, of Redis or of the
  workers, the one tick that waited already runs late, then comes the next that is ahead.
- A definition that was changed, paused or deleted since it was read is refused by its version.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import quote

import msgspec
from redis.asyncio import Redis

from jobstream import keys
from jobstream.catalogue import Announcement, read_announcement
from jobstream.cron import Cron
from jobstream.errors import (
    CancelledByClient,
    ConfigurationError,
    InvalidInput,
    InvalidParameter,
    PreconditionFailed,
    ScheduleConflict,
    ScheduleNotFound,
)
from jobstream.job import JobStatus, Record, from_ms, pairs
from jobstream.problem import job_problem
from jobstream.queue import Submission, SubmitOptions, tick_arguments
from jobstream.redis import time_ms
from jobstream.schedule import CRON_TAG, OF_TASK, Schedule, ScheduleLinks, ScheduleRun, ScheduleState, tag_of
from jobstream.scripts import Argument, Script

logger = logging.getLogger("jobstream.schedules")

HORIZON = timedelta(days=365)
"""A tick that is farther away is not queued yet."""

LEASE_SECONDS = 2.0
"""What somebody has taken to queue its tick is somebody else's after this."""

DEFER_SECONDS = 60.0
"""When a schedule of which no tick can be queued is looked at again."""

TAKEN_MOST = 100
"""Schedules that are taken at once."""

LISTED_MOST = 1_000

_CHANGED = msgspec.json.encode(job_problem(CancelledByClient("the schedule has changed"), attempt=0))
_PAUSED = msgspec.json.encode(job_problem(CancelledByClient("the schedule was paused"), attempt=0))
_DELETED = msgspec.json.encode(job_problem(CancelledByClient("the schedule was deleted"), attempt=0))

_tick = Script("tick", uses=["turns", "after", "withdraw", "store"])
_put = Script("put_schedule", uses=["turns", "after", "withdraw"])
_pause = Script("pause_schedule", uses=["turns", "after", "withdraw"])
_delete = Script("delete_schedule", uses=["turns", "after", "withdraw"])
_due = Script("due_schedules")
_ran = Script("ran_schedule")

TickVerdict = Literal["queued", "kept", "past", "waits"]


class Definition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client has said: which job, and when."""

    task: str
    cron: str
    timezone: str = "UTC"
    input: dict[str, Any] = {}
    queue: str | None = None
    priority: int = 0
    tags: tuple[str, ...] = ()
    timeout: float | None = None
    ttl: float | None = None
    callback_url: str | None = None

    def options(self, name: str, *, run_at: datetime | None = None) -> SubmitOptions:
        """How its jobs are run."""
        return SubmitOptions(
            queue=self.queue,
            run_at=run_at,
            timeout=self.timeout,
            ttl=self.ttl,
            priority=self.priority,
            tags=(*self.tags, tag_of(name)),
            callback_url=self.callback_url,
        )


class ScheduleId(NamedTuple):
    """Whose schedule, and its name."""

    owner: str | None
    name: str

    @property
    def stored(self) -> str:
        """As it is in keys and in indexes: an owner's name has no spaces."""
        return f"{self.owner or ''} {self.name}"

    @classmethod
    def read(cls, stored: str) -> ScheduleId:
        """The reverse of `stored`."""
        owner, _, name = stored.partition(" ")
        return cls(owner or None, name)

    @property
    def task(self) -> str | None:
        """The task, if it is the task's own."""
        return self.name.removeprefix(OF_TASK) if self.name.startswith(OF_TASK) else None


def of_task(task: str) -> ScheduleId:
    """The task's own schedule: it is nobody's."""
    return ScheduleId(None, OF_TASK + task)


@dataclass(frozen=True)
class Found:
    """A schedule as it is stored."""

    id: ScheduleId
    definition: Definition
    record: Record
    """Its hash: empty for a task's own of which no tick was queued yet."""

    @property
    def version(self) -> int:
        """Of the definition."""
        return int(self.record.get(b"version", 1))

    @property
    def paused(self) -> bool:
        """No tick is queued."""
        return b"paused" in self.record


def cron_of(definition: Definition) -> Cron:
    """Raises InvalidInput, which points at the expression or at the zone."""
    for pointer, expression in (("/timezone", "0 0 * * *"), ("/cron", definition.cron)):
        try:
            cron = Cron(expression, definition.timezone)
        except ConfigurationError as error:
            raise InvalidInput(error.detail, errors=[{"pointer": pointer, "detail": error.detail}]) from None
    return cron


async def put_schedule(
    client: Redis,
    schedule: ScheduleId,
    definition: Definition,
    *,
    most: int,
    words: int,
    if_match: str = "",
    if_none: bool = False,
) -> tuple[Found, bool]:
    """Make it, or give it another definition: how it is then, and whether it is new. Its next tick is queued.

    `most`: how many the owner may have. `words`: by how many of its words each job is found. `if_match`: the version
    that it must have, `*` for any; `if_none`: it must not be there. Raises PreconditionFailed, ScheduleConflict, and
    InvalidInput for a cron that is none.
    """
    cron = cron_of(definition)
    owner = f"({schedule.owner or ''}!"
    args: list[Argument] = [
        schedule.stored,
        owner,
        most,
        if_match,
        "1" if if_none else "",
        _CHANGED,
        msgspec.json.encode(definition, order="deterministic"),
        cron_text(cron),
        secrets.token_hex(8),
        "words",
        words,
    ]
    verdict, *_ = await _put(client, args=args)
    if verdict == b"other":
        raise PreconditionFailed(f"The schedule {schedule.name!r} is not as the request says")
    if verdict == b"full":
        raise ScheduleConflict(f"There are {most:,} schedules already, which is the most")
    found = await get_schedule(client, schedule)
    await queue_next(client, found, now=await _now(client))
    return await get_schedule(client, schedule), verdict == b"made"


async def get_schedule(client: Redis, schedule: ScheduleId) -> Found:
    """The schedule. Raises ScheduleNotFound."""
    record = await cast("Awaitable[Record]", client.hgetall(keys.schedule(schedule.stored)))
    if schedule.task is not None:
        announced = await read_announcement(client, schedule.task) if schedule.owner is None else None
        found = None if announced is None else _own(announced, record)
    else:
        found = _read(schedule, record)
    if found is None:
        raise ScheduleNotFound(f"There is no schedule {schedule.name[:64]!r}")
    return found


async def list_schedules(
    client: Redis, catalogue: Mapping[str, Announcement], *, owner: str | None, limit: int, after: str = ""
) -> tuple[list[Found], str | None]:
    """Those of an owner (None: those of all, and the tasks' own, which come first), and behind which the next are.

    `owner` '': those of nobody, and the tasks' own.
    """
    found: list[Found] = []
    if not owner and not after:
        own = [each for each in catalogue.values() if each.cron is not None]
        records = await _records(client, [of_task(each.name) for each in own])
        found += filter(None, map(_own, own, records))
    low, high = ("-", "+") if owner is None else (f"[{owner} ", f"({owner}!")
    if after:
        low = f"({after}"
    stored = await client.zrangebylex(keys.SCHEDULES, low, high, start=0, num=limit + 1)
    ids = [ScheduleId.read(each.decode()) for each in stored[:limit]]
    for schedule, record in zip(ids, await _records(client, ids), strict=True):
        if (each := _read(schedule, record)) is not None:
            found.append(each)
    return found, ids[-1].stored if len(stored) > limit else None


async def pause(client: Redis, found: Found) -> None:
    """No more ticks; the one that waits for its time is withdrawn. Raises ScheduleNotFound if it has gone meanwhile."""
    await _set_paused(client, found, "1")


async def resume(client: Redis, found: Found) -> None:
    """Ticks again, from the next one on. Raises ScheduleNotFound if it has gone meanwhile."""
    await _set_paused(client, found, "")
    if found.id.task is None:
        await queue_next(client, await get_schedule(client, found.id), now=await _now(client))


async def _set_paused(client: Redis, found: Found, paused: str) -> None:
    own = "1" if found.id.task is not None else ""
    if not await _pause(client, args=[found.id.stored, paused, own, _PAUSED]):
        raise ScheduleNotFound(f"There is no schedule {found.id.name!r}")


async def delete(client: Redis, schedule: ScheduleId, *, if_match: str = "") -> None:
    """Forget it. Raises ScheduleNotFound, PreconditionFailed, and ScheduleConflict for a task's own."""
    if schedule.task is not None:
        await get_schedule(client, schedule)
        raise ScheduleConflict("A task's own schedule goes with its declaration; it can be paused")
    verdict = await _delete(client, args=[schedule.stored, if_match.replace("*", ""), _DELETED])
    if verdict == b"missing":
        raise ScheduleNotFound(f"There is no schedule {schedule.name[:64]!r}")
    if verdict == b"other":
        raise PreconditionFailed(f"The schedule {schedule.name!r} is not as the request says")


async def note_run(client: Redis, found: Found, *, job_id: str, at: datetime) -> None:
    """Somebody asked for a run of it."""
    own = "1" if found.id.task is not None else ""
    await _ran(client, args=[found.id.stored, own, job_id, _ms(at)])


async def take_due(client: Redis, *, lease: float = LEASE_SECONDS) -> tuple[list[Found], float | None]:
    """Schedules of clients whose next tick is to be queued, and in how many seconds there are more (None: there are
    no schedules). Who takes them has `lease` seconds for it."""
    until, *flat = await _due(client, args=[TAKEN_MOST, round(lease * 1000)])
    found = []
    for stored, record in zip(flat[::2], flat[1::2], strict=True):
        each = _read(ScheduleId.read(stored.decode()), pairs(record))
        if each is None:
            await _defer(client, stored.decode())
        else:
            found.append(each)
    return found, None if until < 0 else until / 1000


async def queue_next(client: Redis, found: Found, *, now: datetime) -> None:
    """Queue the next tick of a client's schedule. One of which none can be queued now is put off."""
    if found.paused:
        return
    definition, schedule = found.definition, found.id
    announced = await read_announcement(client, definition.task)
    try:
        tick = cron_of(definition).next_tick(now)
        if announced is None or tick - now > HORIZON:
            await _defer(client, schedule.stored)
            return
        wanted = Submission(
            definition.task,
            definition.input,
            definition.options(schedule.name, run_at=tick),
            announced.queue,
            announced.ttl,
            announced.max_attempts,
            job_id=f"schedule-{found.record[b'uid'].decode()}-{tick.timestamp():.0f}",
            owner=schedule.owner,
        )
        words = int(found.record.get(b"words", 0))
        cron = found.record.get(b"cron", b"").decode()
        await queue_tick(
            client, schedule, wanted, tick, cron=cron, version=str(found.version), since=0, words=words, why=_CHANGED
        )
    except (
        InvalidInput,
        InvalidParameter,
    ):  # this machine knows fewer time zones than the one that took the definition
        logger.exception("schedule %r cannot be read here", schedule.stored)
        await _defer(client, schedule.stored)


async def queue_tick(
    client: Redis,
    schedule: ScheduleId,
    wanted: Submission | None,
    tick: datetime | None,
    *,
    cron: str,
    version: str,
    since: int,
    words: int,
    why: bytes,
) -> TickVerdict:
    """The script: see tick.lua. Without a tick, the task has no cron any more."""
    key, arguments = ("", []) if wanted is None else tick_arguments(wanted, words=words)
    answer = await _tick(
        client,
        key_names=[key] if key else [],
        args=[schedule.stored, 0 if tick is None else _ms(tick), cron, version, since, why, *(arguments or [""])],
    )
    return cast("TickVerdict", answer.decode())


def view(
    found: Found,
    *,
    now: datetime,
    statuses: Mapping[str, JobStatus],
    alive: frozenset[str],
    known: Callable[[str], bool],
    prefix: str = "",
    foreign: bool = False,
) -> Schedule:
    """As the wire shows it. `alive`: the tasks of workers that are there; `known`: whether a task is in the catalogue.

    `foreign`: who looks has to say whose it is.
    """
    definition, owner = found.definition, found.id.owner
    state: ScheduleState = "active" if definition.task in alive else "task-missing"
    next_at = None
    if found.paused:
        state = "paused"
    elif known(definition.task):
        next_at = next_ticks(found, now=now, count=1)[0]
    last = last_run(found, now=now)
    path, query = (
        f"{prefix}/schedules/{quote(found.id.name, safe=':')}",
        f"?owner={quote(owner or '')}" if foreign else "",
    )
    jobs = f"tag={CRON_TAG}&task={definition.task}" if found.id.task else f"tag={quote(tag_of(found.id.name))}"
    return Schedule(
        name=found.id.name,
        origin="code" if found.id.task is not None else "api",
        task=definition.task,
        input=definition.input,
        cron=definition.cron,
        timezone=definition.timezone,
        state=state,
        next_at=next_at,
        last=None if last is None else ScheduleRun(job=last[0], at=last[1], status=statuses.get(last[0])),
        queue=definition.queue,
        priority=definition.priority,
        tags=list(definition.tags),
        timeout=definition.timeout,
        ttl=definition.ttl,
        callback_url=definition.callback_url,
        owner=owner,
        version=found.version,
        created_at=from_ms(found.record[b"created_at"]) if b"created_at" in found.record else None,
        links=ScheduleLinks(
            self=path + query,
            jobs=f"{prefix}/jobs?{jobs}" + (f"&owner={quote(owner)}" if foreign and owner else ""),
            next=f"{path}/next{query}",
        ),
    )


def next_ticks(found: Found, *, now: datetime, count: int) -> list[datetime]:
    """The next ticks, in UTC."""
    cron, ticks, tick = cron_of(found.definition), [], now
    for _ in range(count):
        tick = cron.next_tick(tick)
        ticks.append(tick)
    return ticks


def last_run(found: Found, *, now: datetime) -> tuple[str, datetime] | None:
    """The last job that has begun, or should have: its id and its tick."""
    ran: list[tuple[int, str]] = []
    for job, at in ((b"id", b"tick"), (b"ran", b"ran_at")):
        if (job_id := found.record.get(job)) and int(found.record.get(at, 0)) <= _ms(now):
            ran.append((int(found.record.get(at, 0)), job_id.decode()))
    return (max(ran)[1], from_ms(max(ran)[0])) if ran else None


async def job_statuses(client: Redis, job_ids: Sequence[str]) -> dict[str, JobStatus]:
    """The statuses of those jobs that have a record."""
    async with client.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hget(keys.record(job_id), "status")
        answers = await pipe.execute()
    return {job_id: JobStatus(status.decode()) for job_id, status in zip(job_ids, answers, strict=True) if status}


def cron_text(cron: Cron) -> str:
    """As the scripts compare it."""
    return f"{cron.expression} {cron.timezone}"


async def _records(client: Redis, ids: Sequence[ScheduleId]) -> list[Record]:
    async with client.pipeline(transaction=False) as pipe:
        for schedule in ids:
            pipe.hgetall(keys.schedule(schedule.stored))
        records: list[Record] = await pipe.execute()
    return records


def _read(schedule: ScheduleId, record: Record) -> Found | None:
    """None: there is none, or another version of jobstream has stored it."""
    try:
        return Found(schedule, msgspec.json.decode(record[b"definition"], type=Definition), record)
    except KeyError:
        return None
    except msgspec.DecodeError:
        logger.exception("schedule %r cannot be read", schedule.stored)
        return None


def _own(announced: Announcement, record: Record) -> Found | None:
    if announced.cron is None:
        return None
    definition = Definition(task=announced.name, cron=announced.cron, timezone=announced.timezone)
    return Found(of_task(announced.name), definition, record)


async def _defer(client: Redis, stored: str) -> None:
    later = await time_ms(client) + round(DEFER_SECONDS * 1000)
    await client.zadd(keys.SCHEDULES_DUE, {stored: later}, xx=True)


async def _now(client: Redis) -> datetime:
    return from_ms(await time_ms(client))


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
