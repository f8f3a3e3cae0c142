"""Chromium, as the tests see it: contexts (one is one person's browser) with tabs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

JS = Path(__file__).parents[1] / "js"
LINE_BYTES = 16 << 20


class Chromium:
    """A headless browser behind `tests/js/bridge.mjs`. Made by `chromium`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def do(self, command: str, **arguments: Any) -> Any:
        """One command; raises AssertionError with the browser's words when it fails."""
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "do": command, **arguments}).encode() + b"\n")
        return await answer

    async def read(self) -> None:
        """Hand out the answers, until the browser ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            waiting = self._waiting.pop(said["id"], None)
            if waiting is None or waiting.done():
                continue
            if "error" in said:
                waiting.set_exception(AssertionError(said["error"]))
            else:
                waiting.set_result(said["value"])

    @contextlib.asynccontextmanager
    async def person(self, **options: Any) -> AsyncIterator[Person]:
        """Somebody's browser: tabs that share storage, locks and channels. Options as of playwright's newContext."""
        name = f"person {next(self._numbers)}"
        await self.do("context", context=name, options=options)
        try:
            yield Person(self, name)
        finally:
            await self.do("end", context=name)


class Person:
    """The tabs of one person."""

    def __init__(self, browser: Chromium, name: str) -> None:
        self._browser = browser
        self._name = name
        self._numbers = itertools.count(1)

    async def before_each_page(self, code: str) -> None:
        """Run this in every page, before its own scripts."""
        await self._browser.do("script", context=self._name, code=code)

    async def open(self, url: str) -> Tab:
        """A new tab at this address."""
        tab = Tab(self._browser, f"{self._name}, tab {next(self._numbers)}")
        await self._browser.do("tab", context=self._name, tab=tab.name)
        await tab.goto(url)
        return tab


class Tab:
    """A tab."""

    def __init__(self, browser: Chromium, name: str) -> None:
        self._browser = browser
        self.name = name
        self.status = 0
        """Of the page's own response."""
        self.headers: dict[str, str] = {}

    async def goto(self, url: str) -> None:
        """Go there."""
        answer = await self._browser.do("goto", tab=self.name, url=url)
        self.status, self.headers = answer["status"], answer["headers"]

    async def url(self) -> str:
        """Where it is."""
        where: str = await self._browser.do("url", tab=self.name)
        return where

    async def evaluate(self, code: str) -> Any:
        """What an expression gives."""
        return await self._browser.do("evaluate", tab=self.name, code=code)

    async def until(self, code: str) -> Any:
        """Wait until an expression is true; what it gives."""
        return await self._browser.do("until", tab=self.name, code=code)

    async def until_shows(self, text: str) -> None:
        """Wait until the page, or an element's shadow, shows the text."""
        await self.until(f"({ALL_TEXT})().includes({json.dumps(text)})")

    async def text(self) -> str:
        """What the page shows, its elements' shadows too."""
        shown: str = await self.evaluate(f"({ALL_TEXT})()")
        return shown

    async def click(self, selector: str) -> None:
        """Click what the selector finds, in shadows too."""
        await self._browser.do("click", tab=self.name, selector=selector)

    async def press(self, key: str) -> None:
        """Press a key."""
        await self._browser.do("press", tab=self.name, key=key)

    async def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        await self._browser.do("screenshot", tab=self.name, path=str(path))

    async def axe(self) -> list[str]:
        """What axe-core finds wrong for people who use assistive technology."""
        found: list[str] = await self._browser.do("axe", tab=self.name)
        return found

    async def console(self) -> list[str]:
        """What was written to the console: also each violation of the content security policy."""
        lines: list[str] = await self._browser.do("console", tab=self.name)
        return lines

    async def responses(self) -> list[tuple[int, str]]:
        """Status and URL of each response so far, in order."""
        return [(status, url) for status, url in await self._browser.do("responses", tab=self.name)]

    async def close(self) -> None:
        """Close the tab."""
        await self._browser.do("close", tab=self.name)


ALL_TEXT = """() => [document.body, ...document.querySelectorAll('job-progress')]
    .map((element) => element.shadowRoot
        ? [...element.shadowRoot.querySelectorAll('.row')].map((row) => row.innerText).join('\\n')
        : element.innerText).join('\\n')"""


@contextlib.asynccontextmanager
async def chromium(node: str, program: str) -> AsyncIterator[Chromium]:
    """A browser that has started, ended with the block."""
    process = await asyncio.create_subprocess_exec(
        node,
        str(JS / "bridge.mjs"),
        program,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline(), "Chromium does not start"
        browser = Chromium(process)
        reading = asyncio.create_task(browser.read())
        yield browser
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if reading is not None:
            await reading
