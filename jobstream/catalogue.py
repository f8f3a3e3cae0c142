"""The catalogue: what workers announce of their tasks, and what the API knows without any of the user's code."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, cast

import msgspec
from redis.asyncio import Redis

from jobstream import keys
from jobstream.errors import UnknownTask
from jobstream.scripts import Script
from jobstream.task import ExecutorKind, Task

_beat = Script("beat")
_part = Script("part")
_beat_api = Script("beat_api")

Info = TypeVar("Info")


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of a task: enough to validate, document and limit it. Times in seconds."""

    name: str
    summary: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    file_fields: tuple[str, ...] = ()
    queue: str = "default"
    executor: ExecutorKind = "loop"
    timeout: float
    ttl: float
    max_attempts: int = 1
    max_running: int | None = None
    accepted_status: Literal[202, 303] = 202
    cron: str | None = None
    """When it is run without being asked for."""
    timezone: str = "UTC"


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's heartbeat: who it is and what it can run."""

    id: str
    tasks: tuple[str, ...]
    queues: tuple[str, ...]
    slots: int
    running: int
    started_at: int
    version: str = ""
    """Of jobstream."""
    clock: int = 0
    """The process's own clock (ms) when it sent this; Redis notes when it came."""
    unreached: int = 0
    """Seconds since it last claimed, or tried to and was answered."""
    drain: float = 0.0
    """Seconds that it may need to stop."""


class ApiInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An API process's heartbeat."""

    id: str
    started_at: int
    version: str
    clock: int
    drain: float = 0.0


class Heartbeats(NamedTuple):
    """Who is alive, each with when its last beat came (ms of Redis's time)."""

    workers: list[tuple[WorkerInfo, int]]
    apis: list[tuple[ApiInfo, int]]


def announcement(task: Task) -> Announcement:
    """What there is to say of a task."""
    return Announcement(
        name=task.name,
        summary=task.summary,
        description=task.description,
        input_schema=task.input_schema,
        output_schema=task.output_schema,
        file_fields=task.file_fields,
        queue=task.queue,
        executor=task.executor,
        timeout=task.timeout,
        ttl=task.ttl,
        max_attempts=task.retry.attempts,
        max_running=task.max_running,
        accepted_status=task.accepted_status,
        cron=task.cron.expression if task.cron else None,
        timezone=task.cron.timezone if task.cron else "UTC",
    )


async def beat(client: Redis, worker: WorkerInfo, tasks: Sequence[Task], *, life: float) -> None:
    """Announce a worker and its tasks for `life` seconds."""
    fields: dict[str, str | bytes] = {"info": msgspec.json.encode(worker), "queues": " ".join(worker.queues)}
    announced: list[str | bytes] = []
    for task in tasks:
        announced += [task.name, msgspec.json.encode(announcement(task), order="deterministic")]
    flat = [part for pair in fields.items() for part in pair]
    await _beat(client, args=[worker.id, round(life * 1000), len(fields), *flat, *announced])


async def read_announcement(client: Redis, task: str) -> Announcement | None:
    """What was announced of one task; None for one that is unknown, or cannot be read."""
    data = await cast("Awaitable[bytes | None]", client.hget(keys.CATALOGUE, task))
    try:
        return None if data is None else msgspec.json.decode(data, type=Announcement)
    except msgspec.DecodeError:  # announced by a worker of another version of jobstream
        return None


async def part(client: Redis, worker_id: str) -> None:
    """Take a worker that stops out of the list; its tasks stay in the catalogue."""
    await _part(client, args=[worker_id])


async def beat_api(client: Redis, api: ApiInfo, *, life: float) -> None:
    """Say for `life` seconds that an API process is there."""
    await _beat_api(client, args=[api.id, round(life * 1000), msgspec.json.encode(api)])


async def part_api(client: Redis, process_id: str) -> None:
    """Take an API process that stops out of the list."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.delete(keys.api_process(process_id))
        pipe.zrem(keys.API_PROCESSES, process_id)
        await pipe.execute()


async def read_heartbeats(client: Redis) -> Heartbeats:
    """Workers and API processes whose heart beats. One of a version that says other things is left out."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.zrange(keys.WORKERS, 0, -1)
        pipe.zrange(keys.API_PROCESSES, 0, -1)
        workers, apis = await pipe.execute()
    async with client.pipeline(transaction=False) as pipe:
        for each in workers:
            pipe.hmget(keys.worker(each.decode()), ["info", "beat_at"])
        for each in apis:
            pipe.hmget(keys.api_process(each.decode()), ["info", "beat_at"])
        found = await pipe.execute()
    return Heartbeats(
        _beats(found[: len(workers)], WorkerInfo),
        _beats(found[len(workers) :], ApiInfo),
    )


def _beats(found: Sequence[tuple[bytes | None, bytes | None]], kind: type[Info]) -> list[tuple[Info, int]]:
    beats: list[tuple[Info, int]] = []
    for info, beat_at in found:
        with contextlib.suppress(msgspec.DecodeError):
            if info is not None and beat_at is not None:
                beats.append((msgspec.json.decode(info, type=kind), int(beat_at)))
    return beats


async def read_workers(client: Redis) -> list[WorkerInfo]:
    """The workers whose heart beats."""
    ids = await client.zrange(keys.WORKERS, 0, -1)
    async with client.pipeline(transaction=False) as pipe:
        for worker_id in ids:
            pipe.hget(keys.worker(worker_id.decode()), "info")
        found = await pipe.execute()
    return [msgspec.json.decode(info, type=WorkerInfo) for info in found if info is not None]


async def read_catalogue(client: Redis) -> tuple[int, dict[str, Announcement]]:
    """The catalogue's version and its announcements by name. An entry that cannot be read is left out."""
    async with client.pipeline(transaction=True) as pipe:
        pipe.get(keys.CATALOGUE_VERSION)
        pipe.hgetall(keys.CATALOGUE)
        version, stored = await pipe.execute()
    found: dict[str, Announcement] = {}
    for name, data in sorted(stored.items()):
        try:
            found[name.decode()] = msgspec.json.decode(data, type=Announcement)
        except msgspec.DecodeError:  # announced by a worker of another version of jobstream
            continue
    return int(version or 0), found


async def read_version(client: Redis) -> int:
    """The catalogue's version: cheap to ask, changes when any announcement does."""
    return int(await client.get(keys.CATALOGUE_VERSION) or 0)


def find(catalogue: Mapping[str, Announcement], name: str) -> Announcement:
    """The task of that name. Raises UnknownTask, which names the near ones."""
    if (found := catalogue.get(name)) is not None:
        return found
    near = difflib.get_close_matches(name, catalogue, n=3, cutoff=0.5)
    if near:
        hint = "; did you mean " + " or ".join(repr(task) for task in near) + "?"
    elif catalogue:
        hint = "; known tasks: " + ", ".join(list(catalogue)[:20])
    else:
        hint = "; no worker has announced any task yet"
    raise UnknownTask(f"There is no task {name[:64]!r}{hint}")
