"""The meter: what the API counts of itself, for Prometheus. Each answer costs it a few plain numbers."""

from __future__ import annotations

from collections import defaultdict

from starlette.types import Scope

from jobstream.metrics import CALL_BUCKETS, OTHER, Distribution, Families, Names, RedisCalls, counter, histogram

METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())

TASKS_MOST = 300
"""Tasks that are told apart: the catalogue has those of a week."""


class Meter:
    """Labels are our routes, methods, statuses and announced tasks; whatever else a request names is `<other>`."""

    def __init__(self) -> None:
        self._answered: dict[tuple[str, ...], int] = defaultdict(int)
        self._seconds: dict[tuple[str, ...], Distribution] = defaultdict(lambda: Distribution(CALL_BUCKETS))
        self._stored: dict[tuple[str, ...], int] = defaultdict(int)
        self._tasks = Names(TASKS_MOST)
        self.redis = RedisCalls()

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """A request was answered, `seconds` until the answer began; `status` 0: it was not, its client has gone."""
        route = str(getattr(scope.get("route"), "path_format", OTHER))
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._answered[method, route, str(status)] += 1
        if status:
            self._seconds[method, route].observe(seconds)

    def stored(self, task: str) -> None:
        """A job was submitted. Its task was announced, or nobody would have taken it."""
        self._stored[self._tasks.label(task),] += 1

    def families(self) -> Families:
        """For the scrape."""
        text = "Requests, by what was answered; status 0: nothing, the client had gone."
        yield counter("http_requests", text, ["method", "route", "status"], self._answered)
        text = "Time until the answer began; of an event stream this is its head."
        yield histogram("http_seconds", text, ["method", "route"], self._seconds)
        yield counter("jobs_submitted", "Jobs that this process has stored.", ["task"], self._stored)
        yield from self.redis.families()
