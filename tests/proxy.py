"""A TCP proxy that makes trouble: it cuts, delays, half-closes and swallows, by a seed, so that a run can be repeated.

It runs in a thread with an event loop of its own: tests that block and tests that await may use it alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TypeVar

T = TypeVar("T")


class End(StrEnum):
    """What becomes of a connection."""

    NONE = "none"
    """Nothing: it ends when one of the two ends it."""
    RESET = "reset"
    """Both sides get RST, in the middle of whatever was under way."""
    CLOSE = "close"
    """Both sides get FIN: a proxy that has gone."""
    HALF_DOWN = "half-down"
    """The client hears no more (FIN); what it says still arrives."""
    HALF_UP = "half-up"
    """The server hears no more (FIN); what it says still arrives."""
    SWALLOW_DOWN = "swallow-down"
    """What the server says vanishes, and nobody is told: only silence can be noticed."""
    SWALLOW_UP = "swallow-up"
    """What the client says vanishes, and nobody is told."""
    REFUSE = "refuse"
    """RST at once, before the server was asked."""


NOTICED = (End.RESET, End.CLOSE, End.HALF_DOWN, End.REFUSE)
"""The ends that a client is told of; the others need a timeout."""


UPWARDS = (End.HALF_UP, End.SWALLOW_UP)
"""The ends that come by what the client says."""

REQUEST_BYTES = 200
"""A request has about as many: an end that comes later would never come."""


@dataclass(frozen=True)
class Fate:
    """What a connection has before it."""

    end: End = End.NONE
    after: int = 0
    """Bytes that the client may receive (that the server may, of the ends with `up`) before the end comes."""
    piece: int = 1 << 16
    """Bytes passed on at a time: 1 splits everything everywhere."""
    delay: float = 0.0
    """Seconds before each piece."""


Fates = Callable[[random.Random], Fate]
"""Draws the fate of a connection."""


def harmless(_: random.Random) -> Fate:
    """Nothing happens."""
    return Fate()


def trouble(
    *, ends: tuple[End, ...] = NOTICED, after: int = 4000, piece: int = 700, delay: float = 0.002, calm: float = 0.0
) -> Fates:
    """Fates of these ends, each after up to `after` bytes, in pieces of up to `piece`; a share `calm` has no end."""

    def draw(chance: random.Random) -> Fate:
        end = End.NONE if chance.random() < calm else chance.choice(ends)
        most = min(after, REQUEST_BYTES) if end in UPWARDS else after
        return Fate(end, chance.randint(0, most), chance.randint(1, piece), chance.random() * delay)

    return draw


class Proxy:
    """Passes connections to one of its `targets`, ports of this machine, each to its own fate. Use it with `with`.

    Where nobody listens the next target is tried. The nth connection's fate, and its target, depend on `seed` and n
    alone. `targets` and `fates` may be changed at any time, and count for the connections that come. `happened` counts
    the ends that came; `connections` is how many there were.
    """

    def __init__(self, *targets: int, seed: int = 0, fates: Fates = harmless) -> None:
        self.targets, self.fates, self.seed = targets, fates, seed
        self.port = 0
        self.connections = 0
        self.happened: Counter[End] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._changed = threading.Condition()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """Connections that stand."""
        return len(self._links)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def cut(self, end: End = End.RESET) -> int:
        """End all connections now, this way; how many there were."""
        return self._call(self._cut(end))

    def wait_for(self, condition: Callable[[Self], bool], timeout: float = 20.0) -> None:
        """Block until the condition holds; it is looked at whenever a connection has come, ended or passed data."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise AssertionError(f"not after {timeout} s: {self.connections} connections, {dict(self.happened)}")

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        for task in self._links:
            task.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _cut(self, end: End) -> int:
        links = list(self._links.values())
        for link in links:
            link.meet(end)
        return len(links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chance = random.Random(f"{self.seed}/{self.connections}")
        fate = self.fates(chance)
        targets = chance.sample(self.targets, len(self.targets))
        self.connections += 1
        link = _Link(fate, self._note, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = link
        self._note()
        try:
            with contextlib.suppress(asyncio.CancelledError):  # by `_stop`; asyncio would print it as an error
                await link.run(targets)
        finally:
            del self._links[task]
            self._note()

    def _note(self, end: End = End.NONE) -> None:
        with self._changed:
            if end != End.NONE:
                self.happened[end] += 1
            self._changed.notify_all()


class _Link:
    """A connection of a client, and the one to the server that belongs to it."""

    def __init__(
        self, fate: Fate, note: Callable[[End], None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._fate, self._note = fate, note
        self._client, self._to_client = reader, writer
        self._to_server: asyncio.StreamWriter | None = None
        self._met = End.NONE

    async def run(self, targets: Sequence[int]) -> None:
        """Until both sides have ended."""
        if self._fate.end == End.REFUSE:
            self.meet(End.REFUSE)
            return
        for target in targets:
            with contextlib.suppress(OSError):
                server, self._to_server = await asyncio.open_connection("127.0.0.1", target)
                break
        else:  # nobody listens: the client is to see the same
            _reset(self._to_client)
            return
        try:
            await asyncio.gather(
                self._pump(server, self._to_client, down=True), self._pump(self._client, self._to_server, down=False)
            )
        finally:
            _reset(self._to_client, self._to_server)

    def meet(self, end: End) -> None:
        """Let the end come; only the first one counts."""
        if self._met != End.NONE:
            return
        self._met = end
        self._note(end)
        match end:
            case End.RESET | End.REFUSE:
                _reset(self._to_client, self._to_server)
            case End.CLOSE:
                self._to_client.close()
                if self._to_server is not None:
                    self._to_server.close()
            case End.HALF_DOWN:
                _finish(self._to_client)
            case End.HALF_UP:
                _finish(self._to_server)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, down: bool) -> None:
        ends_here = self._fate.end != End.NONE and (self._fate.end in UPWARDS) != down
        left = self._fate.after
        with contextlib.suppress(OSError):
            while piece := await source.read(self._fate.piece):
                if self._fate.delay:
                    await asyncio.sleep(self._fate.delay)
                if self._deaf(down=down):
                    continue
                passed = piece[:left] if ends_here else piece
                sink.write(passed)
                await sink.drain()
                left -= len(passed)
                self._note(End.NONE)
                if ends_here and len(passed) < len(piece):
                    self.meet(self._fate.end)
        if self._deaf(down=down):
            _reset(self._to_client, self._to_server)  # whoever was not heard has gone
        else:
            _finish(sink)

    def _deaf(self, *, down: bool) -> bool:
        """What flows in this direction flows nowhere any more."""
        return self._met in ((End.HALF_DOWN, End.SWALLOW_DOWN) if down else UPWARDS)


def _finish(writer: asyncio.StreamWriter | None) -> None:
    """FIN: nothing more will be said."""
    if writer is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            writer.write_eof()


def _reset(*writers: asyncio.StreamWriter | None) -> None:
    for writer in writers:
        if writer is not None and not writer.transport.is_closing():
            found: socket.socket = writer.get_extra_info("socket")
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
