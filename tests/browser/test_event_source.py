"""The browser's own EventSource: it survives a killed server without a loss, and 204 ends it for good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx2

from tests.acceptance.service import Service
from tests.acceptance.wire import Puppet, submit
from tests.browser.chromium import Chromium

WATCH = """(url, name = 'seen') => {
    const source = new EventSource(url)
    const seen = window[name] = { source, ids: [], logs: [], kinds: [], errors: 0 }
    for (const kind of ['snapshot', 'status', 'progress', 'log', 'chunk', 'done']) {
        source.addEventListener(kind, (event) => {
            seen.kinds.push(kind)
            if (['status', 'log', 'chunk', 'done'].includes(kind)) seen.ids.push(event.lastEventId)
            if (kind === 'log') seen.logs.push(JSON.parse(event.data).message)
        })
    }
    source.onerror = () => { seen.errors += 1 }
}"""


async def test_it_goes_on_behind_a_killed_server(mortal: Service, browser: Chromium, puppet: Puppet) -> None:
    async with httpx2.AsyncClient(base_url=mortal.url, timeout=20) as http, browser.person() as person:
        job = await submit(http, "puppet", puppet.input)
        tab = await person.open(f"{mortal.url}/livez")
        await tab.evaluate(f"({WATCH})('{job['links']['events']}')")
        said = []
        for turn in range(2):
            puppet.do(f"log before {turn}")
            await tab.until(f"seen.logs.at(-1) === 'before {turn}'")
            await asyncio.to_thread(mortal.kill_api)
            puppet.do(f"log while away {turn}")
            await tab.until(f"seen.errors >= {turn + 1} && seen.source.readyState === EventSource.CONNECTING")
            await asyncio.to_thread(mortal.start_api)
            said += [f"before {turn}", f"while away {turn}"]
            await tab.until(f"seen.logs.at(-1) === 'while away {turn}'")
        puppet.do("end x")
        await tab.until("seen.source.readyState === EventSource.CLOSED")
        assert await tab.evaluate("seen.logs") == said
        kinds = await tab.evaluate("seen.kinds")
        assert (kinds.count("snapshot"), kinds.count("done"), kinds[-1]) == (1, 1, "done")
        versions = [int(each.partition("-")[2]) for each in await tab.evaluate("seen.ids")]
        assert versions == sorted(set(versions))


async def test_204_ends_it_for_good(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppets: Callable[[], Puppet]
) -> None:
    first, second = puppets(), puppets()
    async with browser.person() as person:
        tab = await person.open(f"{service.url}/livez")
        jobs = [await submit(http, "puppet", puppet.input) for puppet in (first, second)]
        for number, job in enumerate(jobs):
            await tab.evaluate(f"({WATCH})('{job['links']['events']}', 'seen{number}')")
        first.do("end x")
        await tab.until("seen0.source.readyState === EventSource.CLOSED")
        # The other one ends later, and comes back after its `retry:` once more: so would the first, if it did.
        second.do("end x")
        await tab.until("seen1.source.readyState === EventSource.CLOSED")
        for number, job in enumerate(jobs):
            asked = [status for status, url in await tab.responses() if job["id"] in url]
            assert asked == [200, 204]
            assert (await tab.evaluate(f"seen{number}.kinds")).count("done") == 1
