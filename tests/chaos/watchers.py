"""Watchers that trust the service alone: they read streams from bare sockets, and come back with the last id."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from jobstream.events import DURABLE, JobEvent

SILENCE = 3.0
"""Seconds without a byte after which a watcher takes its line for dead; pings must come more often."""

PAUSE = 0.1
"""Seconds that a watcher waits at most before it comes back: the service's `retry:` would make the test long."""

COME_BACK = (1006, 1011, 1012, 1013)
"""Codes with which a WebSocket ends before its time: the line is gone or silent, the process or Redis is away."""

Format = Literal["text/event-stream", "application/x-ndjson"]
FORMATS: tuple[Format, ...] = ("text/event-stream", "application/x-ndjson")


class Told(NamedTuple):
    """An event as it came."""

    event: str
    id: str | None
    data: Any


class Broken(Exception):
    """The line was cut, or is silent."""


class Answer:
    """An HTTP answer whose body is read as it comes."""

    def __init__(self, reader: asyncio.StreamReader, status: int, *, chunked: bool) -> None:
        self.status = status
        self._reader = reader
        self._chunked = chunked

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises what asyncio's streams raise when it ends before its end."""
        if not self._chunked:
            return
        while size := int((await self._line()).rstrip(), 16):
            async with asyncio.timeout(SILENCE):
                yield (await self._reader.readexactly(size + 2))[:-2]
        await self._line()

    async def _line(self) -> bytes:
        async with asyncio.timeout(SILENCE):
            return await self._reader.readuntil(b"\r\n")


@asynccontextmanager
async def get(port: int, path: str, headers: dict[str, str]) -> AsyncIterator[Answer]:
    """GET it on a connection of its own. Raises Broken, also out of the block."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(SILENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            lines = [
                f"GET {path} HTTP/1.1",
                "Host: localhost",
                *(f"{name}: {value}" for name, value in headers.items()),
            ]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
        yield Answer(reader, int(head.split(b" ", 2)[1]), chunked=b"\r\ntransfer-encoding: chunked\r\n" in head)
    except (OSError, EOFError, TimeoutError) as error:
        raise Broken from error
    finally:
        if writer is not None:
            writer.close()


class Watcher:
    """Follows a stream until there is nothing more to follow; `told` is all that it was told, in order."""

    def __init__(self, port: int, path: str, format: Format, chance: random.Random) -> None:
        self.path = path
        self.told: list[Told] = []
        self.broken = 0
        """Streams that had begun and ended before their time."""
        self.changed = asyncio.Event()
        self._port = port
        self._format = format
        self._chance = chance
        self._last_id: str | None = None

    async def follow(self) -> None:
        """Returns when the service says that there is nothing more. Fails at any answer that ends an `EventSource`."""
        while True:
            try:
                if await self._listen():
                    return
            except Broken:
                pass
            await asyncio.sleep(self._chance.uniform(0, PAUSE))

    async def _listen(self) -> bool:
        headers = {"Accept": self._format} | ({"Last-Event-ID": self._last_id} if self._last_id else {})
        async with get(self._port, self.path, headers) as answer:
            if answer.status == 204:
                return True
            assert answer.status == 200, f"{self.path} answers {answer.status}"
            waiting = b""
            try:
                async for piece in answer.pieces():
                    *texts, waiting = (waiting + piece).split(b"\n\n" if self._format == FORMATS[0] else b"\n")
                    for text in texts:
                        self._hear(_event(text) if self._format == FORMATS[0] else _line(text))
            finally:
                self.broken += not (self.told and self.told[-1].event == "done")
            assert not waiting, "a stream ends within an event"
        return False

    def _hear(self, told: Told | None) -> None:
        if told is None:
            return
        self._last_id = told.id or self._last_id
        self.told.append(told)
        self.changed.set()


class SocketWatcher(Watcher):
    """Follows over a WebSocket."""

    async def _listen(self) -> bool:
        query = f"?last_event_id={self._last_id}" if self._last_id else ""
        url = f"ws://127.0.0.1:{self._port}{self.path}{query}"
        try:
            async with connect(
                url, proxy=None, open_timeout=SILENCE, close_timeout=1, ping_interval=1, ping_timeout=SILENCE
            ) as socket:
                try:
                    async for message in socket:
                        assert isinstance(message, str)
                        self._hear(_line(message))
                except ConnectionClosed:  # not by 1000: the line is gone
                    pass
                self.broken += not (self.told and self.told[-1].event == "done")
        except InvalidStatus as error:
            raise AssertionError(f"{self.path} is refused: {error}") from error
        except (OSError, TimeoutError, WebSocketException) as error:
            raise Broken from error
        assert socket.close_code in (1000, *COME_BACK), f"{self.path} closes with {socket.close_code}"
        return socket.close_code == 1000


def _event(block: bytes) -> Told | None:
    """A block of an event stream; None for a comment, and for `retry`."""
    fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
    if "event" not in fields:
        return None
    return Told(fields["event"], fields.get("id"), json.loads(fields["data"]))


def _line(line: bytes | str) -> Told | None:
    told = json.loads(line)
    return None if told["event"] in ("ping", "retry") else Told(told["event"], told["id"], told["data"])


# --- what must be true of what was told -----------------------------------------------------------------------------


def faults_of_one(told: Sequence[Told], log: Sequence[JobEvent], epoch: str) -> Iterator[str]:
    """What is wrong with what was told of one job, whose log is this."""
    expected = [(f"{epoch}-{event.version}", *_content(event)) for event in log]
    heard = [(each.id, *_heard(each.event, each.data)) for each in told if each.event in DURABLE]
    if heard != expected:
        yield _difference(heard, expected)
    if [number for number, each in enumerate(told) if each.event == "snapshot"] != [0]:
        yield f"snapshots at {[number for number, each in enumerate(told) if each.event == 'snapshot']}"
    if told[-1].event != "done":
        yield f"{told[-1].event} came last"
    yield from _setbacks(each.data for each in told if each.event == "progress")


def faults_of_many(told: Sequence[Told], logs: Mapping[str, Sequence[JobEvent]]) -> Iterator[str]:
    """What is wrong with what was told of many jobs, to a watcher who was there before them."""
    if (listed := [each.event for each in told].count("listed")) != 1:
        yield f"it was listed {listed} times"
    numbers = [tuple(each.id.split("-")) for each in told if each.id is not None]
    if len({journal for journal, _ in numbers}) != 1:
        yield "the journal has changed"
    if any(int(later) <= int(earlier) for (_, earlier), (_, later) in pairwise(numbers)):
        yield "numbers do not rise"
    by_job: dict[str, list[tuple[str, Any]]] = {}
    for each in told:
        by_job.setdefault(each.data["job"], []).append((each.event, each.data["data"]))
    for job_id, log in logs.items():
        events = by_job.get(job_id, [])
        heard = [_heard(event, data) for event, data in events if event in DURABLE]
        expected = [_content(event) for event in log]
        if heard != expected:
            yield f"{job_id}: {_difference(heard, expected)}"
        yield from _setbacks(data for event, data in events if event == "progress")


def _content(event: JobEvent) -> tuple[str, Any]:
    return event.kind, event.data.decode() if event.kind == "done" else json.loads(event.data)


def _heard(event: str, data: Any) -> tuple[str, Any]:
    return event, data["status"] if event == "done" else data


def _difference(heard: Sequence[object], expected: Sequence[object]) -> str:
    at = next((at for at, pair in enumerate(zip(heard, expected, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        at = min(len(heard), len(expected))
    return f"{len(heard)} events instead of {len(expected)}; at {at} {heard[at : at + 2]} not {expected[at : at + 2]}"


def _setbacks(progress: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Progress that goes back. The task says its attempt as the message: another one begins from the beginning."""
    furthest = (0, 0.0)
    for each in progress:
        reached = (int(each["message"]), each["current"])
        if reached < furthest:
            yield f"progress {reached} after {furthest}"
        furthest = max(furthest, reached)
