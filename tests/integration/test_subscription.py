"""A subscription hears what is published, in order and in turns, and says why it has ended."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis
from redis import exceptions

from jobstream.redis import RedisSource, UrlSource
from jobstream.subscription import SLICE, Subscription

pytestmark = pytest.mark.timeout(60)


class Heard:
    """What a subscription has heard."""

    def __init__(self) -> None:
        self.all: list[tuple[bytes, bytes, bytes]] = []
        self.turn = asyncio.Event()

    def __call__(self, kind: bytes, channel: bytes, data: bytes) -> None:
        self.all.append((kind, channel, data))
        self.turn.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.all) < count:
                self.turn.clear()
                await self.turn.wait()

    @property
    def messages(self) -> list[bytes]:
        return [data for kind, _, data in self.all if kind == b"message"]


@pytest.fixture
async def heard() -> Heard:
    return Heard()


@pytest.fixture
async def subscription(source: RedisSource, heard: Heard) -> AsyncIterator[Subscription]:
    subscription = await source.subscription(heard)
    yield subscription
    await subscription.aclose()


@pytest.fixture
async def real_subscription(real_source: UrlSource, heard: Heard) -> AsyncIterator[Subscription]:
    subscription = await real_source.subscription(heard)
    yield subscription
    await subscription.aclose()


async def test_what_is_published_on_its_channels_is_heard_until_they_are_given_up(
    client: ArqRedis, subscription: Subscription, heard: Heard
) -> None:
    await subscription.subscribe("one", "two")
    await heard.until(2)
    assert [(kind, channel) for kind, channel, _ in heard.all] == [(b"subscribe", b"one"), (b"subscribe", b"two")]
    await client.publish("one", b"\x00\r\n$1")
    await client.publish("three", "nobody's")
    await client.publish("two", "2")
    await heard.until(4)
    await subscription.unsubscribe("one")
    await heard.until(5)
    await client.publish("one", "late")
    await client.publish("two", "last")
    await heard.until(6)
    assert heard.messages == [b"\x00\r\n$1", b"2", b"last"]


async def test_a_ping_is_answered_with_and_without_channels(subscription: Subscription, heard: Heard) -> None:
    for _ in range(2):
        subscription.heard = False
        await subscription.ping()
        async with asyncio.timeout(20):
            while True:
                await asyncio.sleep(0.001)
                if subscription.heard:
                    break
        await subscription.subscribe("one")
        await heard.until(1)


async def test_a_burst_is_heard_in_order_and_others_have_their_turn(
    real_client: ArqRedis, real_subscription: Subscription, heard: Heard
) -> None:
    await real_subscription.subscribe("burst")
    await heard.until(1)
    turns: list[int] = []
    count = 50 * SLICE

    async def others() -> None:
        while len(heard.messages) < count:
            turns.append(len(heard.messages))
            await asyncio.sleep(0)

    async with real_client.pipeline(transaction=False) as pipe:
        for number in range(count):
            pipe.publish("burst", number)
        async with asyncio.TaskGroup() as group:
            group.create_task(pipe.execute())
            group.create_task(others())
    assert heard.messages == [str(number).encode() for number in range(count)]
    steps = [after - before for before, after in itertools.pairwise(turns)]
    assert max(steps) <= 2 * SLICE  # what was left of the last burst, and a slice of the next one


async def test_a_connection_that_is_killed_ends_it(
    real_client: ArqRedis, real_subscription: Subscription, heard: Heard
) -> None:
    await real_subscription.subscribe("one")
    await heard.until(1)
    await real_client.client_kill_filter(_type="pubsub")
    with pytest.raises(exceptions.ConnectionError):
        async with asyncio.timeout(20):
            await real_subscription.ended()


async def test_what_a_listener_raises_ends_it(real_client: ArqRedis, real_source: UrlSource) -> None:
    def hear(kind: bytes, channel: bytes, data: bytes) -> None:
        raise ValueError("not understood")

    subscription = await real_source.subscription(hear)
    await subscription.subscribe("one")
    with pytest.raises(ValueError, match="not understood"):
        async with asyncio.timeout(20):
            await subscription.ended()
    await subscription.aclose()


async def test_what_the_server_refuses_ends_it(real_client: ArqRedis, real_source: UrlSource, heard: Heard) -> None:
    subscription = await real_source.subscription(heard)
    await subscription.subscribe()  # no channel: a wrong number of arguments
    with pytest.raises(exceptions.ResponseError):
        async with asyncio.timeout(20):
            await subscription.ended()
    await subscription.aclose()
