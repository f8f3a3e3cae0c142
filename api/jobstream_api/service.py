"""Service: what the routes share: clients, the queue, the catalogue as last announced, the hub, the files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from jobstream import keys
from jobstream.cancellation import cancel
from jobstream.catalogue import Announcement, ApiInfo, beat_api, find, part_api, read_catalogue, read_version
from jobstream.egress import EgressPolicy
from jobstream.errors import RedisUnavailable, StorageUnavailable, UnknownTask
from jobstream.files import FileStore
from jobstream.queue import Queue
from jobstream.redis import RedisSource, is_unavailable
from jobstream.spill import Spill
from jobstream.store import read_record
from jobstream.version import VERSION
from jobstream.webhooks.target import Targets
from jobstream_api.auth.gate import Authenticate, Gate, authenticate_by
from jobstream_api.auth.tickets import Tickets
from jobstream_api.live.hub import Hub
from jobstream_api.live.stream import Streams
from jobstream_api.live.tape import Tape
from jobstream_api.meter import Meter
from jobstream_api.settings import ApiSettings
from jobstream_api.validation import InputValidator

logger = logging.getLogger("jobstream.api")

GRACE_SECONDS = 5
"""Time that answers under way get at shutdown. Event streams end at once."""

BEAT_SECONDS = 5.0
BEAT_LIFE_SECONDS = 15.0

REFRESH_SECONDS = 1.0
"""How often the catalogue's version is looked at."""

MISS_SECONDS = 0.2
"""An unknown task's name makes us look at once, but not more often than this."""

UPLOAD_SECONDS = 3600
"""How long files that arrive are nobody's leavings, after the last sign of their arriving."""


class TaskBook:
    """The catalogue as this process knows it, with a compiled validator per task; refreshed without a restart."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._announced: dict[str, Announcement] = {}
        self._validators: dict[str, InputValidator] = {}
        self._looked_at = 0.0
        self.version = -1

    @property
    def tasks(self) -> dict[str, Announcement]:
        """All announced tasks by name."""
        return self._announced

    async def validator(self, name: str) -> InputValidator:
        """The task of that name. Raises UnknownTask, naming the near ones."""
        if name not in self._validators and time.monotonic() - self._looked_at > MISS_SECONDS:
            await self.refresh()
        if name not in self._validators:
            find(self._announced, name)
            raise UnknownTask(f"The schema of task {name!r} cannot be used; see the service's log")
        return self._validators[name]

    async def refresh(self) -> None:
        """Read the catalogue if its version has changed. Raises redis-py's errors."""
        if await read_version(self._client) != self.version:
            await self._read()
        self._looked_at = time.monotonic()  # not before: until all is read, nobody can say that a task is unknown

    async def _read(self) -> None:
        self.version, announced = await read_catalogue(self._client)
        for name, task in announced.items():
            if self._announced.get(name) == task and name in self._validators:
                continue
            try:
                self._validators[name] = InputValidator(task)
            except ValueError:
                logger.exception("task %s: its input schema cannot be compiled", name)
        for name in self._validators.keys() - announced.keys():
            del self._validators[name]
        self._announced = announced


class Service:
    """Use `running()` for as long as requests are answered."""

    def __init__(self, settings: ApiSettings, source: RedisSource) -> None:
        self.id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.settings = settings
        self.source = source
        self.prefix = ""
        """Where the paths of the service begin, as clients see them; `place` sets it."""
        self.root_path = urlsplit(str(settings.public_url or "")).path.rstrip("/")
        """What a proxy puts before our paths."""
        self.client = source.client()
        self.meter = Meter()
        self.files = FileStore.at(settings.files_place)
        self.queue = self._queue("")
        self.tasks = TaskBook(self.client)
        self.hub = Hub(source)
        self.tape = Tape(self.client, self.hub)
        self.streams = Streams(most=settings.max_streams, heartbeat=settings.heartbeat_seconds)
        secret = settings.ticket_secret.get_secret_value() if settings.ticket_secret else None
        self.tickets = Tickets(self.client, secret, lifetime=settings.ticket_seconds)
        self.gate = Gate(
            authenticate_by(settings, self.client, origins=settings.cors_origins), self.tickets, open=not settings.asks
        )
        self.authenticate: Authenticate | None = None
        """By which the app that includes the router says who is asking."""
        self.uploads_in_doubt: set[str] = set()
        """Jobs whose submit got an unclear answer: their files go unless the record turns out to be there."""
        self.targets = Targets(EgressPolicy.parse(settings.webhook_allow))
        self.draining = False

    def place(self, prefix: str) -> None:
        """From now on links lead to paths behind `prefix`."""
        self.prefix = prefix
        self.queue = self._queue(prefix)
        self.hub.prefix = prefix

    def _queue(self, prefix: str) -> Queue:
        settings = self.settings
        return Queue(
            self.client,
            prefix=prefix,
            words=settings.search_words,
            limits=settings.submit_limits,
            on_stored=self.meter.stored,
            spill=Spill(self.files, settings.spill_bytes) if settings.spill_bytes else None,
        )

    def accepted_status(self, task: Announcement) -> int:
        """What a submit of the task is answered with: 303 when the task or the service wants that, else 202."""
        return max(task.accepted_status, self.settings.accepted_status)

    def origin(self, request: HTTPConnection) -> str:
        """Scheme and host under which a client reaches the service, for absolute URLs."""
        url = urlsplit(str(self.settings.public_url or request.base_url))
        return f"{url.scheme}://{url.netloc}"

    def drain(self) -> None:
        """The process is about to end: streams close, readiness fails. Call it in the event loop."""
        self.draining = True
        self.hub.drain()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the catalogue fresh and the hub listening."""
        async with self.hub.running():
            tasks = [
                asyncio.create_task(self._keep_up(), name="service"),
                asyncio.create_task(self._beat(), name="service-heartbeat"),
                asyncio.create_task(self.streams.ping_for_ever(), name="service-pings"),
            ]
            try:
                yield
            finally:
                await cancel(*tasks)
                await self.tape.aclose()
                with contextlib.suppress(Exception):  # the heartbeat expires by itself
                    async with asyncio.timeout(1):
                        await part_api(self.client, self.id)
                await self.client.aclose()

    async def _beat(self) -> None:
        """Say that this process is there, for ever: for whoever looks at the whole deployment."""
        started_at = time.time_ns() // 1_000_000
        while True:
            clock = time.time_ns() // 1_000_000
            info = ApiInfo(id=self.id, started_at=started_at, version=VERSION, clock=clock, drain=GRACE_SECONDS)
            try:
                await beat_api(self.client, info, life=BEAT_LIFE_SECONDS)
            except Exception as error:
                if not is_unavailable(error):
                    logger.exception("the heartbeat cannot be written")
            await asyncio.sleep(BEAT_SECONDS)

    async def _keep_up(self) -> None:
        """Refresh the catalogue for ever; while Redis is away, what was known stays known."""
        while True:
            asked_at = time.monotonic()
            try:
                await self.tasks.refresh()
                self.meter.redis.took("look", time.monotonic() - asked_at)
                await self._settle_uploads()
            except Exception as error:
                if is_unavailable(error):
                    self.meter.redis.failed()
                else:
                    logger.exception("the catalogue cannot be read")
            await asyncio.sleep(REFRESH_SECONDS)

    async def hold_upload(self, job_id: str) -> None:
        """Say that files of this job arrive. Raises redis-py's errors: what cannot be stored need not arrive."""
        await self.client.set(keys.upload(job_id), "1", ex=UPLOAD_SECONDS)

    async def drop_files(self, job_id: str) -> None:
        """Remove what the job owns; what cannot be removed now is left to the workers' sweep."""
        try:
            await asyncio.to_thread(self.files.remove, job_id)
        except StorageUnavailable as error:
            logger.warning("job %s: its files are removed later: %s", job_id, error.detail)

    async def _settle_uploads(self) -> None:
        for job_id in list(self.uploads_in_doubt):
            if await read_record(self.client, job_id) is None:
                await self.drop_files(job_id)
            self.uploads_in_doubt.discard(job_id)

    async def ping(self, timeout: float) -> None:
        """Raises RedisUnavailable unless Redis answers in `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self.client.ping()
        except Exception as error:
            if not is_unavailable(error):
                raise
            raise RedisUnavailable(f"Redis does not answer ({type(error).__name__})") from None
