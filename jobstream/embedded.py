"""Redis for `jobstream dev`: a child process on a Unix socket, its data kept in a directory, gone when we are gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import redis

from jobstream.errors import ConfigurationError
from jobstream.guard import GRACE, GuardedProcess, start_guarded

OLDEST_VERSION = (6, 2)
"""What the scripts need, and what was tested."""
START_TIMEOUT = 10.0
"""Seconds without a sign of life until a server counts as not started."""
SOCKET_PATH_BYTES = 103
"""The longest path of a Unix socket that every system takes (macOS: 104 bytes with the final NUL, Linux: 108)."""
LOG_LINES_SHOWN = 10

_VERSION = re.compile(r"(?P<name>\w+) server v=(?P<version>\d+\.\d+(?:\.\d+)*)", re.IGNORECASE)


@dataclass(frozen=True)
class ServerProgram:
    """An executable that is Redis or Valkey."""

    path: Path
    name: str
    """`redis` or `valkey`: what it says it is, whatever the file is called."""
    version: str

    @property
    def release(self) -> tuple[int, ...]:
        """The version in numbers."""
        return tuple(map(int, self.version.split(".")))


def find_server(executable: str | None = None) -> ServerProgram | None:
    """The server to start: the given executable, else `valkey-server`, then `redis-server` on PATH.

    None when PATH has none that is new enough. Raises ConfigurationError when the given one cannot be used.
    """
    if executable is not None:
        program = _examine(executable)
        if program is None:
            oldest = ".".join(map(str, OLDEST_VERSION))
            raise ConfigurationError(f"{executable} is not a Redis or Valkey server of version {oldest} or later")
        return program
    found = (_examine(name) for name in ("valkey-server", "redis-server"))
    return next((program for program in found if program), None)


class ChildRedis:
    """A Redis server of our own, on a Unix socket in `directory`, without a TCP port.

    Each write is in the append-only file at once and on disk within a second, so data survive `kill -9` and are there
    at the next start. Each server and major version has a data directory of its own: they cannot read each other's
    files back. One process at a time may use a directory.
    """

    def __init__(self, program: ServerProgram, directory: Path) -> None:
        self.program = program
        self.directory = directory.absolute()
        self.data = self.directory / f"{program.name}-{program.release[0]}"
        self._socket: Path | None = None
        self._process: GuardedProcess | None = None
        self._owned = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """`unix://…`, percent-encoded for redis-py's `from_url`. Raises RuntimeError when it is not started."""
        if self._socket is None:
            raise RuntimeError("the server is not started")
        return "unix://" + quote(str(self._socket))

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it is not started."""
        return self._process.pid if self._process else None

    def describe(self) -> str:
        """One line for people: which server, and where its data are."""
        return f"{self.program.name} {self.program.version} ({self.program.path}), data in {self.data}"

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises ConfigurationError when another process uses the directory, or when the server does not start: then
        with the last lines of its log.
        """
        with contextlib.ExitStack() as undo:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            undo.enter_context(_locked(self.directory / "lock", patience=0))
            self.data.mkdir(mode=0o700, exist_ok=True)
            self.data.chmod(0o700)
            # The server inherits this one, and so holds it until it has ended. After a launcher's `kill -9` that takes
            # a moment, which is worth waiting for: two servers must never write the same files.
            lock = undo.enter_context(_locked(self.data / "lock", patience=1.5 * GRACE))
            self._socket = undo.enter_context(_socket_in(self.data))
            undo.callback(self._forget)
            self._process = self._start(lock)
            undo.callback(self._process.stop)
            self._wait_until_it_answers(self._process)
            self._owned = undo.pop_all()

    def poll(self) -> int | None:
        """The server's exit code when it has ended by itself; None while it runs or when it is not started."""
        return self._process.poll() if self._process else None

    def stop(self) -> None:
        """Stop the server; everything that it has answered is on disk then. Stopping twice is not an error."""
        self._owned.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self.data / "server.log"

    def _start(self, lock: int) -> GuardedProcess:
        settings = {
            "dir": str(self.data),
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": "512mb",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with self._log.open("wb") as log:
            return start_guarded(
                [str(self.program.path), *arguments],
                # Redis 7.2 and later end at once when the user's locale is not installed.
                env=os.environ | {"LC_ALL": "C"},
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
            )

    def _wait_until_it_answers(self, process: GuardedProcess) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.BusyLoadingError:  # alive, and reading its files
                    deadline = time.monotonic() + START_TIMEOUT
                except (redis.ConnectionError, redis.TimeoutError):
                    if process.poll() is not None:
                        raise self._failure(f"ended with exit code {process.poll()}") from None
                    if time.monotonic() > deadline:
                        raise self._failure(f"does not answer after {START_TIMEOUT:g} s") from None
                time.sleep(0.01)

    def _failure(self, what: str) -> ConfigurationError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = "\n".join(lines[-LOG_LINES_SHOWN:]) or "(nothing)"
        return ConfigurationError(f"{self.program.path} {what}. The end of {self._log}:\n{said}")

    def _forget(self) -> None:
        self._socket = self._process = None


def _examine(executable: str) -> ServerProgram | None:
    path = shutil.which(executable)
    if path is None:
        return None
    try:
        answer = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer.stdout)
    if match is None:
        return None
    program = ServerProgram(Path(path), match["name"].lower(), match["version"])
    return program if program.release >= OLDEST_VERSION else None


@contextlib.contextmanager
def _locked(path: Path, *, patience: float) -> Iterator[int]:
    """Hold the lock of a directory, after at most `patience` seconds; yields the file, which says who holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + patience
        while not _taken(lock):
            if time.monotonic() > deadline:
                owner = os.pread(lock, 20, 0).decode() or "unknown"
                raise ConfigurationError(
                    f"{path.parent} is in use by another process ({owner}): stop that one first, "
                    "or choose another directory"
                )
            time.sleep(0.02)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _socket_in(directory: Path) -> Iterator[Path]:
    """A path for the socket: in `directory`, or in a private temporary one when that would be too long."""
    path = directory / "redis.sock"
    if _fits(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jobstream-") as short:
        path = Path(short) / "redis.sock"
        if not _fits(path):
            raise ConfigurationError(f"{short} is too long a path for a Unix socket: set TMPDIR to a shorter one")
        yield path


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES
