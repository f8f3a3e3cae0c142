"""The worker's entry point: `python -m jobstream_workers.main`, `jobstream worker`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from jobstream import collector, logs, telemetry
from jobstream.cancellation import cancel
from jobstream.redis import RedisSource, UrlSource
from jobstream.task import Task
from jobstream_workers.background import with_background_tasks
from jobstream_workers.bulk import with_bulk_tasks
from jobstream_workers.loader import add_working_directory, load_tasks
from jobstream_workers.settings import WorkerSettings
from jobstream_workers.worker import Worker

try:
    import uvloop
except ImportError:  # Windows has none
    _run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
else:
    _run = uvloop.run

logger = logging.getLogger("jobstream.worker")


async def run_worker(settings: WorkerSettings, source: RedisSource, stop: asyncio.Event) -> int:
    """Run a worker in this event loop until `stop` is set.

    Gives the number of functions that did not end: Python waits for their threads for ever, unless the process ends by
    `os._exit`. Raises ConfigurationError for tasks that cannot load.
    """
    return await _run_tasks(_load(settings), settings, source, stop)


def _load(settings: WorkerSettings) -> dict[str, Task]:
    return with_bulk_tasks(with_background_tasks(load_tasks(settings.task_modules), settings.background_modules))


async def _run_tasks(tasks: dict[str, Task], settings: WorkerSettings, source: RedisSource, stop: asyncio.Event) -> int:
    worker = Worker(source, tasks, settings)
    logger.info("worker %s: %s; %s", worker.id, ", ".join(sorted(tasks)), source.describe())
    stopper = asyncio.create_task(_stop_when(stop, worker))
    try:
        await worker.async_run()
    finally:
        await cancel(stopper)
        await worker.close()
    return worker.stuck


async def _stop_when(stop: asyncio.Event, worker: Worker) -> None:
    await stop.wait()
    worker.stop()


def main(settings: WorkerSettings | None = None) -> None:
    """Run a worker until SIGTERM or SIGINT. Raises ConfigurationError."""
    settings = settings or WorkerSettings()
    logs.configure(settings.log_format, settings.log_level)
    telemetry.configure(settings.traces, service="jobstream-worker")
    add_working_directory()
    source = UrlSource.from_settings(settings)
    _run(_until_signalled(settings, source))


async def _until_signalled(settings: WorkerSettings, source: RedisSource) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks = _load(settings)
    collector.settle()
    if await _run_tasks(tasks, settings, source, stop):
        telemetry.finish()
        logging.shutdown()
        os._exit(0)


if __name__ == "__main__":
    main()
