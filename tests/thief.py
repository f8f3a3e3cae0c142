"""A TCP proxy before Redis that steals one answer: to the claim that takes a certain job."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Literal, Self

from jobstream.cancellation import cancel
from jobstream_workers.claim import _claim
from tests.ports import free_port

_CLAIM = _claim.sha.encode()

Manner = Literal["cuts", "holds"]


class Thief:
    """Passes on all that goes to the Unix socket `target` and back, but for the first `times` claims that take a job.

    Redis has executed such a claim when its answer disappears. Then the connection `cuts`, or `holds`: nothing comes
    over it any more. `stolen` counts.
    """

    def __init__(self, target: str, manner: Manner, *, times: int = 1) -> None:
        self.port = free_port()
        self.stolen = 0
        self.stole = asyncio.Event()
        self._target, self._manner, self._times = target, manner, times
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await cancel(*self._links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        claims = False

        async def ask(sink: asyncio.StreamWriter) -> None:
            nonlocal claims
            while data := await reader.read(1 << 16):
                claims = claims or _CLAIM in data
                sink.write(data)

        async def answer(source: asyncio.StreamReader) -> None:
            while data := await source.read(1 << 16):
                if claims and self.stolen < self._times and b"#1#" in data:  # a token of a first attempt
                    self.stolen += 1
                    self.stole.set()
                    if self._manner == "holds":
                        await asyncio.Event().wait()
                    return
                writer.write(data)

        ways: list[asyncio.Task[None]] = []
        writers = [writer]
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):  # in 3.11 a server minds cancelled tasks
                from_redis, to_redis = await asyncio.open_unix_connection(self._target)
                writers.append(to_redis)
                ways = [asyncio.create_task(ask(to_redis)), asyncio.create_task(answer(from_redis))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for end in writers:
                end.close()
            self._links.discard(task)
