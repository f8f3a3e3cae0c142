"""A Redis of a test's own, on a TCP port: to be killed, frozen, filled up, and started again on its data."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import redis

from jobstream.embedded import ServerProgram
from jobstream.guard import GuardedProcess, start_guarded
from tests.ports import free_port


class MortalRedis:
    """A server whose append-only file is its memory.

    `appendfsync no`: each write is the system's before it is answered, so no SIGKILL takes it back. With `everysec`
    Redis puts writes off for up to two seconds while the disk is slow, and a test would blame us for it.
    """

    def __init__(self, program: ServerProgram, directory: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._program, self._directory = program, directory
        self._process: GuardedProcess | None = None

    def start(self, *, appendonly: str = "yes") -> None:
        """Start it and wait until it answers."""
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._directory,
            "appendonly": appendonly,
            "appendfsync": "no",
            "save": "",
            "repl-diskless-sync-delay": 0,
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (self._directory / "redis.log").open("ab") as log:
            argv = [str(self._program.path), *arguments]
            self._process = start_guarded(argv, env=os.environ | {"LC_ALL": "C"}, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.BusyLoadingError):
                    assert time.monotonic() < deadline, "Redis does not start"
                    time.sleep(0.02)

    def client(self) -> redis.Redis:
        """A client; close it."""
        return redis.Redis.from_url(self.url)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; return when a deadly one has worked."""
        assert self._process is not None
        os.kill(self._process.pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._process.wait(10)

    def stop(self) -> None:
        """End it, frozen or not."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.stop(10)
