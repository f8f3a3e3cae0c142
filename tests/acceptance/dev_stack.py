"""A real `jobstream dev` or `jobstream demo` for a test, and a look at what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.ports import free_port

JOBSTREAM = [sys.executable, "-m", "jobstream_cli"]
MARK = "JOBSTREAM_TEST_MARK"
PATIENCE = 60.0


def is_free(port: int) -> bool:
    """Whether one could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def eventually(condition: Callable[[], bool], *, within: float = 20.0) -> bool:
    """True as soon as it holds."""
    deadline = time.monotonic() + within
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds


class Stack:
    """A command of ours that runs until it is told to stop, in a session of its own (`with`)."""

    def __init__(self, *arguments: str, directory: Path, redis: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output: list[str] = []
        self._mark = uuid.uuid4().hex
        self._arguments = [*JOBSTREAM, *arguments, "--port", str(self.port)]
        self._directory = directory
        self._env = os.environ | {
            "JOBSTREAM_DEV_REDIS": redis,
            "JOBSTREAM_DATA_DIR": str(directory / "data"),
            "JOBSTREAM_FETCH_ALLOW": "127.0.0.1",
            MARK: self._mark,
        }
        self._said = threading.Condition()

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._arguments,
            cwd=self._directory,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert eventually(lambda: not self.left_behind()), self.left_behind()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._said:
                self.output.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self.output.append("(end of output)")
            self._said.notify_all()

    @property
    def text(self) -> str:
        """All it has said so far."""
        return "\n".join(self.output)

    def wait_for(self, *texts: str) -> None:
        """Wait until it has said all of these."""
        with self._said:
            ended = self._said.wait_for(
                lambda: all(text in self.text for text in texts) or "(end of output)" in self.output, PATIENCE
            )
        assert ended, self.text
        assert all(text in self.text for text in texts), self.text

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group, as a terminal does for Ctrl-C."""
        os.killpg(self.process.pid, number)

    def ends(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(PATIENCE)

    def left_behind(self) -> dict[int, str]:
        """The processes that are ours, by id: with our mark in their environment, or our directory as an argument.

        Redis writes its title over its environment, and names its socket in it.
        """
        mark, directory = f"{MARK}={self._mark}".encode(), os.fsencode(self._directory)
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                line = (entry / "cmdline").read_bytes()
                if mark in (entry / "environ").read_bytes() or directory in line:
                    found[int(entry.name)] = line.replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def process_of(self, *words: str) -> int:
        """The id of the one process of ours, not its guard, whose command line holds these words."""
        wanted = " ".join(words)
        (found,) = [pid for pid, line in self.left_behind().items() if wanted in line and "guard.py" not in line]
        return found
