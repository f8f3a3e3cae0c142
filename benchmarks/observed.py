"""`python -m benchmarks.observed`: what it costs a job to be counted, traced and logged.

A worker in this process ends no-ops on a Redis of its own, by turns as it is, without its metrics, traced, and with a
line in the log for each job. What counts is CPU time of this process: Redis is another one, and whatever else runs on
the machine does not matter. Spans are made into OTLP bytes, which nobody gets.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from benchmarks import machine
from benchmarks.processes import BenchmarkError, server
from benchmarks.report import table
from jobstream import logs, task
from jobstream.queue import Queue, Submission
from jobstream.redis import UrlSource
from jobstream_workers.meter import Meter
from jobstream_workers.settings import WorkerSettings
from jobstream_workers.worker import Worker

PATIENCE = 120.0

_left = 0
_over = asyncio.Event()


@task
async def noop() -> None:
    """Nothing."""
    global _left
    _left -= 1
    if not _left:
        _over.set()


class _Encoder(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


class _Uncounted(Meter):
    """Counts no job."""

    def claimed(self, jobs: Sequence[Any]) -> None: ...
    def ended(self, task: str, status: str, seconds: float) -> None: ...


@contextlib.contextmanager
def as_it_is() -> Iterator[None]:
    """Metrics on, traces off, log level WARNING."""
    yield


@contextlib.contextmanager
def without_metrics() -> Iterator[None]:
    """No job is counted."""
    with mock.patch("jobstream_workers.worker.Meter", _Uncounted):
        yield


@contextlib.contextmanager
def traced(share: float = 1.0) -> Iterator[None]:
    """Each job belongs to a trace, and each attempt is a span; `share` of the traces are kept."""
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)))
    provider.add_span_processor(BatchSpanProcessor(_Encoder()))
    with mock.patch.object(trace, "_TRACER_PROVIDER", provider):
        yield
        provider.shutdown()


@contextlib.contextmanager
def logged(format: logs.LogFormat) -> Iterator[None]:
    """A line at the end of each job, to a file."""
    root = logging.getLogger()
    handlers, level, stderr = list(root.handlers), root.level, sys.stderr
    with open("/dev/null", "w") as sys.stderr:
        try:
            logs.configure(format, "INFO")
            yield
        finally:
            root.handlers[:], sys.stderr = handlers, stderr
            root.setLevel(level)


WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "as it is": as_it_is,
    "not counted": without_metrics,
    "traced": traced,
    "traced, 1 in 10 kept": lambda: traced(0.1),
    "a line in the log, JSON": lambda: logged("json"),
    "a line in the log, console": lambda: logged("console"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when it did not work out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.observed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each way has its turn (9)")
    parser.add_argument("--jobs", type=int, default=3000, help="no-ops in a turn (3000)")
    options = parser.parse_args(arguments)
    for line in machine.describe():
        print(line)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    try:
        with server("off") as redis_server, tempfile.TemporaryDirectory(prefix="jobstream-bench-") as files:
            for number in range(options.rounds + 1):
                for name, way in list(WAYS.items())[:: 1 if number % 2 else -1]:
                    with way():
                        cost = asyncio.run(_cpu_of_a_job(redis_server.url, Path(files), options.jobs))
                    if number:  # the first round warms up
                        found[name].append(cost)
    except (BenchmarkError, TimeoutError) as error:
        print(error or "it took too long", file=sys.stderr)
        return 1
    print("\n".join(["", *table(rows(found))]))
    return 0


async def _cpu_of_a_job(url: str, files: Path, count: int) -> float:
    """Microseconds of CPU that this process spends on a job, from the worker's start until the last one has ended."""
    global _left, _over
    _left, _over = count, asyncio.Event()
    source = UrlSource(url)
    client = source.client()
    await client.flushdb()
    jobs = [Submission("noop", {}) for _ in range(count)]
    with trace.get_tracer_provider().get_tracer("benchmark").start_as_current_span("submit"):
        await Queue(client, words=0).submit_many(jobs)
    settings = WorkerSettings(redis_url=url, files_dir=files, processes=1, max_jobs=100)
    worker = Worker(source, {"noop": noop}, settings)
    before = time.process_time()
    running = asyncio.create_task(worker.async_run())
    async with asyncio.timeout(PATIENCE):
        await _over.wait()
        worker.stop()
        await running
    spent = time.process_time() - before
    await worker.close()
    await client.aclose()
    return spent / count * 1e6


def rows(found: dict[str, list[float]]) -> list[list[str]]:
    """The table: the least of all rounds, which others on the machine have disturbed least; and the medians."""
    lines = [["", "CPU per job", "more", "ratio", "median"]]
    base = min(found["as it is"])
    for name, costs in found.items():
        least = min(costs)
        lines.append(
            [name, f"{least:.1f} µs", f"{least - base:+.1f} µs", f"{least / base:.2f}", f"{median(costs):.1f} µs"]
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
