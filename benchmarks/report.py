"""Results of all rounds, and the tables that show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.machine import BUSY_SHARE
from benchmarks.measure import Measured
from benchmarks.systems import Entry


@dataclass
class Results:
    """All that was measured: step → system → one entry per round."""

    systems: dict[str, dict[str, Any]]
    machine: list[str]
    redis: str = ""
    rounds: int = 0
    steps: dict[str, dict[str, list[Measured]]] = field(default_factory=dict)

    def add_round(self, round_: Iterable[tuple[str, Entry, Measured]]) -> None:
        """Note all that was measured in a round."""
        self.rounds += 1
        for step, entry, measured in round_:
            self.steps.setdefault(step, {name: [] for name in self.systems})[entry.name].append(measured)

    def as_json(self) -> dict[str, Any]:
        """Everything, run by run."""
        steps = {
            step: {
                system: [{"values": run.values, "samples_ms": run.samples, "disturbed": run.disturbed} for run in runs]
                for system, runs in systems.items()
            }
            for step, systems in self.steps.items()
        }
        return {
            "machine": self.machine,
            "redis": self.redis,
            "rounds": self.rounds,
            "systems": self.systems,
            "steps": steps,
        }


Row = list[str]

LEGEND = """CPU is user and system time: of all workers together, and of the Redis server (INFO cpu).
commands/job counts those inside scripts too; reads/job is how often Redis read from a socket: about its round trips.
p50 is the median of the rounds' medians; p99 and most are of all samples together."""


def text(results: Results) -> str:
    """The report as it is printed."""
    shares = [run.disturbed for systems in results.steps.values() for runs in systems.values() for run in runs]
    parts = [
        *results.machine,
        f"while it ran, others used {median(shares):.0%} of the CPU in the median run, {max(shares):.0%} in the worst",
        results.redis,
    ]
    if median(shares) > BUSY_SHARE:
        parts.append("WARNING: the machine was busy: compare ratios, not rates")
    for name, system in results.systems.items():
        versions = ", ".join(f"{package} {version}" for package, version in system["versions"].items())
        parts.append(f"{name}: {system['about']} ({versions})")
    parts.append(
        f"{results.rounds} interleaved rounds: median (least–most) of the rounds; "
        "ratios are medians of the ratios within each round"
    )
    parts.append(LEGEND)
    for step, systems in results.steps.items():
        parts += ["", step, "", *table(_rows(systems))]
    scaling = _scaling(results)
    if scaling:
        parts += ["", "no-ops/s of more workers, as a multiple of one worker's", "", *table(scaling)]
    return "\n".join(parts)


def _rows(systems: dict[str, list[Measured]]) -> list[Row]:
    first = next(iter(systems.values()))[0]
    if "jobs_per_s" in first.values:
        return _throughput_rows(systems)
    if first.samples:
        return _latency_rows(systems)
    return _enqueue_rows(systems)


def _throughput_rows(systems: dict[str, list[Measured]]) -> list[Row]:
    bases = [name for name in ("arq", "floor") if name in systems]
    head = ["", "jobs/s", "", *(f"× {name}" for name in bases), "worker µs/job"]
    head += ["× less than arq"] if bases[:1] == ["arq"] else []
    rows = [[*head, "Redis µs/job", "commands/job", "reads/job", "jobs a run"]]
    for name, runs in systems.items():
        rates = _values(runs, "jobs_per_s")
        cpu = _values(runs, "worker_us_per_job")
        row = [name, f"{median(rates):,.0f}", _range(rates, "{:,.0f}")]
        row += [_ratio(rates, _values(systems[base], "jobs_per_s")) for base in bases]
        row.append(f"{median(cpu):,.0f}")
        if bases[:1] == ["arq"]:
            row.append(_ratio(_values(systems["arq"], "worker_us_per_job"), cpu))
        row.append(f"{median(_values(runs, 'redis_us_per_job')):,.0f}")
        row += [f"{median(_values(runs, key)):,.2f}" for key in ("commands_per_job", "reads_per_job")]
        row.append(f"{runs[0].values['jobs']:,.0f}")
        rows.append(row)
    return rows


def _latency_rows(systems: dict[str, list[Measured]]) -> list[Row]:
    kinds = list(next(iter(systems.values()))[0].samples)
    rows = [["", *(word for kind in kinds for word in (f"to {kind}: p50 ms", "", "p99", "most", "samples"))]]
    for name, runs in systems.items():
        row = [name]
        for kind in kinds:
            halves = [median(run.samples[kind]) for run in runs]
            everything = sorted(sample for run in runs for sample in run.samples[kind])
            row += [f"{median(halves):.2f}", _range(halves, "{:.2f}"), f"{percentile(everything, 0.99):.2f}"]
            row += [f"{everything[-1]:.2f}", f"{len(everything):,}"]
        rows.append(row)
    return rows


def _enqueue_rows(systems: dict[str, list[Measured]]) -> list[Row]:
    kinds = list(dict.fromkeys(kind for runs in systems.values() for kind in runs[0].values))
    bases = {
        kind: [name for name in ("arq", "floor") if name in systems and kind in systems[name][0].values]
        for kind in kinds
    }
    head = [""]
    for kind in kinds:
        head += [f"{kind.replace('_', ' ')} /s", "", *(f"× {base}" for base in bases[kind])]
    rows = [head]
    for name, runs in systems.items():
        row = [name]
        for kind in kinds:
            if kind not in runs[0].values:
                row += ["–", "", *("" for _ in bases[kind])]
                continue
            rates = _values(runs, kind)
            row += [f"{median(rates):,.0f}", _range(rates, "{:,.0f}")]
            row += [_ratio(rates, _values(systems[base], kind)) for base in bases[kind]]
        rows.append(row)
    return rows


def _scaling(results: Results) -> list[Row]:
    """Rows of `slots`, system, one column per number of workers."""
    by_slots: dict[int, dict[int, dict[str, list[Measured]]]] = {}
    for systems in results.steps.values():
        values = next(iter(systems.values()))[0].values
        if "jobs_per_s" in values:
            by_slots.setdefault(int(values["slots"]), {})[int(values["workers"])] = systems
    counts = sorted({count for sizes in by_slots.values() for count in sizes if count > 1})
    rows = [["", "slots", *(f"{count} workers" for count in counts)]]
    for slots, sizes in by_slots.items():
        for name, alone in sizes.get(1, {}).items():
            row = [name, str(slots)]
            for count in counts:
                together = sizes.get(count, {}).get(name)
                row.append(
                    f"× {_ratio(_values(together, 'jobs_per_s'), _values(alone, 'jobs_per_s'))}" if together else "–"
                )
            rows.append(row)
    return rows if counts and len(rows) > 1 else []


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def _values(runs: Sequence[Measured], key: str) -> list[float]:
    return [run.values[key] for run in runs]


def _range(values: Sequence[float], form: str) -> str:
    return f"({form.format(min(values))}–{form.format(max(values))})"


def _ratio(values: Sequence[float], base: Sequence[float]) -> str:
    ratio = median(value / other for value, other in zip(values, base, strict=True))
    return f"{ratio:.{1 if ratio >= 10 else 2 if ratio >= 0.1 else 3}f}"


def table(rows: list[Row]) -> list[str]:
    """Rows as aligned lines; the first column is text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    place: Callable[[str, int], str]
    lines = []
    for row in rows:
        cells = []
        for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
            place = str.ljust if at == 0 or cell.startswith("(") else str.rjust
            cells.append(place(cell, width))
        lines.append("  ".join(cells).rstrip())
    return lines
