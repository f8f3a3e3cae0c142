"""What both processes need to be measured: cheap counts that are put into Prometheus's format only when somebody asks.

A job that ends moves a few plain numbers; prometheus-client is called at the scrape. Every number is written by one
thread, and read by any.
"""

from __future__ import annotations

import importlib.metadata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST

OTHER: Final = "<other>"
"""Stands for every name that comes from outside and is not known here: such names are without end."""

JOB_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)
"""Seconds: jobs take milliseconds or hours, and the dashboards compare them."""

CALL_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds of a call of Redis, or of an answer."""

Families = Iterator[Metric]
Labels = TypeVar("Labels", bound=tuple[str, ...])


class Distribution:
    """How often a value fell into which bucket."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """As prometheus-client takes them: upper bound, how many are not above it."""
        counts, below = list(self.counts), 0
        buckets = []
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        return buckets


class Names:
    """Label values that there can be: those that were named beforehand, and of others the first `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """The name, or `<other>`."""
        if name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name


def counter(name: str, text: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Metric:
    """A counter with these values; the keys are the labels' values."""
    family = CounterMetricFamily(f"jobstream_{name}", text, labels=labels)
    for key, value in list(values.items()):
        family.add_metric(key, value)
    return family


def gauge(name: str, text: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Metric:
    """A gauge with these values."""
    family = GaugeMetricFamily(f"jobstream_{name}", text, labels=labels)
    for key, value in list(values.items()):
        family.add_metric(key, value)
    return family


def histogram(name: str, text: str, labels: Sequence[str], values: Mapping[Labels, Distribution]) -> Metric:
    """A histogram with these values."""
    family = HistogramMetricFamily(f"jobstream_{name}", text, labels=labels)
    for key, value in list(values.items()):
        family.add_metric(key, value.buckets(), value.sum)
    return family


class RedisCalls:
    """How long calls of Redis took, by what they were for, and how often it was away. Names are the code's own."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], Distribution] = defaultdict(lambda: Distribution(CALL_BUCKETS))
        self.failures = 0

    def took(self, call: str, seconds: float) -> None:
        """A call was answered."""
        self._seconds[call,].observe(seconds)

    def failed(self) -> None:
        """Redis was away."""
        self.failures += 1

    def families(self) -> Families:
        """For the scrape."""
        text = "Time that a call of Redis took, there and back, as its caller saw it."
        yield histogram("redis_seconds", text, ["call"], self._seconds)
        yield counter("redis_failures", "Calls of Redis that were tried in vain.", [], {(): self.failures})


class Registry(CollectorRegistry):
    """What a scrape finds: what `families` gives, the version, and the process's CPU time, memory and open files."""

    def __init__(self, role: str, families: Callable[[], Iterable[Metric]]) -> None:
        super().__init__()
        self._role = role
        self.register(_Collected(self._info))
        self.register(_Collected(families))
        ProcessCollector(registry=self)
        GCCollector(registry=self)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self)

    def _info(self) -> Families:
        labels = (importlib.metadata.version("jobstream"), self._role)
        yield gauge("build_info", "Which jobstream this is; always 1.", ["version", "role"], {labels: 1})


class _Collected(Collector):
    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()

    def describe(self) -> Iterable[Metric]:
        return ()  # asked when it is registered: what it gives is not known before the scrape
