"""Follow jobs to their ends and show them meanwhile: bars on a terminal, lines elsewhere, NDJSON for programs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Protocol, TextIO

from jobstream.client import Client, ClientError, Event
from jobstream_cli.bars import bar_lines, plain_line
from jobstream_cli.screen import Screen, clean, look_of
from jobstream_cli.views import JobView

FRAME_SECONDS = 1 / 8
HEARTBEAT_SECONDS = 15.0


class Display(Protocol):
    """Shows the views while they change."""

    def show(self, view: JobView, event: Event | None, *, moved: bool) -> None:
        """A view has changed by an event; `moved`: its status did."""

    async def run(self) -> None:
        """Whatever has to happen by the clock; cancelled at the end."""

    def close(self) -> None:
        """The last picture."""


async def follow(client: Client, views: Sequence[JobView], display: Display, *, timeout: float | None = None) -> None:
    """Keep the views up to date until all jobs are done, or until `timeout` seconds are over."""
    clock = asyncio.create_task(display.run())
    try:
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            for view in views:
                group.create_task(_follow(client, view, display))
    except TimeoutError:
        pass  # the views say which jobs are not done
    except ExceptionGroup as group:  # whoever read our pipe has gone: click knows that error, but not in a group
        raise group.exceptions[0] from None
    finally:
        clock.cancel()
        display.close()


async def _follow(client: Client, view: JobView, display: Display) -> None:
    handle = client.job(view.id)
    try:
        async with aclosing(handle.events()) as events:
            async for event in events:
                display.show(view, event, moved=view.apply(event))
        if not view.done:  # the stream said "no more" (204): the job was done before
            before = view.status
            view.take(await handle.get())
            display.show(view, None, moved=view.status != before)
    except ClientError as error:
        view.fault = error
        display.show(view, None, moved=True)


def choose_display(views: Sequence[JobView], stream: TextIO, *, logs: bool = False) -> Display:
    """Bars where lines can be redrawn, plain lines elsewhere."""
    return Bars(views, stream, logs=logs) if look_of(stream).screen else Lines(views, stream, logs=logs)


class Bars:
    """A line with a bar for each job, redrawn in place, at most eight times a second."""

    def __init__(self, views: Sequence[JobView], stream: TextIO, *, logs: bool = False) -> None:
        self._views, self._logs = views, logs
        self._screen = Screen(stream)
        self._look = look_of(stream)
        self._changed = asyncio.Event()

    def show(self, view: JobView, event: Event | None, *, moved: bool) -> None:
        self._changed.set()
        if self._logs and (line := log_line(view, event)):
            self._screen.print(line)

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._draw()
            await asyncio.sleep(FRAME_SECONDS)

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        waiting_first = sorted(self._views, key=lambda view: view.done) if self._crowded() else self._views
        self._screen.draw(bar_lines(waiting_first, columns=self._screen.columns, look=self._look))

    def _crowded(self) -> bool:
        return len(self._views) > self._screen.rows


class Lines:
    """One line for each change of state, and a sign of life every 15 s."""

    def __init__(self, views: Sequence[JobView], stream: TextIO, *, logs: bool = False) -> None:
        self._views, self._stream, self._logs = views, stream, logs

    def show(self, view: JobView, event: Event | None, *, moved: bool) -> None:
        if moved:
            self._print(plain_line(view))
        if self._logs and (line := log_line(view, event)):
            self._print(line)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for view in self._views:
                if not view.done:
                    self._print(plain_line(view))

    def close(self) -> None:
        pass

    def _print(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class Ndjson:
    """Every event as one JSON object a line: `{"job":…,"id":…,"event":…,"data":…}`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, view: JobView, event: Event | None, *, moved: bool) -> None:
        line: dict[str, object] = {"job": view.id}
        if event is not None:
            line |= {"id": event.id, "event": event.event, "data": event.data}
        elif view.fault is not None:
            line |= {"id": "", "event": "error", "data": {"detail": str(view.fault)}}
        elif view.job is not None:
            line |= {"id": "", "event": "done", "data": view.job.model_dump(mode="json")}
        self._stream.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
        self._stream.flush()

    async def run(self) -> None:
        pass

    def close(self) -> None:
        pass


class Silent:
    """Waits and says nothing."""

    def show(self, view: JobView, event: Event | None, *, moved: bool) -> None:
        pass

    async def run(self) -> None:
        pass

    def close(self) -> None:
        pass


def log_line(view: JobView, event: Event | None) -> str:
    """A line of a job's own log: `words| warning: slow read`."""
    if event is None or event.event != "log" or not isinstance(event.data, dict):
        return ""
    level = str(event.data.get("level", "info"))
    said = str(event.data.get("message", ""))
    return clean(f"{view.task}| {said}" if level == "info" else f"{view.task}| {level}: {said}")
