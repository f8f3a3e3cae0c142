"""The processes of a run: a Redis server of its own, and workers and clients that end with us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import redis

from benchmarks.systems import Entry
from jobstream.embedded import ChildRedis, find_server

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0
"""Seconds that one step of a measurement may take; then the run is given up."""
LINE_MAX = 64 << 20

Durability = Literal["off", "everysec"]


class BenchmarkError(Exception):
    """A measurement did not work out: what failed, for people."""


class Child:
    """A worker or client process: a line to it, a line back. Made by `child`."""

    def __init__(self, process: Process, name: str, log: Path) -> None:
        self._process = process
        self._name = name
        self._log = log
        self.pid = process.pid

    def tell(self, line: str) -> None:
        """Send a line that has no answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Send an order as JSON, or `marks` as it is; the answer."""
        self.tell(json.dumps({"order": order, **arguments}) if arguments else order)
        answer: dict[str, Any] = json.loads(await self.hear())
        return answer

    async def hear(self) -> str:
        """Its next line. Raises BenchmarkError when it does not come in time, or never will."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise BenchmarkError(f"{self._name} said nothing for {PATIENCE:g} s") from None
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace")[-2_000:]
            raise BenchmarkError(f"{self._name} ended too early:\n{said}")
        return line.decode().rstrip("\n")

    @property
    def cpu_ns(self) -> int:
        """CPU time that the process has used, all threads together."""
        # Linux: the clock of another process, see clock_getcpuclockid(3); /proc/PID/stat counts in steps of 10 ms.
        return time.clock_gettime_ns(~self.pid << 3 | 2)

    async def gone(self) -> None:
        """Wait until it has ended by itself."""
        async with asyncio.timeout(PATIENCE):
            await self._process.wait()

    async def end(self) -> None:
        """End the process: it is asked by the end of its stdin, then killed."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def child(python: str, module: str, entry: Entry, url: str, *options: str) -> AsyncIterator[Child]:
    """A process that runs `module` for a system, from its first line on until the block ends."""
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory:
        log = Path(directory) / "stderr"
        # A working directory of its own, and no settings from the shell: only what a benchmark says counts.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(python, "-m", module, entry.reference, "--url", url, *options),
                stdin=PIPE,
                stdout=PIPE,
                stderr=stderr,
                cwd=directory,
                env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
                limit=LINE_MAX,
                start_new_session=True,  # Ctrl-C is for us alone; we end it
            )
        running = Child(process, f"{module} of {entry.name}", log)
        try:
            if await running.hear() != "ready":
                raise BenchmarkError(f"{module} of {entry.name} printed something else than `ready`")
            yield running
        finally:
            await asyncio.shield(running.end())


class Server:
    """The Redis server that everything is measured against. Made by `server`."""

    def __init__(self, url: str, version: str) -> None:
        self.url = url
        self.version = version
        self.client = redis.Redis.from_url(url, decode_responses=True)

    def empty(self) -> None:
        """Remove all data."""
        self.client.flushall()

    def counters(self) -> dict[str, float]:
        """CPU seconds, commands and reads since the server began."""
        info = cast("dict[str, Any]", self.client.info())
        return {
            "cpu": info["used_cpu_user"] + info["used_cpu_sys"],
            "commands": info["total_commands_processed"],
            "reads": info["total_reads_processed"],
        }

    def command_stats(self) -> dict[str, dict[str, float]]:
        """INFO commandstats: calls and microseconds of each command, those inside scripts included."""
        stats = cast("dict[str, dict[str, float]]", self.client.info("commandstats"))
        return {name.removeprefix("cmdstat_"): values for name, values in stats.items()}


@contextlib.contextmanager
def server(durability: Durability) -> Iterator[Server]:
    """A server on a Unix socket, its data in a temporary directory. Raises BenchmarkError when there is none."""
    program = find_server()
    if program is None:
        raise BenchmarkError("no redis-server or valkey-server on PATH")
    with (
        tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory,
        ChildRedis(program, Path(directory)) as it,
    ):
        running = Server(it.url, f"{program.name} {program.version}")
        with running.client:
            if durability == "off":
                running.client.config_set("appendonly", "no")
            yield running
