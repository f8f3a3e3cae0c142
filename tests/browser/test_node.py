"""Clients of Node.js: ours, and those that other people wrote. A killed server costs none of them an event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.service import Service
from tests.acceptance.wire import Json, Puppet, done, started, submit
from tests.browser.chromium import JS, LINE_BYTES

ROOT = Path(__file__).parents[2]
WEB = ROOT / "api" / "jobstream_api" / "web"


class Following:
    """A client's words, as they come."""

    def __init__(self, output: asyncio.StreamReader) -> None:
        self._output = output
        self.seen: list[Json] = []

    async def until(self, event: str, text: str | None = None) -> None:
        """Read on up to such an event; for a log line, the one with this text."""
        async with asyncio.timeout(30):
            while line := await self._output.readline():
                self.seen.append(json.loads(line))
                last = self.seen[-1]
                if last["event"] == event and (text is None or last["data"]["message"] == text):
                    return
        raise AssertionError(f"the client ended without {event} {text or ''}: {self.seen}")

    @property
    def kinds(self) -> list[str]:
        return [event["event"] for event in self.seen]

    @property
    def logs(self) -> list[str]:
        return [event["data"]["message"] for event in self.seen if event["event"] == "log"]

    @property
    def versions(self) -> list[int]:
        durable = (event for event in self.seen if event["event"] in ("status", "log", "chunk", "done"))
        return [int(event["id"].partition("-")[2]) for event in durable]


@contextlib.asynccontextmanager
async def following(node: str, client: str, monitor: str) -> AsyncIterator[Following]:
    """A client that follows the job in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        node, str(JS / "follow.mjs"), client, monitor, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES
    )
    assert process.stdout is not None
    try:
        yield Following(process.stdout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("client", ["jobstream", "eventsource", "ws"])
async def test_a_client_goes_on_behind_a_killed_server(node: str, mortal: Service, puppet: Puppet, client: str) -> None:
    async with httpx2.AsyncClient(base_url=mortal.url, timeout=20) as http:
        job = await submit(http, "puppet", puppet.input)
    async with following(node, client, mortal.url + job["links"]["self"]) as followed:
        for turn in range(2):
            puppet.do(f"log before {turn}", f"progress {turn} 4 counting")
            await followed.until("log", f"before {turn}")
            await asyncio.to_thread(mortal.kill_api)
            puppet.do(f"log while away {turn}", f'chunk "{turn}"')
            await asyncio.to_thread(mortal.start_api)
            await followed.until("log", f"while away {turn}")
        puppet.do("end over")
        await followed.until("closed")
        assert followed.logs == ["before 0", "while away 0", "before 1", "while away 1"]
        assert (followed.kinds.count("snapshot"), followed.kinds.count("done")) == (1, 1)
        assert followed.versions == sorted(set(followed.versions))
        assert [event["data"] for event in followed.seen if event["event"] == "chunk"] == ["0", "1"]


async def test_a_websocket_follows_cancels_and_says_why_it_closes(
    node: str, service: Service, http: httpx2.AsyncClient
) -> None:
    job = await submit(http, "hang-loop")
    async with following(node, "ws", service.url + job["links"]["self"]) as followed:
        await followed.until("closed")  # it cancels the job at its first word
        assert followed.seen[-2]["data"]["status"] == "cancelled"
        assert followed.seen[-1]["data"] == 1000
    async with following(node, "ws", f"{service.url}/jobs/01JD0000000000000000000000") as followed:
        await followed.until("closed")
        assert followed.seen == [{"event": "closed", "data": 4404}]


async def test_plain_fetch_reads_a_stream_to_its_end(node: str, service: Service, http: httpx2.AsyncClient) -> None:
    job = await submit(http, "words", {"text": "to be or not to be"})
    async with following(node, "fetch", service.url + job["links"]["self"]) as followed:
        await followed.until("closed")
        assert followed.kinds[0] == "snapshot"
        assert followed.seen[-2]["data"]["result"]["words"] == 6


async def run(node: str, code: str) -> Any:
    """What a module prints as JSON; `jobstream` is the client."""
    program = f"import * as jobstream from {json.dumps(str(WEB / 'jobstream.js'))}\n{code}"
    process = await asyncio.create_subprocess_exec(
        node, "--input-type=module", "--eval", program, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode == 0, output
    return json.loads(output)


async def test_our_client_hands_in_a_job_and_fetches_what_it_returns(
    node: str, service: Service, http: httpx2.AsyncClient
) -> None:
    said = await run(
        node,
        f"""
        const client = new jobstream.Client({json.dumps(service.url)})
        const options = {{ tags: ['a', 'b'], idempotencyKey: 'from-node' }}
        const job = await client.submit('echo', {{ value: 'größer' }}, options)
        const again = await client.submit('echo', {{ value: 'größer' }}, options)
        const files = [new Blob(['one two'], {{ type: 'text/plain' }}), new Blob(['three'])]
        const upload = await client.submit('measure', {{ label: 'x' }}, {{ files }})
        const other = await client.submit('see_other')
        const last = await client.submit('echo', {{ value: 'last' }}, {{ after: [job.id, upload.id] }})
        console.log(JSON.stringify({{
            same: job.id === again.id, result: await job.result(), job: await job.get(), last: await last.result(),
            after: (await last.get()).after.length, gone: await job.delete(),
            sizes: (await upload.result()).map((file) => file.size), seen: await other.result(),
        }}))
        """,
    )
    assert (said["same"], said["result"], said["job"]["tags"]) == (True, "größer", ["a", "b"])
    assert (said["sizes"], said["seen"], said["last"], said["after"]) == ([7, 5], "seen", "last", 2)
    assert (await http.get(said["job"]["links"]["self"])).status_code == 410


async def test_our_client_says_what_went_wrong(node: str, service: Service, http: httpx2.AsyncClient) -> None:
    refused, hanging = await submit(http, "refuse", {"code": "nope"}), await submit(http, "hang-loop")
    await done(http, refused)
    await started(http, hanging)
    said = await run(
        node,
        f"""
        const client = new jobstream.Client({json.dumps(service.url)}, {{ patience: 0 }})
        const nobody = new jobstream.Client('http://127.0.0.1:9')
        const said = {{}}
        const attempts = {{
            unknownTask: () => client.submit('nonsense'),
            invalid: () => client.submit('order', {{ articles: [] }}),
            unknownJob: () => client.job('01JD0000000000000000000000').events().next(),
            failed: () => client.job({json.dumps(refused["id"])}).result(),
            noService: () => nobody.job('x').events().next(),
            noServiceToo: () => nobody.submit('echo'),
            aborted: () => client.job({json.dumps(hanging["id"])}).result(AbortSignal.timeout(200)),
            cancelled: async () => {{
                const job = client.job({json.dumps(hanging["id"])})
                await job.cancel()
                await job.result()
            }},
        }}
        for (const [name, attempt] of Object.entries(attempts)) {{
            try {{
                said[name] = ['no error', await attempt()]
            }} catch (error) {{
                said[name] = [error.name, error instanceof jobstream.ClientError, error.problem?.errors?.[0]?.pointer]
            }}
        }}
        console.log(JSON.stringify(said))
        """,
    )
    assert said == {
        "unknownTask": ["NotFound", True, None],
        "invalid": ["Rejected", True, "/articles"],
        "unknownJob": ["NotFound", True, None],
        "failed": ["JobFailed", True, None],
        "noService": ["Unreachable", True, None],
        "noServiceToo": ["Unreachable", True, None],
        "aborted": ["TimeoutError", False, None],
        "cancelled": ["JobCancelled", True, None],
    }


def test_frames_are_read_however_they_are_cut(node: str) -> None:
    finished = subprocess.run(
        [node, "--test", str(JS / "frames.test.mjs")], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert finished.returncode == 0, finished.stdout


def test_the_types_are_right(node: str) -> None:
    checker = JS / "node_modules" / ".bin" / "tsc"
    finished = subprocess.run(
        [node, str(checker), "--project", str(JS / "tsconfig.json")], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stdout


async def test_the_snippet_of_the_guide_does_what_it_says(node: str, service: Service) -> None:
    guide = (ROOT / "docs" / "browser.md").read_text(encoding="utf-8")
    snippet = next(block.partition("```")[0] for block in guide.split("```js\n") if "job.events()" in block)
    snippet = snippet.replace("'/static/jobstream.js'", json.dumps(str(WEB / "jobstream.js")))
    snippet = snippet.replace("new Client()", f"new Client({json.dumps(service.url)})")
    process = await asyncio.create_subprocess_exec(
        node, "--input-type=module", "--eval", snippet, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    lines = output.decode()
    assert lines.startswith("snapshot {")
    assert "\ndone {" in lines
    assert lines.index("\ndone {") < lines.rindex("words: 6")
