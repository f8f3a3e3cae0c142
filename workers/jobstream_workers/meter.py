"""The meter: what a worker counts of itself, for Prometheus. A job costs it a few plain numbers, moved on the loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from jobstream.job import FINAL
from jobstream.metrics import (
    CALL_BUCKETS,
    JOB_BUCKETS,
    OTHER,
    Distribution,
    Families,
    RedisCalls,
    Registry,
    counter,
    gauge,
    histogram,
)
from jobstream.outbox import Batch
from jobstream_workers.claim import ClaimedJob


class _TaskCounts:
    """What became of the attempts of one task."""

    __slots__ = ("crashed", "ended", "released", "retried", "seconds")

    def __init__(self) -> None:
        self.ended = dict.fromkeys(map(str, sorted(FINAL)), 0)
        self.retried = 0
        self.released = 0
        self.crashed = 0
        self.seconds = Distribution(JOB_BUCKETS)


class Meter:
    """Counts what a worker does. Its methods are called in the worker's event loop, `exposition` by any thread.

    Labels are the worker's own tasks and queues; whatever else a job may name stands under `<other>`.
    """

    def __init__(self, tasks: Iterable[str], queues: Iterable[str] = ()) -> None:
        # Made beforehand: so each series is there from the start, as zero.
        self._tasks: Mapping[str, _TaskCounts] = {name: _TaskCounts() for name in (*tasks, OTHER)}
        self._others = self._tasks[OTHER]
        self._waited = {(name,): Distribution(JOB_BUCKETS) for name in queues}
        self._taken_over = 0
        self._lost = 0
        self._said: dict[tuple[str, ...], float] = {("progress",): 0, ("log",): 0, ("chunk",): 0}
        self._logs_dropped = 0
        self._webhooks: dict[tuple[str, ...], float] = {("delivered",): 0, ("retried",): 0, ("failed",): 0}
        self._webhook_seconds = Distribution(CALL_BUCKETS)
        self.redis = RedisCalls()
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._registry = Registry("worker", self._families)

    def watch(self, *, slots: int, running: Callable[[], int], left: Callable[[], int]) -> None:
        """Show how many jobs may run, how many do, and how many coroutines run on without theirs."""
        self._gauges += [
            ("slots", "Jobs that may run at once.", lambda: slots),
            ("jobs_running", "Jobs that run.", running),
            ("coroutines_left_behind", "Coroutines that did not stop when told to, and run on without jobs.", left),
        ]

    def claimed(self, jobs: Sequence[ClaimedJob]) -> None:
        """These jobs of one queue were claimed."""
        if not jobs:
            return
        waited = self._waited.get((jobs[0].queue,))
        if waited is None:
            waited = self._waited[jobs[0].queue,] = Distribution(JOB_BUCKETS)
        for job in jobs:
            waited.observe(job.waited)
            self._taken_over += job.taken_over

    def ended(self, task: str, status: str, seconds: float) -> None:
        """A job came to its end; `seconds` is what this attempt took."""
        counts = self._tasks.get(task, self._others)
        counts.ended[status] += 1
        counts.seconds.observe(seconds)

    def retried(self, task: str) -> None:
        """An attempt failed, and another one will follow."""
        self._tasks.get(task, self._others).retried += 1

    def released(self, task: str) -> None:
        """An attempt was given back, because the worker ends."""
        self._tasks.get(task, self._others).released += 1

    def crashed(self, task: str) -> None:
        """The process that ran the task has died."""
        self._tasks.get(task, self._others).crashed += 1

    def lost(self) -> None:
        """An attempt was given up, its job is another worker's."""
        self._lost += 1

    def said(self, batch: Batch) -> None:
        """What a job said was published."""
        for entry in batch.entries:
            self._said[entry.kind,] += 1
        self._said["progress",] += batch.progress is not None
        self._logs_dropped += batch.logs_dropped

    def delivered(self, outcome: str, seconds: float) -> None:
        """A webhook was sent: `delivered`, to be `retried`, or `failed` for good."""
        self._webhooks[outcome,] += 1
        self._webhook_seconds.observe(seconds)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return self._registry.exposition()

    def _families(self) -> Families:
        tasks = self._tasks.items()
        ended = {(name, status): number for name, task in tasks for status, number in task.ended.items()}
        retried = {(name,): task.retried for name, task in tasks}
        released = {(name,): task.released for name, task in tasks}
        claimed = {queue: sum(waited.counts) for queue, waited in list(self._waited.items())}
        yield counter("jobs_ended", "Jobs that this worker brought to their end.", ["task", "status"], ended)
        yield counter("jobs_retried", "Attempts that failed and are to be followed by another.", ["task"], retried)
        yield counter("jobs_released", "Attempts that were given back because the worker ended.", ["task"], released)
        yield counter("jobs_claimed", "Attempts that this worker was given.", ["queue"], claimed)
        yield counter("jobs_taken_over", "Jobs whose worker had died.", [], {(): self._taken_over})
        text = "Attempts whose process died: it was killed, ran out of memory, or crashed."
        yield counter("process_crashes", text, ["task"], {(name,): task.crashed for name, task in tasks})
        text = "Attempts that were given up: another worker has the job."
        yield counter("leases_lost", text, [], {(): self._lost})
        text = "Time that the last attempt of an ended job took."
        yield histogram("job_seconds", text, ["task"], {(name,): task.seconds for name, task in tasks})
        text = "Time between when a job was due and when this worker claimed it."
        yield histogram("job_wait_seconds", text, ["queue"], self._waited)
        published: dict[tuple[str, ...], float] = defaultdict(float, self._said)
        published["done",] = sum(ended.values())
        published["status",] = sum(claimed.values()) + sum(retried.values()) + sum(released.values())
        yield counter("events_published", "Events of jobs that this worker published.", ["kind"], published)
        text = "Lines of jobs' logs that were too many at once."
        yield counter("log_lines_dropped", text, [], {(): self._logs_dropped})
        yield counter("webhook_attempts", "Webhooks that were sent, by what became of it.", ["outcome"], self._webhooks)
        text = "Time until the receiver of a webhook had answered."
        yield histogram("webhook_seconds", text, [], {(): self._webhook_seconds})
        for name, text, read in self._gauges:
            yield gauge(name, text, [], {(): read()})
        yield from self.redis.families()
