"""Processes that tests end, freeze and replace: workers and an API, each under a guard and with a log of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from redis.asyncio import Redis

from jobstream import catalogue
from jobstream.guard import GuardedProcess, start_guarded
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
TASKS = "tests.chaos.chaos_tasks"
LOG_TAIL = 3_000
"""Characters of each log that a failure shows."""


class Member:
    """One process of a fleet."""

    def __init__(self, process: GuardedProcess, log: Path) -> None:
        self.pid = process.pid
        self.log = log
        self._process = process

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet; a frozen process is alive."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs; return when SIGKILL has worked."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):  # its guard is about to tell
                os.kill(self.pid, number)
            if number is signal.SIGKILL:
                self._process.wait(10)

    def wait(self, timeout: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout)

    def resident_bytes(self) -> int:
        """How much memory it holds."""
        answer = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, text=True, check=True)
        return int(answer.stdout) * 1024

    def family_bytes(self) -> int:
        """The same, with its child processes."""
        pid = str(self.pid)
        answer = subprocess.run(["ps", "-o", "rss=", "-p", pid, "--ppid", pid], capture_output=True, check=True)
        return sum(map(int, answer.stdout.split())) * 1024

    def end(self) -> None:
        """End it, frozen or not."""
        self.signal(signal.SIGCONT)
        self._process.stop(10)


class Fleet:
    """Workers and an API on one Redis, with default settings but for those given (`JOBSTREAM_…` without the prefix,
    in lower case). `close` ends whatever still runs."""

    def __init__(self, directory: Path, redis_url: str, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._settings = {"redis_url": redis_url, "files_dir": str(directory / "files"), "tasks": TASKS} | settings
        self._members: list[Member] = []

    def start_worker(self, **settings: str) -> Member:
        """A worker process. It is ready when it has announced itself in Redis."""
        return self._start("worker", "jobstream_workers.main", settings)

    def start_api(self, **settings: str) -> Member:
        """An API process, at `url` unless `port` says otherwise: the one before must have ended."""
        return self._start("api", "jobstream_api.main", {"port": str(self.port)} | settings)

    def close(self) -> None:
        """End all processes."""
        for member in self._members:
            member.signal(signal.SIGCONT)
            member.signal(signal.SIGTERM)
        for member in self._members:
            member.end()

    def log_tails(self) -> str:
        """What the latest processes said last."""
        return "\n".join(f"--- {member.log.name}\n{_tail(member.log)}" for member in self._members[-5:])

    def _start(self, role: str, module: str, settings: dict[str, str]) -> Member:
        env = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
        env |= {f"JOBSTREAM_{name.upper()}": value for name, value in (self._settings | settings).items()}
        log = self._directory / f"{role}-{len(self._members)}.log"
        with log.open("wb") as file:
            argv = [sys.executable, "-m", module]
            process = start_guarded(argv, env=env, stdout=file, stderr=file, cwd=self._directory)
        member = Member(process, log)
        self._members.append(member)
        return member


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]


async def ready(client: Redis, *workers: Member) -> None:
    """Return when these workers have announced themselves."""
    wanted = {worker.pid for worker in workers}

    async def announced() -> bool:
        return wanted <= {int(info.id.split(":")[-2]) for info in await catalogue.read_workers(client)}

    await until(announced, "a worker does not announce itself")


async def until(condition: Callable[[], Awaitable[bool]], otherwise: str, *, seconds: float = 30) -> None:
    """Ask again and again, for what only the outside of a process shows. Fails after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 (nothing tells of a process)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{otherwise} within {seconds:g} s") from None
