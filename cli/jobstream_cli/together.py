"""API, worker and somebody's app in one process and one event loop, on a Redis that is only in its memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

import uvicorn
from uvicorn.importer import import_from_string

from jobstream import logs, telemetry
from jobstream.errors import ConfigurationError
from jobstream.fake import FakeSource
from jobstream.redis import RedisSource
from jobstream_api import background
from jobstream_api.edges import about_request
from jobstream_api.main import create_server
from jobstream_api.settings import ApiSettings
from jobstream_cli.exits import Exit
from jobstream_cli.supervise import STOP_SIGNALS, Happening
from jobstream_workers.loader import add_working_directory
from jobstream_workers.main import run_worker
from jobstream_workers.settings import WorkerSettings

logger = logging.getLogger("jobstream.dev")


class Guest(NamedTuple):
    """Somebody's own app: `module:app`, and where to serve it."""

    app: str
    host: str
    port: int

    def server(self, source: RedisSource) -> uvicorn.Server:
        """Its server. What it hands over goes to `source`. Raises ConfigurationError for an app that is not there."""
        background.use(source)
        try:
            app = import_from_string(self.app)
        except Exception as error:
            raise ConfigurationError(f"--app {self.app}: {error}") from error
        return uvicorn.Server(uvicorn.Config(app, host=self.host, port=self.port, log_config=None))


async def run(
    api: ApiSettings,
    worker: WorkerSettings,
    happened: SimpleQueue[Happening],
    *,
    guest: Guest | None = None,
    poll: Callable[[], None],
    stopping: Callable[[], None],
) -> int:
    """Serve until SIGINT or SIGTERM (0; a second one forces), or until one of the two ends by itself (1).

    `happened` holds the signals of before. `poll` is called in a thread, ten times a second; `stopping` once, when a
    signal has come.
    """
    logs.configure(api.log_format, api.log_level, more=about_request)
    telemetry.configure(api.traces, service="jobstream")
    add_working_directory()
    source = FakeSource()
    server = create_server(api, source)
    servers = {"api": server} if guest is None else {"api": server, "app": guest.server(source)}
    for each in servers.values():  # uvicorn would take the signals, and raise them again at its end
        each.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    told, halt = asyncio.Event(), asyncio.Event()
    parts = {
        *(asyncio.create_task(each.serve(), name=name) for name, each in servers.items()),
        asyncio.create_task(run_worker(worker, source, halt), name="worker"),
    }

    def on_signal() -> None:
        if told.is_set():
            os._exit(Exit.OK)  # forced: there is nothing to save, and children end with their parent
        told.set()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    if not happened.empty():
        on_signal()
    beside = {asyncio.create_task(told.wait()), asyncio.create_task(_keep_calling(poll))}
    await asyncio.wait(parts | beside, return_when=asyncio.FIRST_COMPLETED)
    if told.is_set():
        stopping()
    for each in servers.values():
        each.handle_exit(signal.SIGTERM, None)  # ours closes the event streams, too
    halt.set()
    await asyncio.wait(parts)
    for task in beside:
        task.cancel()
    await asyncio.wait(beside)
    for part in parts:
        if not part.cancelled() and part.exception() is not None:
            logger.error("the %s has failed", part.get_name(), exc_info=part.exception())
    return Exit.OK if told.is_set() else Exit.FAILED


async def _keep_calling(poll: Callable[[], None]) -> None:
    while True:
        await asyncio.to_thread(poll)
        await asyncio.sleep(0.1)
