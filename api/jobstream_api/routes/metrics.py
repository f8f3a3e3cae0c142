"""`/metrics`: what this process counts, and what waits in Redis, in Prometheus's text format."""

from __future__ import annotations

import asyncio
import logging
import time

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from jobstream.backlog import Backlog, QueueBacklog, read_backlog
from jobstream.job import DEFAULT_QUEUE, WEBHOOKS_QUEUE
from jobstream.metrics import MEDIA_TYPE, Families, Registry, counter, gauge
from jobstream.redis import is_unavailable
from jobstream_api.auth.gate import MetricsReader
from jobstream_api.service import Service

logger = logging.getLogger("jobstream.metrics")

FRESH_SECONDS = 1.0
"""However often it is asked, Redis is asked no more often than this."""

PATIENCE_SECONDS = 2.0


class Gauges:
    """The backlog as last read, and what the process has open."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._backlog: Backlog | None = None
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Read the backlog, unless it has just been read. While Redis is away there is none."""
        async with self._lock:
            if time.monotonic() - self._read_at < FRESH_SECONDS:
                return
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    self._backlog = await read_backlog(self._service.client, self._queues())
            except Exception as error:
                self._backlog = None
                if not is_unavailable(error):
                    logger.exception("the backlog cannot be read")
            self._read_at = time.monotonic()

    def _queues(self) -> list[str]:
        announced = {task.queue for task in self._service.tasks.tasks.values()}
        return [DEFAULT_QUEUE, WEBHOOKS_QUEUE, *sorted(announced)]

    def families(self) -> Families:
        """For the scrape."""
        yield from self._service.meter.families()
        yield from self._live()
        backlog = self._backlog
        yield gauge("redis_up", "Whether Redis answered at this scrape.", [], {(): float(backlog is not None)})
        if backlog is not None:
            yield from _queue_families(backlog.queues)
            statuses = {(str(status),): number for status, number in backlog.statuses.items()}
            yield gauge(
                "jobs", "Jobs that have a record, by status; those that ended until it expires.", ["status"], statuses
            )
            yield gauge("workers", "Workers whose heart beats.", [], {(): backlog.workers})
            text = "Ended jobs of which somebody is still to be told."
            yield gauge("mailbag_jobs", text, [], {(): backlog.mailbag})

    def _live(self) -> Families:
        service, counts = self._service, self._service.hub.counts
        yield gauge("streams", "Open event streams: SSE, NDJSON and WebSocket.", [], {(): len(service.streams)})
        watchers = service.hub.watchers + service.tape.readers
        yield gauge(
            "watchers", "Those who follow a job, or many, streams and waiting requests alike.", [], {(): watchers}
        )
        yield gauge(
            "channels", "Jobs that are followed: channels subscribed to in Redis.", [], {(): service.hub.channels}
        )
        yield gauge("listening", "Whether the subscription to Redis stands.", [], {(): float(service.hub.listening)})
        yield counter("events_heard", "Events of followed jobs that Redis has published.", [], {(): counts.heard})
        yield counter("frames_told", "Frames that went to followers.", [], {(): counts.told})
        text = "Progress that newer progress has replaced before it went out."
        yield counter("frames_conflated", text, [], {(): counts.conflated})
        text = "Times that too much waited for a slow client: dropped, and read from the job's log instead."
        yield counter("frames_overrun", text, [], {(): counts.overrun})
        yield counter(
            "log_reads", "Reads of jobs' logs, for who joins or has missed something.", [], {(): counts.reads}
        )


def _queue_families(queues: dict[str, QueueBacklog]) -> Families:
    def of_each(name: str, text: str, values: dict[str, float]) -> Families:
        yield gauge(name, text, ["queue"], {(queue,): value for queue, value in values.items()})

    each = queues.items()
    text = "Jobs that want a slot or have one, waiting or running: what the number of workers should follow."
    yield from of_each("jobs_due", text, {queue: backlog.due for queue, backlog in each})
    yield from of_each(
        "jobs_waiting", "Jobs that are due and wait for a slot.", {queue: backlog.waiting for queue, backlog in each}
    )
    text = "All jobs of the queue: waiting, running, scheduled, between two attempts, held back."
    yield from of_each("queue_depth", text, {queue: backlog.depth for queue, backlog in each})
    text = "Time since the job that has waited longest was due; 0 when none waits."
    yield from of_each("oldest_waiting_seconds", text, {queue: backlog.oldest for queue, backlog in each})
    text = "Jobs whose task none of the workers that looked at them has."
    yield from of_each("jobs_without_worker", text, {queue: backlog.lacking for queue, backlog in each})


def add_routes(router: APIRouter, service: Service) -> None:
    """`GET /metrics`."""
    gauges = Gauges(service)
    registry = Registry("api", gauges.families)

    @router.get(
        "/metrics",
        tags=["health"],
        summary="What this process counts and what waits in Redis, for Prometheus",
        response_class=PlainTextResponse,
    )
    async def metrics(caller: MetricsReader) -> Response:
        await gauges.refresh()
        return Response(registry.exposition(), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
