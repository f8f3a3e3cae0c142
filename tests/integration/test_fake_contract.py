"""fakeredis does what a real server does, as far as jobstream and arq lean on it: the same cases on both.

Where fakeredis is known to differ, nothing here leans on it: no out-of-memory or MISCONF, no expiry events, no WATCH of
a key that expires, no restart, other texts for Lua errors (and no string in the `err` of `redis.pcall`),
`cjson.encode({})` is `[]` instead of `{}`, CLIENT LIST does not tell the last command, and a script that creates a
global spoils all later ones. Tests of those need `real_source`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, cast

import pytest
from arq import func
from arq.connections import ArqRedis, log_redis_info
from arq.jobs import Job, JobStatus
from arq.worker import Worker
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from jobstream.errors import ConfigurationError
from jobstream.fake import FakeSource
from jobstream.redis import RedisSource

pytestmark = pytest.mark.timeout(30)

T = TypeVar("T")


def answer(call: Awaitable[T] | T) -> Awaitable[T]:
    """redis-py types its asyncio calls as the blocking ones'."""
    return cast(Awaitable[T], call)


async def run(client: Redis, script: str, *arguments: str | int | float) -> Any:
    return await answer(client.eval(script, 0, *cast(tuple[str, ...], arguments)))


async def clients(client: Redis, kind: str) -> int:
    return int((await client.info("clients"))[f"{kind}_clients"])


async def until(look: Callable[[], Awaitable[int]], expected: int) -> None:
    """Look until it is so: a real server notices an expiry, or the end of a connection, a moment later."""
    async with asyncio.timeout(10):
        while await look() != expected:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.005)


@pytest.fixture
async def listener(source: RedisSource) -> AsyncIterator[PubSub]:
    client = source.subscriber()
    pubsub = client.pubsub()
    yield pubsub
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    await client.aclose()


async def heard(pubsub: PubSub) -> tuple[object, ...]:
    message = await pubsub.get_message(timeout=10)
    assert message is not None
    return message["type"], message["channel"], message["data"]


# --- what our scripts are made of ---------------------------------------------------------------------------------


async def test_hashes_count_and_keep_bytes(client: ArqRedis) -> None:
    assert await run(client, "return redis.call('HINCRBY', 'h', 'version', 1)") == 1
    assert await run(client, "return redis.call('HINCRBY', 'h', 'version', 1)") == 2
    assert await run(client, "return redis.call('HSET', 'h', 'version', 9, 'a', ARGV[1])", "\0é") == 1
    assert await run(client, "return redis.call('HGETALL', 'h')") == [b"version", b"9", b"a", "\0é".encode()]
    assert await run(client, "return redis.call('HMGET', 'h', 'a', 'none')") == ["\0é".encode(), None]
    assert await run(client, "return tostring(redis.call('HGET', 'h', 'none'))") == b"false"
    assert await run(client, "return redis.call('HDEL', 'h', 'a', 'none')") == 1
    assert await answer(client.hgetall("h")) == {b"version": b"9"}


async def test_a_script_reads_a_hash_as_pairs(client: ArqRedis) -> None:
    await answer(client.hset("h", mapping={"a": "1"}))
    assert await run(client, "local h = redis.call('HGETALL', 'h') return {#h, h[1], h[2]}") == [2, b"a", b"1"]


async def test_zadd_xx_moves_only_what_is_there(client: ArqRedis) -> None:
    await client.zadd("z", {"here": 1})
    assert await run(client, "return redis.call('ZADD', 'z', 'XX', ARGV[1], 'here')", "1763712000123") == 0
    assert await run(client, "return redis.call('ZADD', 'z', 'XX', 5, 'away')") == 0
    assert await run(client, "return redis.call('ZADD', 'z', 'XX', 'CH', 7, 'here')") == 1
    assert await client.zrange("z", 0, -1, withscores=True) == [(b"here", 7)]


async def test_zsets_are_read_by_score_with_exact_milliseconds(client: ArqRedis) -> None:
    await client.zadd("z", {"a": 1, "b": 2, "c": 3, "late": 1763712000123})
    due = "return redis.call('ZRANGEBYSCORE', 'z', '-inf', 3, 'LIMIT', 1, 5)"
    assert await run(client, due) == [b"b", b"c"]
    later = "return redis.call('ZRANGEBYSCORE', 'z', '(3', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)"
    assert await run(client, later) == [b"late", b"1763712000123"]
    assert await run(client, "return redis.call('ZSCORE', 'z', 'late')") == b"1763712000123"
    assert await run(client, "return tostring(redis.call('ZSCORE', 'z', 'none'))") == b"false"
    assert await run(client, "return redis.call('ZREMRANGEBYSCORE', 'z', '-inf', 2)") == 2
    assert await client.zrevrangebyscore("z", "+inf", "-inf", start=0, num=1) == [b"late"]
    assert await client.zcard("z") == 2
    assert await client.zcount("z", "-inf", 3) == 1


async def test_streams_take_our_ids_and_only_growing_ones(client: ArqRedis) -> None:
    add = "return redis.call('XADD', 's', 'MAXLEN', '~', 5000, ARGV[1] .. '-0', 'e', 'log', 'd', ARGV[2])"
    for version in (1, 2, 5):
        assert await run(client, add, version, f"data {version}") == f"{version}-0".encode()
    with pytest.raises(exceptions.ResponseError, match="equal or smaller"):
        await run(client, add, 5, "again")
    entries = [(f"{n}-0".encode(), {b"e": b"log", b"d": f"data {n}".encode()}) for n in (1, 2, 5)]
    assert await client.xrange("s") == entries
    assert await client.xrange("s", min="(1-0", count=1) == entries[1:2]
    assert await client.xrevrange("s", count=1) == entries[2:]
    assert await client.xlen("s") == 3


async def test_a_capped_stream_keeps_the_latest_and_not_much_more(client: ArqRedis) -> None:
    async with client.pipeline(transaction=False) as pipe:
        for version in range(1, 1001):
            pipe.xadd("s", {"n": version}, id=f"{version}-0", maxlen=100, approximate=True)
        await pipe.execute()
    kept = await client.xrange("s")
    assert 100 <= len(kept) <= 200  # real Redis drops whole nodes of about 100 entries
    assert kept[-1][0] == b"1000-0"
    assert int(kept[0][0].split(b"-")[0]) == 1001 - len(kept)


async def test_a_script_tells_redis_time_in_milliseconds(client: ArqRedis) -> None:
    script = "local t = redis.call('TIME') return string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))"
    assert abs(int(await run(client, script)) / 1000 - time.time()) < 5


async def test_keys_expire_at_the_millisecond(client: ArqRedis) -> None:
    await run(client, "redis.call('SET', 'a', '1', 'PX', ARGV[1])", 60_000)
    await run(client, "redis.call('SET', 'b', '1') redis.call('PEXPIRE', 'b', '60000')")
    await client.psetex("c", 60_000, b"1")
    await client.setex("d", 60, b"1")
    await answer(client.hset("e", mapping={"a": "1"}))
    at = "local t = redis.call('TIME') redis.call('PEXPIREAT', 'e', string.format('%.0f', t[1] * 1000 + 60000))"
    await run(client, at)
    for key in "abcd":
        assert 59_000 < await client.pttl(key) <= 60_000, key
    assert 58_000 < await client.pttl("e") <= 60_000
    assert await run(client, "return {redis.call('PTTL', 'none'), redis.call('PTTL', 'a') > 0}") == [-2, 1]


@pytest.mark.parametrize("command", ["PSETEX key 50 1", "SET key 1 PX 50"])
async def test_a_short_life_begins_before_it_ends(client: ArqRedis, command: str) -> None:
    await cast("Any", client).execute_command(*command.split())
    assert 0 < await client.pttl("key") <= 50
    await until(lambda: client.exists("key"), 0)


async def test_every_way_to_set_a_life_means_the_same(client: ArqRedis) -> None:
    async with client.pipeline() as pipe:
        pipe.set("a", "1", px=60_000)
        pipe.psetex("b", 60_000, "1")
        pipe.setex("c", 60, "1")
        pipe.set("d", "1", ex=60)
        for key in "abcd":
            pipe.pttl(key)
        left = (await pipe.execute())[4:]
    assert max(left) - min(left) < 50, left


async def test_an_overwritten_key_loses_its_expiry(client: ArqRedis) -> None:
    await client.psetex("key", 60_000, b"1")
    await client.set("key", b"2")
    assert await client.pttl("key") == -1


async def test_a_script_publishes_what_subscribers_get_as_bytes(client: ArqRedis, listener: PubSub) -> None:
    await listener.subscribe("events:1", "events:2")
    assert await heard(listener) == ("subscribe", b"events:1", 1)
    assert await heard(listener) == ("subscribe", b"events:2", 2)
    assert await run(client, "return redis.call('PUBLISH', 'events:2', ARGV[1])", "7 chunk é\0") == 1
    assert await heard(listener) == ("message", b"events:2", "7 chunk é\0".encode())
    assert await run(client, "return redis.call('PUBLISH', 'nobody', 'x')") == 0
    assert await listener.get_message(timeout=0.01) is None


async def test_a_subscriber_leaves_by_unsubscribing_or_by_closing(
    source: RedisSource, client: ArqRedis, listener: PubSub
) -> None:
    await listener.subscribe("a", "b")
    assert {await heard(listener), await heard(listener)} == {("subscribe", b"a", 1), ("subscribe", b"b", 2)}
    await listener.unsubscribe("a")
    assert await heard(listener) == ("unsubscribe", b"a", 1)
    assert await client.publish("a", b"x") == 0
    assert await client.publish("b", b"x") == 1
    assert await heard(listener) == ("message", b"b", b"x")
    await listener.aclose()  # type: ignore[no-untyped-call]
    await until(lambda: client.publish("b", b"x"), 0)


async def test_a_pattern_subscription_gets_the_channels_name(client: ArqRedis, listener: PubSub) -> None:
    await listener.psubscribe("events:*")
    assert (await heard(listener))[0] == "psubscribe"
    await client.publish("events:42", b"x")
    assert await heard(listener) == ("pmessage", b"events:42", b"x")


async def test_an_unknown_script_is_loaded_and_run(client: ArqRedis) -> None:
    script = client.register_script("return {KEYS[1], ARGV[1], #ARGV}")
    with pytest.raises(exceptions.NoScriptError):
        await answer(client.evalsha(script.sha, 0))
    assert await script(keys=["k"], args=["a", 2]) == [b"k", b"a", 2]
    assert await cast("Any", client.evalsha(script.sha, 1, "k", "a")) == [b"k", b"a", 1]
    await client.script_flush()
    with pytest.raises(exceptions.NoScriptError):
        await answer(client.evalsha(script.sha, 0))
    assert await run(client, "return 1") == 1


async def test_scripts_go_into_a_pipeline_with_their_errors_in_place(client: ArqRedis) -> None:
    script = client.register_script("return redis.call('INCR', KEYS[1])")
    async with client.pipeline(transaction=False) as pipe:
        pipe.set("word", "x")
        await script(keys=["n"], client=pipe)
        pipe.incr("word")
        pipe.get("n")
        replies = await pipe.execute(raise_on_error=False)
    assert (replies[0], replies[1], replies[3]) == (True, 1, b"1")
    assert isinstance(replies[2], exceptions.ResponseError)


async def test_a_script_is_one_step_for_everybody_else(client: ArqRedis) -> None:
    take = client.register_script(
        "local n = tonumber(redis.call('GET', 'n') or '0') redis.call('SET', 'n', n + 1) return n"
    )
    assert sorted(await asyncio.gather(*(take() for _ in range(50)))) == list(range(50))


async def test_lua_values_become_what_the_callers_expect(client: ArqRedis) -> None:
    assert await run(client, "return {1, 2.9, 'x', true, false, 'after'}") == [1, 2, b"x", 1, None, b"after"]
    assert await run(client, "return {1, nil, 3}") == [1]
    assert await run(client, "return {}") == []
    assert await run(client, "return nil") is None
    assert await run(client, "return {'done', {'a', 'b'}}") == [b"done", [b"a", b"b"]]
    assert await run(client, "return string.format('%.0f', 1763712000123)") == b"1763712000123"
    assert await run(client, "return unpack({1, 2}, 2)") == 2
    words = "local w = {} for s in string.gmatch(ARGV[1], '[^ ]+') do w[#w + 1] = s end return w"
    assert await run(client, words, "a bb c") == [b"a", b"bb", b"c"]


async def test_json_is_read_and_written_in_lua(client: ArqRedis) -> None:
    assert await run(client, "return cjson.decode(ARGV[1]).list[2]", '{"list": ["a", "b"]}') == b"b"
    assert await run(client, "return cjson.encode({'a', 1})") == b'["a",1]'
    assert await run(client, "return tostring(cjson.decode('null') == cjson.null)") == b"true"


async def test_an_error_in_a_script_is_an_error_and_the_next_one_runs(client: ArqRedis) -> None:
    await client.set("word", "x")
    with pytest.raises(exceptions.ResponseError):
        await run(client, "return redis.call('INCR', 'word')")
    with pytest.raises(exceptions.ResponseError, match="mine"):
        await run(client, "return redis.error_reply('MINE this is mine')")
    assert await run(client, "return redis.pcall('INCR', 'word').err and 'caught'") == b"caught"
    assert await run(client, "return redis.status_reply('FINE')") == b"FINE"


# --- what redis-py and arq are made of ----------------------------------------------------------------------------


async def test_a_watched_key_that_changes_stops_the_transaction(client: ArqRedis) -> None:
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        assert await answer(pipe.get("key")) is None
        await client.set("key", "other")
        cast("Any", pipe).multi()
        pipe.set("key", "mine")
        with pytest.raises(exceptions.WatchError):
            await pipe.execute()
    assert await client.get("key") == b"other"


async def test_a_transaction_runs_whole(client: ArqRedis) -> None:
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        cast("Any", pipe).multi()
        pipe.set("key", "mine")
        pipe.get("key")
        pipe.zadd("z", {"a": 1})
        assert await pipe.execute() == [True, b"mine", 1]


async def test_info_tells_what_clients_ask_for(client: ArqRedis) -> None:
    await client.set("key", "1", ex=60)
    whole = await client.info()
    assert whole["redis_version"].split(".")[0].isdigit()
    assert whole["loading"] == 0
    assert whole["db0"]["keys"] == 1
    assert whole["db0"]["expires"] == 1
    assert (await client.info("Clients"))["connected_clients"] >= 1
    memory = await client.info("memory")
    assert memory["used_memory"] >= 0
    assert memory["maxmemory"] >= 0
    assert memory["maxmemory_policy"] == "noeviction"
    assert "redis_version" not in memory
    replication = await client.info("replication")
    assert replication["role"] == "master"
    assert len(replication["master_replid"]) == 40
    assert len((await client.info("server"))["run_id"]) == 40


async def test_configuration_is_read_by_pattern_and_as_set(client: ArqRedis) -> None:
    assert await client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert set(await client.config_get("maxmemory*")) >= {"maxmemory", "maxmemory-policy"}
    assert await client.config_get("no-such-setting") == {}
    before = await client.config_get("timeout")
    await client.config_set("timeout", 1000)
    assert await client.config_get("timeout", cast("Any", "save")) == {"timeout": "1000", "save": ""}
    await client.config_set("timeout", before["timeout"])


async def test_scan_finds_keys_by_pattern(client: ArqRedis) -> None:
    await client.mset({"arq:job:1": "", "arq:job:2": "", "other": ""})
    assert sorted([key async for key in client.scan_iter("arq:job:*")]) == [b"arq:job:1", b"arq:job:2"]


async def test_a_cancelled_wait_does_not_spoil_the_connection(source: RedisSource, client: ArqRedis) -> None:
    other = source.subscriber()  # a client that may wait: the usual one's commands share a connection
    waiting = asyncio.create_task(cast("Any", other.blpop(["list"])))
    await until(lambda: clients(client, "blocked"), 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: clients(client, "blocked"), 0)
    await answer(other.rpush("list", "kept"))
    assert await cast("Any", other.lpop("list")) == b"kept"
    await other.aclose()


async def test_a_closed_client_leaves_the_server(source: RedisSource, client: ArqRedis) -> None:
    before = await clients(client, "connected")
    other = source.client()
    await answer(other.ping())
    assert await clients(client, "connected") == before + 1
    await other.aclose()
    await until(lambda: clients(client, "connected"), before)


async def test_a_thread_shares_the_data_and_wakes_subscribers(
    source: RedisSource, client: ArqRedis, listener: PubSub
) -> None:
    await listener.subscribe("wake")
    assert await heard(listener) == ("subscribe", b"wake", 1)

    def work() -> None:
        with source.sync_client() as blocking:
            blocking.register_script("redis.call('SET', KEYS[1], ARGV[1], 'PX', 60000)")(keys=["lease"], args=["me"])
            blocking.publish("wake", b"from a thread")

    thread = threading.Thread(target=work)
    thread.start()
    assert await heard(listener) == ("message", b"wake", b"from a thread")
    thread.join()
    assert await client.get("lease") == b"me"


async def test_two_event_loops_share_the_data(source: RedisSource, client: ArqRedis) -> None:
    async def elsewhere() -> None:
        other = source.client()
        await other.set("key", "from another loop")
        await other.aclose()

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert await client.get("key") == b"from another loop"


async def test_a_stock_arq_job_is_queued_run_and_asked_about(client: ArqRedis) -> None:
    async def double(_: dict[Any, Any], number: int) -> int:
        return number * 2

    job = await client.enqueue_job("double", 21, _job_id="one")
    assert job is not None
    assert await client.enqueue_job("double", 21, _job_id="one") is None
    assert await job.status() is JobStatus.queued
    assert await Job("none", client).status() is JobStatus.not_found
    assert [queued.job_id for queued in await client.queued_jobs()] == ["one"]
    worker = Worker(
        [func(cast("Any", double), name="double")], redis_pool=client, burst=True, poll_delay=0.01, handle_signals=False
    )
    await worker.main()  # reads INFO at its start
    assert worker.jobs_complete == 1
    assert await job.status() is JobStatus.complete
    assert await job.result(timeout=10) == 42


async def test_arq_can_log_what_it_is_connected_to(client: ArqRedis) -> None:
    lines: list[str] = []
    await log_redis_info(cast(Any, client), lines.append)
    assert len(lines) == 1
    assert "?" not in lines[0]


# --- the sources --------------------------------------------------------------------------------------------------


async def test_replies_are_bytes_for_every_kind_of_client(source: RedisSource) -> None:
    client, subscriber = source.client(), source.subscriber()
    with source.sync_client() as blocking:
        await client.set("key", "1")
        assert (await client.get("key"), await subscriber.get("key"), blocking.get("key")) == (b"1", b"1", b"1")
    await client.aclose()
    await subscriber.aclose()


def test_a_source_says_what_it_is(source: RedisSource) -> None:
    assert source.kind in source.describe()


async def test_each_fake_source_is_a_server_of_its_own() -> None:
    one, other = FakeSource().sync_client(), FakeSource().sync_client()
    with one, other:
        one.set("key", "1")
        assert other.get("key") is None


def test_without_fakeredis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jobstream.fake_engine", raising=False)
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    with pytest.raises(ConfigurationError, match=r"jobstream\[dev-redis\]"):
        FakeSource()
