"""One trace from a client's span through the API, Redis and every attempt to the webhook; and none when it is off."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jobstream import keys
from jobstream.client import Client, SyncClient
from jobstream.embedded import ChildRedis
from jobstream.queue import Queue
from jobstream.redis import RedisSource
from jobstream.serialize import deserialize, serialize
from jobstream.store import read_record
from jobstream.telemetry import discreet
from jobstream_workers.loader import load_tasks
from tests.acceptance.guarded import guarded
from tests.acceptance.service import TASKS, Service
from tests.receiver import Receiver, receiving
from tests.working import ended, quick_settings, working

TRACED = load_tasks(["tests.worker_tasks", "tests.traced_tasks"], entry_points=False)

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is traced in this process while the test runs."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(discreet())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


async def test_one_trace_leads_from_the_client_to_every_attempt_and_the_webhook(
    source: RedisSource, spans: InMemorySpanExporter, receiver: Receiver, tmp_path: Path
) -> None:
    allowed = "127.0.0.1"
    async with (
        guarded(source, auth="open", webhook_allow=allowed) as service,
        working(source, quick_settings(tmp_path, webhook_allow=allowed)),
        Client(service.url) as client,
    ):
        await _known(service.url, "flaky")
        with trace.get_tracer("shop").start_as_current_span("checkout") as checkout:
            job = await client.submit("flaky", {"fails": 1}, callback_url=f"{receiver.url}/hook")
        await job.wait(30)
        (told,) = await receiver.first("/hook")
        async with asyncio.timeout(20):
            while not named(spans, "run webhook-delivery"):  # noqa: ASYNC110 (the span ends after the answer)
                await asyncio.sleep(0.01)
    (submit,) = named(spans, "POST /{task}")
    first, second = named(spans, "run flaky")
    (delivery,) = named(spans, "run webhook-delivery")
    trace_id = checkout.get_span_context().trace_id
    assert {span.context.trace_id for span in (submit, first, second, delivery)} == {trace_id}
    assert submit.parent is not None
    assert submit.parent.span_id == checkout.get_span_context().span_id
    for attempt, span in ((1, first), (2, second)):
        assert span.parent is not None
        assert span.parent.span_id == submit.context.span_id
        assert [link.context.span_id for link in span.links] == [submit.context.span_id]
        assert span.attributes is not None
        assert (span.attributes["jobstream.attempt"], span.attributes["messaging.message.id"]) == (attempt, job.id)
    assert (first.status.is_ok, second.status.is_ok) == (False, True)
    assert told.headers["traceparent"].startswith(f"00-{trace_id:032x}-{delivery.context.span_id:016x}-")


async def test_what_a_task_does_is_below_its_attempt(
    source: RedisSource, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    seen = {}
    with trace.get_tracer("shop").start_as_current_span("checkout") as checkout:
        async with working(source, quick_settings(tmp_path), tasks=TRACED):
            client = source.client()
            queue = Queue(client)
            job = await ended(queue, await queue.submit("traced", {}))
            thread = await ended(queue, await queue.submit("traced_thread", {}))
            process = await ended(queue, await queue.submit("traced_process", {}))
            await client.aclose()
    for task, ran in (("traced", job), ("traced_thread", thread), ("traced_process", process)):
        (span,) = named(spans, f"run {task}")
        seen[task] = ran.result
        assert ran.result == [f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"], task
        assert span.context.trace_id == checkout.get_span_context().trace_id


async def test_spans_say_nothing_of_inputs_queries_and_messages(
    source: RedisSource, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    canary = "canary-of-the-input"
    async with (
        guarded(source, auth="open") as service,
        working(source, quick_settings(tmp_path), tasks=TRACED),
        service.http(None) as http,
    ):
        await _known(service.url, "raises_its_input")
        job = (await http.post("/raises_its_input", json={"text": canary}, params={"tags": canary})).json()
        await ended(service.queue, await service.queue.get(job["id"]))
        await http.get("/jobs", params={"q": canary})
        await http.get("/livez")
    (attempt,) = named(spans, "run raises_its_input")
    assert attempt.attributes is not None
    assert attempt.attributes["error.type"] == "task-raised"
    assert named(spans, "GET /jobs")
    assert not named(spans, "GET /livez")
    for span in spans.get_finished_spans():
        assert canary not in span.to_json()


async def test_untraced_work_carries_nothing(source: RedisSource) -> None:
    client = source.client()
    job = await Queue(client).submit("words", {})
    assert b"trace" not in (await client.get(keys.arq_job(job.id)) or b"")
    assert b"traceparent" not in (await read_record(client, job.id) or {})
    await client.aclose()


async def test_a_trace_that_is_not_understood_does_no_harm(source: RedisSource, tmp_path: Path) -> None:
    client = source.client()
    queue = Queue(client)
    for wrong in (
        "nonsense",
        {"traceparent": "00-zz"},
        {"traceparent": 7},
        {"traceparent": f"00-{'0' * 32}-{'0' * 16}-01"},
    ):
        job = await queue.submit("add", {"a": 1})
        payload = deserialize(await client.get(keys.arq_job(job.id)) or b"")
        await client.set(keys.arq_job(job.id), serialize({**payload, "trace": wrong}))
    async with working(source, quick_settings(tmp_path)):
        assert (await ended(queue, job)).status == "succeeded"
    await client.aclose()


async def _known(url: str, task: str) -> None:
    async with asyncio.timeout(20), Client(url) as client:
        while task not in {known.name for known in await client.tasks()}:  # noqa: ASYNC110 (the API looks each second)
            await asyncio.sleep(0.02)


class Collector:
    """Takes spans by OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                for of_one in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {each.key: each.value.string_value for each in of_one.resource.attributes}
                    for scope in of_one.scope_spans:
                        outer.spans += [(names["service.name"], span) for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()

    def until(self, name: str) -> tuple[str, Any]:
        """The first span of that name, and its service."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for service, span in list(self.spans):
                if span.name == name:
                    return service, span
            time.sleep(0.02)
        raise AssertionError(f"no span {name!r}, but {[span.name for _, span in self.spans]}")


def test_processes_export_one_trace_and_write_its_id_into_their_logs(redis_server: ChildRedis, tmp_path: Path) -> None:
    with Collector().running() as collector:
        service = Service(
            tmp_path,
            redis_url=redis_server.url,
            JOBSTREAM_TRACES="otlp",
            JOBSTREAM_LOG_FORMAT="json",
            JOBSTREAM_TASKS=f"{TASKS},tests.acceptance.logging_tasks",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="60000",  # what is exported is exported at the end: nothing may be lost then
        )
        try:
            service.start_api()
            service.start_worker(f"{TASKS},tests.acceptance.logging_tasks")
            service.wait_until(lambda: service.knows("says_in_process"), "the tasks are not known")
            with SyncClient(service.url) as client:
                client.submit("says_in_process", {"secret": "x"}).wait(30)
        finally:
            service.close()
        api, submit = collector.until("POST /{task}")
        worker, attempt = collector.until("run says_in_process")
    assert (api, worker) == ("jobstream-api", "jobstream-worker")
    assert attempt.trace_id == submit.trace_id
    assert attempt.parent_span_id == submit.span_id
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    of_job = [line for line in lines if line.get("task") == "says_in_process"]
    assert len(of_job) >= 4, "the child's, and the worker's own"
    assert {line["trace_id"] for line in of_job} == {submit.trace_id.hex()}
