"""The shared link: replies go to whoever asked, whatever is cancelled, lost, refused or slow on the way."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import exceptions

from jobstream.embedded import ChildRedis
from jobstream.pipelined import PipelinedRedis
from jobstream.redis import UrlSource


@pytest.fixture
async def client(real_source: UrlSource) -> AsyncIterator[PipelinedRedis]:
    client = real_source.client()
    assert isinstance(client, PipelinedRedis)
    yield client
    await client.aclose()


async def connections(client: PipelinedRedis) -> int:
    return len([one for one in await client.client_list() if one["cmd"] != "subscribe"])


async def test_many_calls_at_once_share_one_connection_and_each_gets_its_reply(client: PipelinedRedis) -> None:
    assert await asyncio.gather(*(client.echo(f"{n}") for n in range(1000))) == [b"%d" % n for n in range(1000)]
    assert await connections(client) == 1


async def test_redis_begins_before_a_long_turn_of_the_loop_ends(client: PipelinedRedis, real_source: UrlSource) -> None:
    await client.ping()
    calls = [client.execute_command("RPUSH", "list", number) for number in range(64)]
    for call in calls:
        call.send(None)  # as the loop would step their tasks, one after the other in one turn
    with real_source.sync_client() as other:
        assert other.blpop(["list"], timeout=5) == (b"list", b"0")  # while this turn goes on
    for call in calls:
        call.close()


async def test_a_cancelled_call_does_not_shift_the_replies(client: PipelinedRedis) -> None:
    calls = [asyncio.ensure_future(client.echo(f"{n}")) for n in range(100)]
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    for n, reply in enumerate(done):
        assert isinstance(reply, asyncio.CancelledError) if n % 3 == 0 else reply == b"%d" % n


async def test_an_error_reply_is_raised_to_its_caller_only(client: PipelinedRedis) -> None:
    await client.set("text", "x")
    before, wrong, after = await asyncio.gather(
        client.get("text"), client.incr("text"), client.get("text"), return_exceptions=True
    )
    assert (before, after) == (b"x", b"x")
    assert isinstance(wrong, exceptions.ResponseError)


async def test_what_cannot_be_sent_is_refused_before_it_is_sent(client: PipelinedRedis) -> None:
    with pytest.raises(TypeError):
        await client.set("key", object())  # type: ignore[arg-type]
    assert await client.echo("still in step") == b"still in step"


async def test_a_lost_connection_is_made_again_and_the_call_repeated(client: PipelinedRedis) -> None:
    await client.set("key", "value")
    own = (await client.client_list())[0]["id"]
    async with client.pipeline() as other:  # on a connection of its own
        other.client_kill_filter(_id=own)
        await other.execute()
    assert await client.get("key") == b"value"


async def test_blocking_commands_hold_nobody_up(client: PipelinedRedis) -> None:
    waiting: asyncio.Task[Any] = asyncio.create_task(client.blpop(["list"], timeout=30))  # type: ignore[arg-type]
    while not any(one["cmd"] == "blpop" for one in await client.client_list()):
        pass
    await client.rpush("list", "x")  # type: ignore[misc]
    assert await waiting == (b"list", b"x")


async def test_a_frozen_server_is_a_timeout_for_all_that_wait(redis_server: ChildRedis) -> None:
    client = UrlSource(redis_server.url, timeout=0.2).client()
    [pid] = {(await client.info("server"))["process_id"]}
    os.kill(pid, signal.SIGSTOP)
    try:
        replies = await asyncio.gather(*(client.get("key") for _ in range(50)), return_exceptions=True)
        assert all(isinstance(reply, exceptions.TimeoutError | exceptions.ConnectionError) for reply in replies)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await client.get("key") is None
    await client.aclose()


async def test_large_values_wait_for_the_socket_and_arrive(client: PipelinedRedis) -> None:
    big = os.urandom(1 << 20)
    await asyncio.gather(*(client.set(f"big{n}", big) for n in range(20)))
    assert await asyncio.gather(*(client.get(f"big{n}") for n in range(20))) == [big] * 20


async def test_a_closed_client_answers_whoever_waits(real_source: UrlSource) -> None:
    client = real_source.client()
    await client.ping()
    call = asyncio.ensure_future(client.ping())
    await asyncio.sleep(0)  # the call is under way
    await client.aclose()
    with pytest.raises(exceptions.ConnectionError):
        await call
