"""A service for tests: API and worker as real processes on a real Redis, or both in one on fakeredis."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from jobstream.guard import GuardedProcess, start_guarded
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
TASKS = "jobstream_workers.tasks,tests.acceptance.acceptance_tasks"
HEARTBEAT_SECONDS = 0.2
MAX_BODY_BYTES = 200_000
MAX_FILE_BYTES = 300_000
MAX_FILES = 4
PATIENCE = 20.0


class Service:
    """Starts processes in `directory`; whatever still runs is ended by `close`."""

    def __init__(self, directory: Path, *, redis_url: str | None, **settings: str) -> None:
        self.redis_url = redis_url
        self.files = directory / "files"
        self.log = directory / "log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._api: GuardedProcess | None = None
        self._directory = directory
        self._settings = settings
        self._worker: GuardedProcess | None = None
        self._processes: list[GuardedProcess] = []

    def start(self) -> None:
        """Start API and worker; return when the worker's tasks are known."""
        if self.redis_url is None:
            self._start("-m", "jobstream_cli", "dev", "--redis", "fake", "--port", str(self.port))
        else:
            self.start_api()
            self.start_worker(self._settings.get("JOBSTREAM_TASKS", TASKS))
        self.wait_until(lambda: self._workers() > 0, "no worker has announced itself")
        self.wait_until(lambda: self.knows("echo"), "the API has not heard of the worker's tasks")

    def start_api(self, **settings: str) -> GuardedProcess:
        """Another API process at the same address: the one before must have ended."""
        self._api = api = self._start("-m", "jobstream_api.main", **settings)
        self.wait_until(lambda: self._answers("/livez"), "the API does not answer")
        return api

    @property
    def api_pid(self) -> int:
        """The API process that was started last."""
        assert self._api is not None
        return self._api.pid

    def kill_api(self) -> None:
        """SIGKILL for the API process that was started last."""
        assert self._api is not None
        os.kill(self._api.pid, signal.SIGKILL)
        self._api.wait(10)

    def start_worker(self, tasks: str = TASKS) -> GuardedProcess:
        """A worker process with the tasks of these modules."""
        self._worker = self._start("-m", "jobstream_workers.main", JOBSTREAM_TASKS=tasks)
        return self._worker

    def kill_worker(self) -> None:
        """SIGKILL for the worker process that was started last."""
        assert self._worker is not None
        os.kill(self._worker.pid, signal.SIGKILL)
        self._worker.wait(10)

    def wait_until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """For what only the outside of a process shows: its start."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline or self._processes[-1].poll() is not None:
                raise AssertionError(f"{otherwise}; the end of the log:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)

    def knows(self, task: str) -> bool:
        """Whether the API lists the task."""
        return self._answers(f"/tasks/{task}")

    def stored_files(self) -> set[str]:
        """Paths of all uploads, and of directories that were made for them."""
        return {str(path.relative_to(self.files)) for path in self.files.rglob("*")}

    def close(self) -> None:
        """End all processes, all at once."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.stop(timeout=15)

    def _start(self, *arguments: str, **settings: str) -> GuardedProcess:
        env = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
        env |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "JOBSTREAM_PORT": str(self.port),
            "JOBSTREAM_FILES_DIR": str(self.files),
            "JOBSTREAM_TASKS": TASKS,
            "JOBSTREAM_PROCESSES": "1",
            "JOBSTREAM_MAX_JOBS": "20",
            "JOBSTREAM_KILL_SECONDS": "0.5",
            "JOBSTREAM_SHUTDOWN_SECONDS": "0",
            "JOBSTREAM_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
            "JOBSTREAM_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
            "JOBSTREAM_MAX_FILE_BYTES": str(MAX_FILE_BYTES),
            "JOBSTREAM_MAX_FILES": str(MAX_FILES),
        }
        env |= self._settings
        if self.redis_url is not None:
            env["JOBSTREAM_REDIS_URL"] = self.redis_url
        with self.log.open("ab") as log:
            process = start_guarded(
                [sys.executable, *arguments],
                env=env | settings,
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )
        self._processes.append(process)
        return process

    def _workers(self) -> int:
        with contextlib.suppress(httpx2.TransportError):
            response = httpx2.get(f"{self.url}/readyz?verbose=1")
            return int(response.json()["workers"]) if response.status_code == 200 else 0
        return 0

    def _answers(self, path: str) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(self.url + path).is_success
        return False


@contextlib.contextmanager
def running(directory: Path, *, redis_url: str | None, **settings: str) -> Iterator[Service]:
    """A service that has started, until the block ends. `settings`: of all its processes."""
    service = Service(directory, redis_url=redis_url, **settings)
    try:
        service.start()
        yield service
    finally:
        service.close()
