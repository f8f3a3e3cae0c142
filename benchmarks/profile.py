"""`python -m benchmarks.profile`: where a no-op's time goes: in the worker by function, in Redis by script and command.

The worker's main thread is sampled every millisecond, unless it waits; C belongs to the Python that called it.
Redis's scripts are timed by its own slow log, commands by INFO commandstats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

from benchmarks.measure import Lab
from benchmarks.peers import python_of
from benchmarks.processes import BenchmarkError, Server, server
from benchmarks.report import percentile, table
from benchmarks.sampler import Place
from benchmarks.systems import SYSTEMS
from jobstream.scripts import Script

SLOW_US = 8
"""Scripts take longer, the commands inside them mostly not: these would fill the log, and slow Redis down."""
TOP = 30

_PACKAGE = re.compile(r"/python3[\d.]*/(?:site-packages/)?([^/]+)")
_OWN = re.compile(r"/((?:jobstream|jobstream_workers|benchmarks)/.+)$")

Stacks = Sequence[tuple[Sequence[Place], int]]


@dataclass(frozen=True)
class Phase:
    """What Redis did for a number of jobs."""

    title: str
    jobs: int
    seconds: float
    """CPU time of the server."""
    scripts: Mapping[str, Sequence[int]]
    """Name → microseconds of each call."""
    commands: Mapping[str, tuple[float, float]]
    """Name → calls, microseconds."""


class Watch:
    """Sees what Redis does while the block runs."""

    def __init__(self, redis_server: Server) -> None:
        self._server = redis_server
        redis_server.client.config_set("slowlog-max-len", 1_000_000)
        redis_server.client.config_set("slowlog-log-slower-than", SLOW_US)
        redis_server.client.slowlog_reset()
        self._cpu = redis_server.counters()["cpu"]
        self._commands = redis_server.command_stats()

    def phase(self, title: str, jobs: int) -> Phase:
        """What was done since."""
        now, client = self._server.command_stats(), self._server.client
        seconds = self._server.counters()["cpu"] - self._cpu
        names, scripts = _script_names(), dict[str, list[int]]()
        for entry in cast("list[dict[str, Any]]", client.slowlog_get(1_000_000)):
            command, _, rest = cast("bytes", entry["command"]).decode(errors="replace").partition(" ")
            if command == "EVALSHA":
                sha = rest.partition(" ")[0]
                scripts.setdefault(names.get(sha, sha[:8]), []).append(entry["duration"])
        commands = {}
        for name, stats in now.items():
            before = self._commands.get(name, {})
            calls, usec = (stats[key] - before.get(key, 0) for key in ("calls", "usec"))
            if calls:
                commands[name] = (calls, usec)
        return Phase(title, jobs, seconds, scripts, commands)


async def _run(system: str, jobs: int, slots: int) -> tuple[dict[str, Any], list[Phase]]:
    entry = SYSTEMS[system]
    with tempfile.TemporaryDirectory(prefix="jobstream-bench-") as directory, server("off") as redis_server:
        samples = Path(directory) / "samples.json"
        lab = Lab(redis_server, entry, python_of(entry))
        async with lab.client() as client, lab.workers(1, slots, "--samples", str(samples)) as (worker,):
            watch = Watch(redis_server)
            await client.ask("enqueue", jobs=jobs, in_flight=50)
            phases = [watch.phase("submit", jobs)]
            watch = Watch(redis_server)
            worker.tell("go")
            await client.ask("drained", jobs=jobs)
            phases.append(watch.phase("claim, run and finish", jobs))
            worker.tell("stop")
            await worker.gone()
            return json.loads(samples.read_text(encoding="utf-8")), phases


def _script_names() -> dict[str, str]:
    files = (file.name for file in resources.files("jobstream.scripts").iterdir())
    names = [name.removesuffix(".lua") for name in files if name.endswith(".lua") and name != "prelude.lua"]
    return {Script(name).sha: name for name in names}


def _worker_text(stacks: Stacks, cpu_ns: int, jobs: int) -> list[str]:
    packages, functions = Counter[str](), Counter[str]()
    for stack, looks in stacks:
        packages[_package(stack[-1][0])] += looks
        own = next((place for place in reversed(stack) if _OWN.search(place[0])), None)
        functions[_function(own) if own else f"({_function(stack[-1])})"] += looks
    lines = [f"worker: {cpu_ns / 1e9:.2f} s of CPU in its main thread, {cpu_ns / 1e3 / jobs:.1f} µs a job", ""]
    lines += table(_counted(packages, cpu_ns / jobs, "by package of the running function"))
    title = "by function, with all that it calls but other functions of this list"
    return [*lines, "", *table(_counted(functions, cpu_ns / jobs, title))]


def _counted(counts: Counter[str], ns_per_job: float, title: str) -> list[list[str]]:
    whole = sum(counts.values())
    rows = [[title, "share", "µs/job"]]
    shown = counts.most_common(TOP)
    for name, looks in [*shown, ("everything else", whole - sum(looks for _, looks in shown))]:
        if looks:
            rows.append([name, f"{looks / whole:.1%}", f"{looks / whole * ns_per_job / 1e3:.2f}"])
    return rows


def _package(file: str) -> str:
    own, found = _OWN.search(file), _PACKAGE.search(file)
    if own:
        return own[1].partition("/")[0]
    return found[1].removesuffix(".py") if found else file


def _function(place: Place) -> str:
    file, name = place
    own = _OWN.search(file)
    return f"{own[1] if own else _package(file)}: {name}"


def _redis_text(phase: Phase) -> list[str]:
    jobs = phase.jobs
    lines = [f"Redis, {phase.title}: {phase.seconds * 1e6 / jobs:.1f} µs of CPU a job", ""]
    rows = [["script", "µs/job", "calls", "µs/call p50", "p99", "most"]]
    timed = sum(map(sum, phase.scripts.values()))
    for name, times in sorted(phase.scripts.items(), key=lambda item: -sum(item[1])):
        ordered = sorted(times)
        numbers = (percentile(ordered, 0.5), percentile(ordered, 0.99), ordered[-1])
        rows.append([name, f"{sum(times) / jobs:.2f}", f"{len(times):,}", *(f"{number:,.0f}" for number in numbers)])
    calls, usec = phase.commands.get("evalsha", (0, 0))
    quick = int(calls) - sum(map(len, phase.scripts.values()))
    rows.append([f"(shorter than {SLOW_US} µs)", f"{max(0.0, usec - timed) / jobs:.2f}", f"{quick:,}", "", "", ""])
    inside = sum(spent for name, (_, spent) in phase.commands.items() if name != "evalsha")
    lines += [*table(rows), ""]
    rows = [["command, inside scripts or not", "µs/job", "calls/job"]]
    rows.append(
        [
            "evalsha: Lua, and fractions of µs of the commands inside",
            f"{(usec - inside) / jobs:.2f}",
            f"{calls / jobs:.2f}",
        ]
    )
    for name, (calls, spent) in sorted(phase.commands.items(), key=lambda item: -item[1][1]):
        if name != "evalsha" and spent / jobs >= 0.05:
            rows.append([name, f"{spent / jobs:.2f}", f"{calls / jobs:.2f}"])
    rest = phase.seconds * 1e6 - usec
    rows.append(["outside of commands: reading, parsing, writing, timing", f"{rest / jobs:.2f}", ""])
    return [*lines, *table(rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile one system and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--system", choices=list(SYSTEMS), default="jobstream")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--slots", type=int, default=100)
    options = parser.parse_args(arguments)
    try:
        seen, phases = asyncio.run(_run(options.system, options.jobs, options.slots))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.system}: {options.jobs:,} no-ops, one worker of {options.slots} slots\n")
    parts = [_worker_text(seen["stacks"], seen["cpu_ns"], options.jobs), *map(_redis_text, phases)]
    print("\n\n".join("\n".join(part) for part in parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
