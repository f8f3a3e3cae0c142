"""Both clients against a real service: behind a proxy that makes trouble, and an API that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobstream.client import (
    Event,
    Gone,
    JobCancelled,
    JobFailed,
    NotFound,
    Rejected,
    StillRunning,
    SyncClient,
)
from jobstream.embedded import ChildRedis
from jobstream.guard import GuardedProcess
from jobstream.job import JobStatus
from tests.acceptance.service import HEARTBEAT_SECONDS, Service
from tests.acceptance.wire import Puppet
from tests.clients import AnyHandle, Connect, connect
from tests.proxy import NOTICED, End, Fate, Proxy, harmless, trouble

__all__ = ["connect"]

QUICK = 0.05
"""Seconds: these tests do not wait for as long as the service would like."""


class Article(BaseModel):
    name: str
    count: int


class Order(BaseModel):
    articles: list[Article]


async def collect(handle: AnyHandle, into: list[Event], came: asyncio.Event | None = None) -> None:
    async for event in handle.events():
        into.append(event)
        if came is not None:
            came.set()


def durable(events: list[Event]) -> list[str]:
    """The ids of what has one of its own. A snapshot's is that of the place before what follows it."""
    return [event.id for event in events if event.event in ("status", "log", "chunk", "done")]


def said(events: list[Event]) -> list[object]:
    return [event.data["message"] for event in events if event.event == "log" and isinstance(event.data, dict)]


async def the_log(connect: Connect, url: str, job_id: str) -> list[str]:
    """What one undisturbed stream tells of a job that is done."""
    events: list[Event] = []
    async with connect(url) as client:
        await collect(client.job(job_id), events)
    return durable(events)


async def test_a_job_from_submit_to_its_typed_result(connect: Connect, service: Service) -> None:
    async with connect(service.url) as client:
        handle = await client.submit("order", {"articles": [{"name": "pen", "count": 2}]}, tags=["client"])
        assert await handle.result(20, type=Order) == Order(articles=[Article(name="pen", count=2)])
        assert (await handle.get()).status == JobStatus.SUCCEEDED
        assert (await client.job(handle.id).wait(20)).done
        assert handle.id in [job.id async for job in client.jobs(tag="client", limit=5)]
        assert "order" in [task.name for task in await client.tasks()]


async def test_a_batch_gives_a_handle_for_each_of_its_jobs(connect: Connect, service: Service) -> None:
    async with connect(service.url) as client:
        order = Order(articles=[Article(name="pen", count=2)])
        handles = await client.submit_batch(
            [{"task": "echo", "input": {"value": 1}}, {"task": "order", "input": order}]
        )
        assert await handles[0].result(20) == 1
        assert await handles[1].result(20, type=Order) == order
        with pytest.raises(Rejected) as refused:
            await client.submit_batch([{"task": "echo"}, {"task": "order", "input": {"articles": []}}])
        assert [error.pointer for error in refused.value.problem.errors] == ["/1/input/articles"]


async def test_every_end_has_its_error(connect: Connect, service: Service, puppet: Puppet) -> None:
    async with connect(service.url) as client:
        with pytest.raises(JobFailed, match="No, thank you"):
            await (await client.submit("refuse")).result(20)
        hanging = await client.submit("hang-loop")
        with pytest.raises(StillRunning):
            await hanging.result(0.1)
        await hanging.cancel()
        with pytest.raises(JobCancelled):
            await hanging.result(20)
        await hanging.purge()
        with pytest.raises(Gone):
            await hanging.get()
        with pytest.raises(Gone):
            await collect(hanging, [])
        with pytest.raises(NotFound):
            await client.job("01JD0000000000000000000000").result()
        with pytest.raises(Rejected, match="/articles"):
            await client.submit("order", {})


async def test_a_job_that_is_run_again_has_another_end(connect: Connect, service: Service) -> None:
    async with connect(service.url) as client:
        handle = await client.submit("refuse")
        before: list[Event] = []
        await collect(handle, before)
        assert not (await handle.retry()).done
        after = [event async for event in handle.events(before[-1].id)]
        assert [event.event for event in after].count("done") == 1
        assert not set(durable(before)) & set(durable(after))


@pytest.mark.parametrize("seed", range(3))
async def test_what_arrives_over_a_bad_line_is_the_log(
    connect: Connect, service: Service, puppet: Puppet, seed: int
) -> None:
    """Cuts of every kind that is noticed, within events and between them, while the job talks."""
    events: list[Event] = []
    with Proxy(service.port, seed=seed) as proxy:
        async with connect(proxy.url, max_pause=QUICK, patience=20) as client:
            handle = await client.submit("puppet", puppet.input)
            proxy.fates = trouble(after=2500)
            proxy.cut()
            reading = asyncio.create_task(collect(handle, events))
            for number in range(200):
                puppet.do(f"log {number} " + "x" * (number % 7 * 50), f"chunk {number}", f"progress {number} 200 half")
            await asyncio.to_thread(proxy.wait_for, lambda proxy: proxy.happened.total() >= 15)
            proxy.fates = harmless
            proxy.cut()
            puppet.do("end x")
            await reading
    assert durable(events) == await the_log(connect, service.url, handle.id)
    assert [event.event for event in events].count("done") == 1
    assert {End.RESET, End.CLOSE, End.HALF_DOWN} <= set(proxy.happened) <= set(NOTICED)


async def test_a_line_that_goes_dead_without_a_word_is_noticed(
    connect: Connect, service: Service, puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstream.client.stream.SILENCE", 5 * HEARTBEAT_SECONDS)
    events: list[Event] = []
    with Proxy(service.port) as proxy:
        async with connect(proxy.url, max_pause=QUICK) as client:
            handle = await client.submit("puppet", puppet.input)
            proxy.fates = lambda chance: Fate(End.SWALLOW_DOWN, after=chance.randint(0, 2000))
            proxy.cut()
            reading = asyncio.create_task(collect(handle, events))
            puppet.do(*(f"log {number}" for number in range(50)))
            await asyncio.to_thread(proxy.wait_for, lambda proxy: proxy.happened[End.SWALLOW_DOWN] >= 2)
            proxy.fates = harmless
            puppet.do("end x")
            await reading
    assert durable(events) == await the_log(connect, service.url, handle.id)
    assert said(events) == [str(number) for number in range(50)]


async def test_a_result_comes_over_a_bad_line(connect: Connect, service: Service, puppet: Puppet) -> None:
    with Proxy(service.port, seed=5) as proxy:
        async with connect(proxy.url, max_pause=QUICK, patience=20) as client:
            handle = await client.submit("puppet", puppet.input)
            proxy.fates = trouble(after=1500, calm=0.2)
            proxy.cut()
            waiting = asyncio.create_task(handle.result(60, type=str))
            await asyncio.to_thread(proxy.wait_for, lambda proxy: proxy.happened.total() >= 5)
            puppet.do("end over")
            assert await waiting == "over"


@pytest.fixture(scope="module")
def lonely(service_redis: ChildRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker, and no API yet."""
    service = Service(tmp_path_factory.mktemp("client"), redis_url=service_redis.url)
    service.start_worker()
    try:
        yield service
    finally:
        service.close()


def started(lonely: Service) -> GuardedProcess:
    api = lonely.start_api()
    lonely.wait_until(lambda: lonely.knows("puppet"), "the worker has not announced its tasks")
    return api


async def test_killed_and_drained_apis_are_survived(connect: Connect, lonely: Service, puppet: Puppet) -> None:
    events: list[Event] = []
    api = await asyncio.to_thread(started, lonely)
    async with connect(lonely.url, max_pause=QUICK) as client:
        handle = await client.submit("puppet", puppet.input)
        result = asyncio.create_task(handle.result(60))
        came = asyncio.Event()
        reading = asyncio.create_task(collect(handle, events, came))
        for number, end in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
            puppet.do(f"log {number} before")
            while f"{number} before" not in said(events):
                came.clear()
                await came.wait()
            os.kill(api.pid, end)
            await asyncio.to_thread(api.wait, 10)
            puppet.do(f"log {number} meanwhile")
            api = await asyncio.to_thread(started, lonely)
        puppet.do("end over")
        await reading
        assert await result == "over"
    assert durable(events) == await the_log(connect, lonely.url, handle.id)
    assert said(events) == [f"{number} {when}" for number in range(3) for when in ("before", "meanwhile")]
    assert [event.event for event in events].count("snapshot") == 1
    await asyncio.to_thread(api.stop, 10)


async def test_leaving_a_stream_is_noticed_by_the_service(connect: Connect, service: Service, puppet: Puppet) -> None:
    with Proxy(service.port) as proxy:
        async with connect(service.url) as direct, connect(proxy.url) as client:
            handle = client.job((await direct.submit("puppet", puppet.input)).id)
            async with aclosing(handle.events()) as events:
                await anext(events)
                assert proxy.open == 1
            await asyncio.to_thread(proxy.wait_for, lambda proxy: proxy.open == 0)


def test_jobstream_watch_goes_on_after_a_cut(service: Service, puppet: Puppet) -> None:
    with SyncClient(service.url) as client, Proxy(service.port) as proxy:
        job = client.submit("puppet", puppet.input)
        puppet.do("log before")
        argv = [sys.executable, "-m", "jobstream_cli", "--url", proxy.url, "watch", "--json", job.id]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            lines = []
            for line in watching.stdout:
                lines.append(json.loads(line))
                if lines[-1]["event"] == "log" and proxy.happened.total() == 0:
                    proxy.cut()
                    puppet.do("log meanwhile", "end x")
        assert watching.wait(10) == 0
        assert proxy.happened.total() == 1
        told = [line["id"] for line in lines if line["event"] not in ("snapshot", "progress")]
        assert told == durable(list(job.events()))


def test_ctrl_c_ends_a_script(service: Service, tmp_path: Path) -> None:
    script = f"""
from jobstream.client import SyncClient
with SyncClient({service.url!r}) as client:
    job = client.submit("hang-loop")
    print(job.id, flush=True)
    job.result(60)
"""
    with Proxy(service.port) as proxy:
        argv = [sys.executable, "-c", script.replace(service.url, proxy.url)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            job_id = running.stdout.readline().strip()
            running.send_signal(signal.SIGINT)
            _, complaint = running.communicate(timeout=10)
        proxy.wait_for(lambda proxy: proxy.open == 0)
    assert complaint.rstrip().endswith("KeyboardInterrupt")
    with SyncClient(service.url) as client:
        assert not client.job(job_id).get().done  # it goes on
        client.job(job_id).cancel()
