"""Many tabs: one stream per job, few for all jobs; nobody hangs, nobody misses anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx2

from tests.acceptance.service import Service
from tests.acceptance.wire import Puppet, submit
from tests.browser.chromium import Chromium, Tab

TABS = 10
LINES = "[...document.querySelectorAll('#log li')].map((line) => line.textContent).join()"


async def watchers(http: httpx2.AsyncClient) -> int:
    return int((await http.get("/readyz?verbose")).json()["watchers"])


async def until_shown(tabs: list[Tab], lines: list[str]) -> None:
    await asyncio.gather(*(tab.until(f"{LINES} === '{','.join(lines)}'") for tab in tabs))


async def test_ten_tabs_of_one_job_share_a_stream_and_outlive_its_leader(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with browser.person() as person:
        puppet.do("log zero")
        tabs = [await person.open(service.url + job["links"]["result"]) for _ in range(TABS)]
        await until_shown(tabs, ["zero"])
        assert await watchers(http) == 1
        said = ["zero"]
        for number in range(3):  # the first tab leads
            puppet.do(f"log before {number}")
            await tabs.pop(0).close()
            puppet.do(f"log after {number}")
            said += [f"before {number}", f"after {number}"]
            await until_shown(tabs, said)
        late = await person.open(service.url + job["links"]["result"])
        await until_shown([*tabs, late], said)
        assert await watchers(http) == 1
        puppet.do("log last", "end x")
        await asyncio.gather(*(tab.until_shows("succeeded") for tab in [*tabs, late]))
        await until_shown([*tabs, late], [*said, "last"])
        assert [await tab.console() for tab in tabs] == [[]] * len(tabs)


async def test_ten_tabs_of_ten_jobs_take_turns(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppets: Callable[[], Puppet]
) -> None:
    held = [puppets() for _ in range(TABS)]
    jobs = [await submit(http, "puppet", puppet.input) for puppet in held]
    async with browser.person() as person:
        tabs = [await person.open(service.url + job["links"]["result"]) for job in jobs]
        for puppet in held:
            puppet.do("log one")
        await until_shown(tabs, ["one"])
        assert await watchers(http) <= 4
        for puppet in held:
            puppet.do("end x")
        await asyncio.gather(*(tab.until_shows("succeeded") for tab in tabs))


async def test_without_web_locks_each_tab_streams_by_itself(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with browser.person() as person:
        await person.before_each_page("Object.defineProperty(navigator, 'locks', { value: undefined })")
        tabs = [await person.open(service.url + job["links"]["result"]) for _ in range(2)]
        puppet.do("log one")
        await until_shown(tabs, ["one"])
        hide = "Object.defineProperty(document, 'hidden', { value: true, configurable: true })"
        await tabs[0].evaluate(f"{hide} && document.dispatchEvent(new Event('visibilitychange'))")
        async with asyncio.timeout(20):
            while await watchers(http) != 1:
                pass
        puppet.do("log two")
        await until_shown(tabs[1:], ["one", "two"])
        show = "Object.defineProperty(document, 'hidden', { value: false, configurable: true })"
        await tabs[0].evaluate(f"{show} && document.dispatchEvent(new Event('visibilitychange'))")
        await until_shown(tabs, ["one", "two"])
        puppet.do("end x")
        await asyncio.gather(*(tab.until_shows("succeeded") for tab in tabs))
