"""A worker's health: when it is dead, when it only waits, what it counts; and a server that nobody can hold up."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from arq.connections import ArqRedis
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import ConnectionError, ReadOnlyError

import jobstream_workers.worker
from jobstream import keys
from jobstream.embedded import ChildRedis
from jobstream.errors import ConfigurationError
from jobstream.fake import FakeSource
from jobstream.queue import Queue
from jobstream.redis import RedisSource, UrlSource
from jobstream.task import Task
from jobstream_workers import health
from jobstream_workers.claim import ClaimedJob, claim
from jobstream_workers.health import HealthServer, Pulse
from jobstream_workers.meter import Meter
from jobstream_workers.worker import Worker
from tests.ports import free_port
from tests.worker_tasks import add, thread_works
from tests.working import TASKS, Settings, ended, event_of, working

HOUR = 3600


def pulse_of(*tasks: Task, poll_seconds: float = 0.5) -> Pulse:
    """The pulse of a worker that has announced its tasks."""
    pulse = Pulse(tasks, poll_seconds=poll_seconds)
    pulse.announced = True
    return pulse


def live(pulse: Pulse, seconds: int, *, error: Exception | None = None, redis_answers: bool = False) -> None:
    """Let both loops turn for so long; the claim loop fails with `error` each second, or says nothing."""
    for _ in range(seconds):
        pulse.turned()
        if error is not None:
            pulse.failed(error)
        pulse.watched(redis_answers=pulse.in_doubt and redis_answers)


def test_a_worker_that_reaches_redis_is_alive_and_ready() -> None:
    pulse = pulse_of(add)
    for _ in range(HOUR):
        live(pulse, 3)
        pulse.reached()
        assert (pulse.illness, pulse.hindrance, pulse.in_doubt) == (None, None, False)


def test_a_worker_that_has_not_announced_itself_is_not_ready() -> None:
    assert Pulse([]).hindrance == "starting"
    assert Pulse([]).illness is None


def test_a_claim_loop_that_says_nothing_any_more_is_dead() -> None:
    pulse = pulse_of(add)
    live(pulse, 60)
    assert pulse.illness is None
    live(pulse, 1)
    assert pulse.illness == "the claim loop has not been heard of for 61 s"


def test_a_claim_loop_that_fails_for_a_reason_that_does_not_pass_is_dead() -> None:
    pulse = pulse_of(add)
    live(pulse, 61, error=ValueError("a mistake of ours"), redis_answers=True)
    assert pulse.illness is not None


def test_a_slow_fallback_poll_is_no_illness() -> None:
    pulse = pulse_of(add, poll_seconds=300)
    live(pulse, 300)
    assert (pulse.illness, pulse.hindrance) == (None, None)


def test_redis_that_is_away_for_hours_does_not_kill_the_worker() -> None:
    pulse = pulse_of(add)
    live(pulse, 10 * HOUR, error=ConnectionError("refused"))
    assert pulse.illness is None
    assert pulse.hindrance == f"Redis was not reached for {10 * HOUR} s"
    pulse.reached()
    assert pulse.hindrance is None


def test_redis_that_refuses_writes_for_hours_does_not_kill_the_worker() -> None:
    pulse = pulse_of(add)
    live(pulse, HOUR, error=ReadOnlyError("You can't write against a read only replica"), redis_answers=True)
    assert pulse.illness is None
    assert pulse.hindrance is not None


def test_a_worker_that_cannot_reach_a_redis_that_answers_is_dead() -> None:
    pulse = pulse_of(add)
    live(pulse, 64, error=ConnectionError("refused"), redis_answers=True)
    assert pulse.illness is None
    live(pulse, 5, error=ConnectionError("refused"), redis_answers=True)
    assert pulse.illness == "the claim loop has not reached Redis for 69 s, although Redis answers"
    pulse.reached()
    assert pulse.illness is None


def test_redis_that_has_just_come_back_does_not_kill_the_worker() -> None:
    pulse = pulse_of(add)
    live(pulse, HOUR, error=ConnectionError("refused"))
    live(pulse, 30, error=ConnectionError("refused"), redis_answers=True)
    assert pulse.illness is None


def test_an_event_loop_may_be_blocked_for_as_long_as_a_task_on_it_may_take() -> None:
    pulse = pulse_of(
        dataclasses.replace(add, timeout=500), add, dataclasses.replace(thread_works, name="thread", timeout=HOUR)
    )

    def blocked(seconds: int) -> None:
        for _ in range(seconds):
            pulse.watched(redis_answers=False)

    blocked(510)
    assert pulse.illness is None
    assert pulse.hindrance == "the event loop has not turned for 510 s"
    blocked(1)
    assert pulse.illness == "the event loop has not turned for 511 s"
    pulse.turned()
    assert pulse.illness is None, "neither for this nor for a claim loop that could say nothing meanwhile"


def test_a_worker_with_as_many_coroutines_left_behind_as_slots_is_dead() -> None:
    pulse = Pulse([], slots=2)
    pulse.left_behind = 1
    assert pulse.illness is None
    pulse.left_behind = 2
    assert pulse.illness == "2 coroutines did not stop when they were told to, and run on"


def test_a_worker_that_shuts_down_for_hours_is_alive_and_not_ready() -> None:
    pulse = pulse_of(add)
    pulse.stopping = True
    live(pulse, HOUR)
    assert (pulse.illness, pulse.hindrance) == (None, "shutting down")


class Answer:
    """A response, taken apart."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        line, *headers = head.decode().split("\r\n")
        self.status = int(line.split()[1])
        self.headers = dict(header.split(": ", 1) for header in headers)

    @property
    def said(self) -> Any:
        """The `status` of a JSON body."""
        return json.loads(self.body)["status"]


async def send(address: tuple[str, int], request: bytes) -> Answer:
    """Send bytes, read until the server has said all."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(20):
            writer.write(request)
            return Answer(await reader.read())
    finally:
        writer.close()
        await writer.wait_closed()


async def ask(address: tuple[str, int], path: str, *, method: str = "GET") -> Answer:
    return await send(address, f"{method} {path} HTTP/1.1\r\nHost: worker\r\n\r\n".encode())


async def until(address: tuple[str, int], path: str, status: int) -> Answer:
    """The first answer of this status."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                answer = await ask(address, path)
                if answer.status == status:
                    return answer
            await asyncio.sleep(0.05)


async def metrics(address: tuple[str, int]) -> dict[str, float]:
    """Samples by name and labels: `jobstream_jobs_ended_total add succeeded`."""
    families = text_string_to_metric_families((await ask(address, "/metrics")).body.decode())
    return {
        " ".join([sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))]): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def pulse() -> Pulse:
    return pulse_of(add)


@pytest.fixture
def server(pulse: Pulse) -> Iterator[HealthServer]:
    with HealthServer(pulse, Meter(["add"]), FakeSource(), host="127.0.0.1", port=0) as server:
        yield server


async def test_it_says_how_the_worker_is(server: HealthServer, pulse: Pulse) -> None:
    for path in ("/livez", "/readyz", "/readyz?verbose=1"):
        answer = await ask(server.address, path)
        assert (answer.status, answer.said, answer.headers["Content-Type"]) == (200, "ok", "application/json")
        assert answer.headers["Connection"] == "close"
    pulse.stopping = True
    assert (await ask(server.address, "/livez")).status == 200
    answer = await ask(server.address, "/readyz")
    assert (answer.status, answer.said) == (503, "shutting down")


async def test_a_dead_worker_says_why(server: HealthServer, pulse: Pulse) -> None:
    live(pulse, 100)
    answer = await ask(server.address, "/livez")
    assert answer.status == 503
    assert "claim loop" in answer.said


@pytest.mark.parametrize("path", ["/livez", "/metrics"])
async def test_head_is_get_without_a_body(server: HealthServer, path: str) -> None:
    head, get = await ask(server.address, path, method="HEAD"), await ask(server.address, path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers.keys() == get.headers.keys()
    assert int(get.headers["Content-Length"]) == len(get.body)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", 404),
        (b"GET /livez/ HTTP/1.1", 404),
        (b"POST /livez HTTP/1.1", 405),
        (b"GET /livez", 400),
        (b"GET /livez HTTP/2.0", 400),
        (b"get /livez HTTP/1.1", 400),
        (b"GET  /livez HTTP/1.1", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"", 400),
        (b"GET /" + b"x" * 7000 + b" HTTP/1.1", 404),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1", 400),
    ],
)
async def test_a_bad_request_gets_a_clear_answer(server: HealthServer, request_line: bytes, status: int) -> None:
    answer = await send(server.address, request_line + b"\r\nHost: worker\r\n\r\n")
    assert answer.status == status
    assert answer.said
    assert (await ask(server.address, "/livez")).status == 200


async def test_clients_that_are_slow_or_many_are_cut_and_hold_up_nobody(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "REQUEST_SECONDS", 0.5)
    slow = [await asyncio.open_connection(*server.address) for _ in range(health.CONNECTIONS - 1)]
    for _, writer in slow:
        writer.write(b"GET /livez HTT")
    assert (await ask(server.address, "/livez")).status == 200
    more = [await asyncio.open_connection(*server.address) for _ in range(20)]
    async with asyncio.timeout(10):
        for reader, writer in (*slow, *more):
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    assert (await ask(server.address, "/livez")).status == 200


async def test_a_connection_that_stays_open_does_not_hold_up_the_shutdown(pulse: Pulse) -> None:
    with HealthServer(pulse, Meter([]), FakeSource(), host="127.0.0.1", port=0) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        assert (await ask(server.address, "/livez")).status == 200
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


def test_a_port_that_is_taken_is_a_configuration_error(server: HealthServer, pulse: Pulse) -> None:
    host, port = server.address
    with (
        pytest.raises(ConfigurationError, match=f"JOBSTREAM_WORKER_PORT: cannot listen on 127.0.0.1 port {port}"),
        HealthServer(pulse, Meter([]), FakeSource(), host=host, port=port),
    ):
        pass


@contextlib.asynccontextmanager
async def healthy(
    source: RedisSource, settings: Settings, **changes: Any
) -> AsyncIterator[tuple[Worker, tuple[str, int]]]:
    """A worker with a port."""
    port = free_port()
    async with working(source, settings(worker_port=port, **changes)) as worker:
        yield worker, ("127.0.0.1", port)


async def test_a_worker_counts_what_becomes_of_its_jobs(source: RedisSource, settings: Settings, queue: Queue) -> None:
    async with healthy(source, settings, max_jobs=7, missing_task_seconds=0) as (_, address):
        for _ in range(3):
            await ended(queue, await queue.submit("add", {"a": 1}))
        await ended(queue, await queue.submit("raises", {}))
        await ended(queue, await queue.submit("flaky", {"fails": 2}))
        await ended(queue, await queue.submit("no_such_task", {}))
        waits = await queue.submit("waits", {})
        await event_of(queue.client, waits.id, "log")
        busy = await metrics(address)
        await queue.cancel(waits.id)
        await ended(queue, waits)
        idle = await metrics(address)
    assert (busy["jobstream_jobs_running"], busy["jobstream_slots"]) == (1, 7)
    assert idle["jobstream_jobs_ended_total add succeeded"] == 3
    assert idle["jobstream_jobs_ended_total add failed"] == 0
    assert idle["jobstream_jobs_ended_total raises failed"] == 1
    assert idle["jobstream_jobs_ended_total waits cancelled"] == 1
    assert idle["jobstream_jobs_ended_total <other> failed"] == 1
    assert idle["jobstream_jobs_retried_total flaky"] == 2
    assert idle["jobstream_job_seconds_count add"] == idle["jobstream_job_seconds_bucket add +Inf"] == 3
    assert idle["jobstream_jobs_claimed_total default"] == idle["jobstream_job_wait_seconds_count default"] == 9
    assert idle["jobstream_jobs_claimed_total webhooks"] == 0
    assert idle["jobstream_job_wait_seconds_sum default"] < 60
    assert idle["jobstream_events_published_total done"] == 7
    assert idle["jobstream_events_published_total status"] == 9 + 2
    assert idle["jobstream_events_published_total log"] == 1
    assert idle["jobstream_redis_seconds_count claim"] > 0
    assert idle["jobstream_leases_lost_total"] == idle["jobstream_jobs_taken_over_total"] == 0
    assert not [name for name in idle if "no_such_task" in name], "names from outside are without end"


async def test_a_worker_counts_what_it_lost_and_what_it_took_over(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    job = await queue.submit("waits", {})
    await claim(client, queue="default", worker_id="dead", slots=1, lease=0.05)
    async with healthy(source, settings, lease_seconds=1) as (_, address):
        await event_of(client, job.id, "log")
        taken = await metrics(address)
        await client.set(keys.in_progress(job.id), "another#3", px=60_000)
        async with asyncio.timeout(20):
            while not (lost := await metrics(address))["jobstream_leases_lost_total"]:
                pass
    assert taken["jobstream_jobs_taken_over_total"] == 1
    assert lost["jobstream_leases_lost_total"] == 1


async def test_a_worker_without_a_port_listens_nowhere(source: RedisSource, settings: Settings) -> None:
    assert settings().worker_port is None
    async with working(source, settings()):
        assert "jobstream-health" not in [thread.name for thread in threading.enumerate()]


async def test_a_worker_whose_event_loop_is_blocked_answers(
    source: RedisSource, settings: Settings, queue: Queue
) -> None:
    async with healthy(source, settings) as (_, address):
        asked = asyncio.create_task(asyncio.to_thread(_ask_while_blocked, address))
        job = await ended(queue, await queue.submit("blocks", {"seconds": 2}))
        answers = await asked
    assert job.result == "done"
    assert answers == [200] * len(answers)
    assert len(answers) > 20, "it answered all the time"


def _ask_while_blocked(address: tuple[str, int]) -> list[int]:
    """From another thread: the worker's loop, which is the test's as well, is blocked. For about two seconds."""

    async def ask_often() -> list[int]:
        answers = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while True:
                    answers.append((await ask(address, "/livez")).status)
                    await asyncio.sleep(0.03)
        return answers

    return asyncio.run(ask_often())


async def test_a_worker_that_drains_is_alive_but_not_ready(
    source: RedisSource, settings: Settings, queue: Queue, client: ArqRedis
) -> None:
    async with healthy(source, settings, shutdown_seconds=20) as (worker, address):
        await until(address, "/readyz", 200)
        job = await queue.submit("waits", {})
        await event_of(client, job.id, "log")
        worker.stop()
        answer = await ask(address, "/readyz")
        assert (answer.status, answer.said) == (503, "shutting down")
        assert (await ask(address, "/livez")).status == 200
        await queue.cancel(job.id)


async def test_a_full_worker_of_many_queues_still_asks_redis(
    source: RedisSource, settings: Settings, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be called ready, or not, without knowing."""
    asked = asyncio.Event()

    async def noted(*args: Any, **options: Any) -> tuple[list[ClaimedJob], float | None]:
        if options["slots"] == 0:
            asked.set()
        return await claim(*args, **options)

    monkeypatch.setattr(jobstream_workers.worker, "claim", noted)
    async with healthy(source, settings, max_jobs=1, queues="default,low", poll_seconds=0.1) as (_, address):
        job = await queue.submit("waits", {})
        await event_of(queue.client, job.id, "log")
        async with asyncio.timeout(10):
            await asked.wait()
        assert (await ask(address, "/readyz")).status == 200
        await queue.cancel(job.id)


async def test_a_frozen_redis_makes_the_worker_unready_and_leaves_it_alive(
    real_source: UrlSource, redis_server: ChildRedis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "READY_SECONDS", 1)
    monkeypatch.setattr(health, "ILL_SECONDS", 2)
    impatient = UrlSource(redis_server.url, kind="child", timeout=0.3, connect_timeout=0.3)
    assert redis_server.pid is not None
    async with healthy(impatient, settings, poll_seconds=0.1) as (_, address):
        await until(address, "/readyz", 200)
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            assert "Redis was not reached" in (await until(address, "/readyz", 503)).said
            await asyncio.sleep(4)  # longer than a claim loop may be silent
            assert (await ask(address, "/livez")).status == 200
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        await until(address, "/readyz", 200)


class HalfDeaf(UrlSource):
    """Its clients know a wrong address, as after a move of Redis; new ones for a thread know the right one."""

    def client(self) -> ArqRedis:
        return UrlSource("unix:///nowhere/redis.sock").client()


async def test_a_deaf_worker_is_dead_although_its_loops_turn(
    redis_server: ChildRedis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "READY_SECONDS", 1)
    monkeypatch.setattr(health, "ILL_SECONDS", 2)
    address = ("127.0.0.1", free_port())
    worker = Worker(HalfDeaf(redis_server.url), TASKS, settings(worker_port=address[1], poll_seconds=0.1))
    running = asyncio.create_task(worker.async_run())
    try:
        assert "although Redis answers" in (await until(address, "/livez", 503)).said
    finally:
        running.cancel()
        await asyncio.wait([running])
        await worker.close()
