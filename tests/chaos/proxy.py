"""A TCP proxy: an address that stays when the server behind it is another one."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from jobstream.cancellation import cancel
from tests.ports import free_port


class Proxy:
    """Passes every connection on to what was its `target`, a port of this machine, when it was made."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.target = target
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """End all connections."""
        await cancel(*self._links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            with contextlib.suppress(OSError):
                await _join(reader, writer, *await asyncio.open_connection("127.0.0.1", self.target))
        finally:
            writer.close()
            self._links.discard(task)


async def _join(
    here: asyncio.StreamReader,
    to_here: asyncio.StreamWriter,
    there: asyncio.StreamReader,
    to_there: asyncio.StreamWriter,
) -> None:
    """Both ways, until one side ends."""
    ways = [asyncio.create_task(_pass_on(here, to_there)), asyncio.create_task(_pass_on(there, to_here))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(*ways)
        to_there.close()


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
