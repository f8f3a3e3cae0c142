"""The page of a job in Chromium: a form leads to it, it follows the job, for everybody, under its own policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from jobstream.redis import UrlSource
from tests.acceptance.guarded import guarded
from tests.acceptance.service import Service
from tests.acceptance.wire import Puppet, done, submit
from tests.browser.chromium import Chromium

AT_END = "(part) => part.scrollTop + part.clientHeight > part.scrollHeight - 24"

FORM = """
    const form = document.createElement('form')
    form.method = 'post'
    form.action = '/words'
    const field = document.createElement('textarea')
    field.name = 'text'
    field.value = 'to be or not to be'
    const button = document.createElement('button')
    button.textContent = 'Count'
    form.append(field, button)
    document.body.replaceChildren(form)
"""


async def test_a_form_leads_to_the_page_of_its_job(service: Service, browser: Chromium) -> None:
    async with browser.person() as person:
        tab = await person.open(f"{service.url}/livez")
        await tab.evaluate(f"(() => {{ {FORM} }})()")
        await tab.click("button")
        await tab.until("location.pathname.startsWith('/words/')")
        await tab.until_shows("succeeded")
        await tab.until_shows('"unique": 4')
        assert [status for status, url in await tab.responses() if url.endswith("/words")] == [303]
        assert await tab.console() == []


@pytest.mark.parametrize(
    "options",
    [
        {"colorScheme": "light"},
        {"colorScheme": "dark"},
        {"colorScheme": "light", "viewport": {"width": 375, "height": 700}},
        {"forcedColors": "active", "reducedMotion": "reduce"},
    ],
    ids=["light", "dark", "narrow", "forced colours"],
)
async def test_the_page_follows_its_job_and_axe_finds_nothing(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppet: Puppet, options: dict[str, Any]
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with browser.person(**options) as person:
        tab = await person.open(service.url + job["links"]["result"])
        assert tab.status == 202
        await tab.until_shows("running")
        puppet.do("log reading", "progress 1 4 page one", 'chunk "Once "', 'chunk "upon"')
        await tab.until_shows("25 %")
        await tab.until_shows("Once upon")
        assert await tab.axe() == []
        puppet.do("log \u2028<b>bold</b>", "end {'the': 'end'}")
        await tab.until_shows("succeeded")
        shown = await tab.text()
        assert [text for text in ("reading", "<b>bold</b>", "{'the': 'end'}") if text not in shown] == []
        assert await tab.axe() == []
        assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await tab.evaluate("document.title") == "✓ puppet"
        assert await tab.console() == []


async def test_the_page_shows_why_a_job_failed(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with browser.person() as person:
        tab = await person.open(service.url + job["links"]["result"])
        await tab.until_shows("running")
        puppet.do(*(f"log line {number}" for number in range(60)))
        puppet.do("progress 1 2 half", "fail no paper in the tray")
        await tab.until_shows("failed")
        live = await tab.text()
        await tab.goto(await tab.url())
        assert tab.status == 422
        await tab.until_shows("failed")
        for shown in (live, await tab.text()):
            assert "no paper in the tray" in shown
            assert "task-error" in shown
        await tab.until(
            "((log) => log.scrollTop + log.clientHeight > log.scrollHeight - 24)(document.querySelector('#log ol'))"
        )
        assert await tab.axe() == []
        assert [line for line in await tab.console() if "status of 422" not in line] == []


async def test_without_scripts_the_page_looks_again_until_the_end(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppet: Puppet
) -> None:
    job = await submit(http, "puppet", puppet.input)
    async with browser.person(javaScriptEnabled=False) as person:
        puppet.do("progress 1 2 half of it")
        tab = await person.open(service.url + job["links"]["result"])
        await tab.until("document.body.innerText.includes('half of it')")
        assert "running, 50 %" in await tab.evaluate("document.body.innerText")
        puppet.do("end over")
        await tab.until("document.body.innerText.includes('succeeded')")
        assert "over" in await tab.evaluate("document.querySelector('#result').innerText")
        assert [status for status, _ in await tab.responses() if status != 304][-1] == 200


async def test_nothing_that_a_job_says_runs(
    service: Service, http: httpx2.AsyncClient, browser: Chromium, puppets: Callable[[], Puppet]
) -> None:
    bad = '"><img src=x onerror=window.hit=1><script>window.hit=1</script>'
    async with browser.person() as person:
        for late in (False, True):
            puppet = puppets()
            job = await submit(http, "puppet", puppet.input)
            if late:
                tab = await person.open(service.url + job["links"]["result"])
            puppet.do(f"log {bad}", f'chunk {{"{bad[2:]}": "{bad[2:]}"}}', f"progress 1 2 {bad}", f"end {bad}")
            await done(http, job)
            if not late:
                tab = await person.open(service.url + job["links"]["result"])
            await tab.until_shows("succeeded")
            assert (await tab.text()).count("onerror=window.hit=1") >= 5
            assert await tab.evaluate("[window.hit === undefined, document.images.length]") == [True, 0]
            assert await tab.console() == []


async def test_the_page_says_when_there_is_no_such_job(service: Service, browser: Chromium) -> None:
    async with browser.person() as person:
        tab = await person.open(f"{service.url}/words/01JD0000000000000000000000")
        assert tab.status == 404
        assert "There is no job" in await tab.evaluate("document.body.innerText")
        assert await tab.axe() == []


async def test_a_ticket_opens_the_page_and_what_it_follows(real_source: UrlSource, browser: Chromium) -> None:
    async with guarded(real_source) as service, browser.person() as person:
        job = await service.queue.submit("quiet", {}, owner="acme")
        path = f"{service.url}/quiet/{job.id}"
        tab = await person.open(path)
        assert tab.status == 401
        async with service.http(await service.key("acme")) as http:
            ticket = (await http.post(f"/jobs/{job.id}/ticket")).json()["ticket"]
        await tab.goto(f"{path}?ticket={ticket}")
        await tab.until_shows("queued")
        assert "Cancel" not in await tab.text()  # a ticket is for watching
        await service.queue.cancel(job.id)
        await tab.until_shows("⊘ cancelled")
        assert [line for line in await tab.console() if "Failed to load resource" not in line] == []
