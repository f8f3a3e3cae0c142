"""`python -m benchmarks`: measure jobstream beside arq and the floor, in interleaved rounds, and print tables."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks import machine, measure, report
from benchmarks.measure import Lab, Measured
from benchmarks.peers import python_of, versions
from benchmarks.processes import BenchmarkError, server
from benchmarks.report import Results
from benchmarks.systems import DEFAULT, SYSTEMS, Entry

SECTIONS = ("throughput", "latency", "enqueue")
RETRIES = 3
QUIET_PATIENCE = 60.0


@dataclass(frozen=True)
class Step:
    """One thing to measure of each system, in each round."""

    title: str
    run: Callable[[Lab], Awaitable[Measured]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 when something could not be measured, 130 after Ctrl-C."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing is left behind
    try:
        asyncio.run(_run(options))
    except BenchmarkError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


async def _run(options: argparse.Namespace) -> None:
    entries = [SYSTEMS[name] for name in options.systems]
    pythons = {entry.name: python_of(entry) for entry in entries}
    results = Results(
        systems={entry.name: {"about": entry.about, "versions": versions(entry)} for entry in entries},
        machine=machine.describe(),
    )
    if (warning := machine.load_warning()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    plan = list(_plan(options))
    progress = _Progress(options.rounds * len(plan) * len(entries))
    try:
        with server(options.aof) as redis_server:
            results.redis = f"{redis_server.version}, Unix socket, append-only file: {options.aof}"
            for number in range(options.rounds):
                measured = []
                for step in plan:
                    for entry in _turned(entries, number):
                        progress.show(f"round {number + 1} of {options.rounds}: {step.title}, {entry.name}")
                        lab = Lab(redis_server, entry, pythons[entry.name])
                        measured.append((step.title, entry, await _undisturbed(step, lab, options.retry_above)))
                results.add_round(measured)
    finally:
        progress.end()
        if results.rounds:  # also of a run that was stopped: whole rounds are worth showing
            print(report.text(results), flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")


async def _undisturbed(step: Step, lab: Lab, limit: float) -> Measured:
    """Measure; again when others used more than `limit` of the CPU meanwhile. The quietest run counts."""
    runs: list[Measured] = []
    while True:
        if limit < 1:
            await _quiet(lab, limit)
        neighbours = machine.Neighbours(lab.server.counters()["cpu"])
        measured = await step.run(lab)
        runs.append(replace(measured, disturbed=neighbours.share(lab.server.counters()["cpu"])))
        if runs[-1].disturbed <= limit or len(runs) > RETRIES:
            return min(runs, key=lambda run: run.disturbed)


async def _quiet(lab: Lab, limit: float) -> None:
    """Wait until others use less than `limit` of the CPU, or the patience ends."""
    deadline = time.monotonic() + QUIET_PATIENCE
    while time.monotonic() < deadline:
        neighbours = machine.Neighbours(lab.server.counters()["cpu"])
        await asyncio.sleep(1)
        if neighbours.share(lab.server.counters()["cpu"]) <= limit:
            return


def _turned(entries: list[Entry], by: int) -> list[Entry]:
    """Each round begins with another system, so that none always runs first."""
    by %= len(entries)
    return entries[by:] + entries[:by]


def _plan(options: argparse.Namespace) -> Iterator[Step]:
    if "throughput" in options.only:
        for slots in options.slots:
            for workers in options.workers:
                title = f"no-ops: {slots} slots, {workers} worker{'s' if workers > 1 else ''}"
                yield Step(title, partial(_throughput, slots, workers, options))
    if "latency" in options.only:
        yield Step(
            f"from submit, one job at a time, an idle worker of {measure.IDLE_SLOTS} slots",
            partial(_idle, options.samples),
        )
        title = f"from submit, {measure.STEADY_RATE:g} jobs/s, one worker of {measure.STEADY_SLOTS} slots"
        yield Step(title, partial(measure.steady, jobs=3 * options.samples))
    if "enqueue" in options.only:
        one_by_one, in_flight = min(1_000, options.jobs), min(10_000, options.jobs)
        yield Step("submits of one client", partial(measure.enqueue, one_by_one=one_by_one, in_flight=in_flight))


def _throughput(slots: int, workers: int, options: argparse.Namespace, lab: Lab) -> Awaitable[Measured]:
    jobs = lab.entry.jobs(slots, most=options.jobs, seconds=options.seconds)
    return measure.throughput(lab, slots=slots, workers=workers, jobs=jobs)


def _idle(samples: int, lab: Lab) -> Awaitable[Measured]:
    # Libraries that poll need half a second for each: a quarter of the samples has to do.
    return measure.idle(lab, jobs=max(10, samples // 4) if lab.entry.poll > 0.1 else samples)


class _Progress:
    """One line on a terminal; elsewhere a line per round is enough, and nobody reads it."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done = steps, 0
        self._began = time.monotonic()

    def show(self, what: str) -> None:
        """The next step begins."""
        left = ""
        if self._done:
            seconds = (time.monotonic() - self._began) / self._done * (self._steps - self._done)
            left = f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"
        line = f"[{self._done + 1}/{self._steps}] {what}{left}"
        if sys.stderr.isatty():
            line = f"\r{line[:118]:118}"
        print(line, end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
        self._done += 1

    def end(self) -> None:
        """All done."""
        if sys.stderr.isatty():
            print(f"\r{'':118}\r", end="", file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--peers", type=_words, default=[], help="more systems to measure, separated by commas: "
                        + ", ".join(name for name in SYSTEMS if name not in DEFAULT))  # fmt: skip
    parser.add_argument("--systems", type=_words, default=list(DEFAULT), help="instead of " + ",".join(DEFAULT))
    parser.add_argument("--only", type=_words, default=list(SECTIONS), help="of " + ",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is repeated (3)")
    parser.add_argument("--slots", type=_numbers, default=[10, 100], help="jobs at once per worker (10,100)")
    parser.add_argument("--workers", type=_numbers, default=[1, 2, 4], help="worker processes (1,2,4)")
    parser.add_argument("--jobs", type=int, default=20_000, help="no-ops in a run, at most (20000)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a run of no-ops is to take, about (3)")
    parser.add_argument("--samples", type=int, default=100, help="single jobs per round of the latency test (100)")
    parser.add_argument("--aof", choices=["off", "everysec"], default="off", help="Redis's append-only file (off)")
    parser.add_argument("--retry-above", type=float, default=1.0, metavar="SHARE",
                        help=f"wait, and measure again, up to {RETRIES} times, while others use more CPU")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run to this file")
    options = parser.parse_args(arguments)
    options.systems = list(dict.fromkeys([*options.systems, *options.peers]))
    for given, known in ((options.systems, SYSTEMS), (options.only, SECTIONS)):
        unknown = [word for word in given if word not in known]
        if unknown:
            parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    if min(options.rounds, options.jobs, options.samples, *options.slots, *options.workers) < 1:
        parser.error("numbers are at least 1")
    return options


def _words(value: str) -> list[str]:
    return [word for word in value.split(",") if word]


def _numbers(value: str) -> list[int]:
    return [int(word) for word in _words(value)]


if __name__ == "__main__":
    sys.exit(main())
