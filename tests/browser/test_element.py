"""`<job-progress>` on somebody's own page: what it shows, says, lets do, and how it can be made to look."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from tests.acceptance.service import Service
from tests.acceptance.wire import Puppet, started, submit
from tests.browser.chromium import Chromium, Tab

ELEMENT = "document.querySelector('job-progress')"
BAR = f"{ELEMENT}.shadowRoot.querySelector('[role=progressbar]')"


@contextlib.asynccontextmanager
async def page_with(service: Service, browser: Chromium, attributes: str, **options: object) -> AsyncIterator[Tab]:
    """A page of the service's origin with the element in it; `happened` lists the element's events."""
    async with browser.person(**options) as person:
        tab = await person.open(f"{service.url}/livez")
        await tab.evaluate(
            f"""(async () => {{
                document.documentElement.lang = 'en'
                document.title = 'somebody else'
                document.body.innerHTML =
                    `<main><h1>Mine</h1><job-progress {attributes}>Working …</job-progress></main>`
                window.happened = []
                for (const kind of ['update', 'jobevent', 'done']) {{
                    {ELEMENT}.addEventListener(kind, (event) => happened.push([kind, event.detail]))
                }}
                await import('/static/job-progress.js')
            }})()"""
        )
        yield tab


async def bar(tab: Tab) -> list[str | None]:
    """What the progress bar says to assistive technology."""
    names = ["aria-label", "aria-valuenow", "aria-valuetext"]
    attributes: list[str | None] = await tab.evaluate(f"{names}.map((name) => {BAR}.getAttribute(name))")
    return attributes


async def said(tab: Tab) -> str:
    """What its live region says."""
    text: str = await tab.evaluate(f"{ELEMENT}.shadowRoot.querySelector('[role=status]').textContent")
    return text


async def test_it_shows_the_bar_the_message_and_the_end(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with page_with(service, browser, f'src="{job["links"]["self"]}" label="Your upload"') as tab:
        await tab.until(f"{ELEMENT}.job?.status === 'running'")
        await tab.until_shows("running")
        assert await bar(tab) == ["Your upload", None, "running"]  # nobody knows how far it is
        puppet.do("progress 3 10 <i>page</i> three", "log a line", 'chunk "a piece"')
        await tab.until_shows("30 %")
        assert await bar(tab) == ["Your upload", "30", "running, 30 %, <i>page</i> three"]
        assert await said(tab) == "Your upload: running, 25 %"
        assert await tab.axe() == []
        puppet.do("end over")
        await tab.until_shows("succeeded")
        assert (await bar(tab))[1] == "100"
        assert await said(tab) == "Your upload: succeeded"
        happened: list[list[Any]] = await tab.evaluate("happened")
        assert happened[-1] == ["done", (await http.get(job["links"]["self"])).json()]
        events = [detail["event"] for kind, detail in happened if kind == "jobevent"]
        assert events[0] == "snapshot"
        assert events[-1] == "done"
        assert {"log", "chunk", "progress"} <= set(events)
        assert await tab.axe() == []
        assert [line for line in await tab.console() if "404" not in line] == []  # a page of JSON has no icon


async def test_the_keyboard_cancels(service: Service, http: httpx2.AsyncClient, browser: Chromium) -> None:
    job = await submit(http, "hang-loop")
    await started(http, job)
    async with page_with(service, browser, f'src="{job["links"]["self"]}" cancel') as tab:
        await tab.until_shows("Cancel")
        await tab.press("Tab")
        assert await tab.evaluate(f"{ELEMENT}.shadowRoot.activeElement.ariaLabel") == "Cancel hang-loop"
        await tab.press("Enter")
        await tab.until_shows("⊘ cancelled")
        assert "Cancel" not in await tab.text()
        assert await said(tab) == "hang-loop: cancelled"


async def test_the_time_left_is_shown(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with page_with(service, browser, f'src="{job["links"]["self"]}"') as tab, asyncio.timeout(20):
        current = 0
        while "left" not in (shown := await tab.text()):
            current += 1
            puppet.do(f"progress {current} 100000 slowly")
        assert " h left" in shown or " days left" in shown or " min left" in shown


@pytest.mark.parametrize("options", [{}, {"colorScheme": "dark"}, {"reducedMotion": "reduce"}], ids=str)
async def test_it_takes_the_pages_colours_and_the_readers_wishes(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppet: Puppet, options: dict[str, str]
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with page_with(service, browser, f'src="{job["links"]["self"]}"', **options) as tab:
        await tab.until(f"{BAR}.classList.contains('unknown')")
        fill = f"getComputedStyle({BAR}.firstElementChild)"
        moves = await tab.evaluate(f"{fill}.animationName") != "none"
        assert moves == ("reducedMotion" not in options)
        default = "rgb(110, 168, 254)" if options.get("colorScheme") == "dark" else "rgb(37, 99, 235)"
        assert await tab.evaluate(f"{fill}.backgroundColor") == default
        await tab.evaluate("document.body.style.setProperty('--jobstream-accent', 'rgb(1, 2, 3)')")
        assert await tab.evaluate(f"{fill}.backgroundColor") == "rgb(1, 2, 3)"


async def test_it_follows_another_job_when_it_is_told_to_and_none_when_it_is_gone(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppet: Puppet
) -> None:
    first = await submit(http, "echo", {"value": 1})
    second = await submit(http, "puppet", puppet.input)
    async with page_with(service, browser, f'src="{first["links"]["self"]}"') as tab:
        await tab.until_shows("succeeded")
        await tab.evaluate(f"{ELEMENT}.src = '{second['links']['self']}'")
        puppet.do("progress 1 2 half")
        await tab.until_shows("50 %")
        await tab.evaluate(f"{ELEMENT}.remove()")
        async with asyncio.timeout(20):
            while (await http.get("/readyz?verbose")).json()["watchers"]:
                pass


async def test_it_says_what_is_wrong(service: Service, browser: Chromium) -> None:
    async with page_with(service, browser, 'src="/jobs/01JD0000000000000000000000"') as tab:
        await tab.until_shows("There is no job")
        assert "There is no job" in await said(tab)
        assert await tab.axe() == []


async def test_it_says_that_it_reconnects_and_goes_on(mortal: Service, browser: Chromium, puppet: Puppet) -> None:
    async with httpx2.AsyncClient(base_url=mortal.url, timeout=20) as http:
        job = await submit(http, "puppet", puppet.input)
    async with page_with(mortal, browser, f'src="{job["links"]["self"]}"') as tab:
        puppet.do("progress 1 4 one")
        await tab.until_shows("25 %")
        await asyncio.to_thread(mortal.kill_api)
        await tab.until_shows("Reconnecting…")
        puppet.do("progress 2 4 two")
        await asyncio.to_thread(mortal.start_api)
        await tab.until_shows("50 %")
        assert "Reconnecting" not in await tab.text()
        await asyncio.to_thread(mortal.kill_api)  # and a tab that is opened meanwhile
        puppet.do("end x")
        await asyncio.to_thread(mortal.start_api)
        await tab.until_shows("succeeded")


async def test_it_shows_a_batch_as_one(service: Service, http: httpx2.AsyncClient, browser: Chromium) -> None:
    stored = (await http.post("/jobs/batch", json=[{"task": "echo"}, {"task": "echo", "delay": 3600}])).json()
    async with page_with(service, browser, f'src="{stored["links"]["self"]}" label="Your import" cancel') as tab:
        await tab.until(f"{BAR}.getAttribute('aria-valuenow') === '50'")
        await tab.evaluate(f"{ELEMENT}.shadowRoot.querySelector('button').click()")
        await tab.until("happened.some(([kind]) => kind === 'done')")
        assert (await bar(tab))[:2] == ["Your import", "100"]
        last: Any = await tab.evaluate("happened.findLast(([kind]) => kind === 'done')[1]")
    assert (last["id"], last["status"], last["progress"]["counts"]["cancelled"]) == (stored["id"], "cancelled", 1)
