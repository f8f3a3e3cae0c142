"""Clients that others wrote, unchanged: they hand a job over, wait for it and read its result."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any

import httpx
import httpx2
import pytest
import requests
from azure.core import PipelineClient
from azure.core.exceptions import HttpResponseError
from azure.core.polling import LROPoller
from azure.core.polling.base_polling import LROBasePolling
from azure.core.rest import HttpRequest

from tests.acceptance.service import Service


def _azure(service: Service, task: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> LROPoller[Any]:
    """What a generated Azure SDK does with a long-running operation."""
    client: Any = PipelineClient("{endpoint}")
    request = HttpRequest("POST", f"{service.url}/{task}", json=body, headers=headers)
    first = client._pipeline.run(request, stream=False)
    first.http_response.raise_for_status()

    def result(response: Any) -> Any:
        return response.http_response.json()

    return LROPoller(client, first, result, LROBasePolling(timeout=1, path_format_arguments={"endpoint": service.url}))


async def test_an_azure_poller_waits_for_the_operation_and_gets_the_result(service: Service) -> None:
    poller = await asyncio.to_thread(_azure, service, "primes", {"limit": 100_000})
    result = await asyncio.to_thread(poller.result, 60)
    assert poller.status().lower() == "succeeded"
    assert result["count"] == 9592


async def test_an_azure_poller_learns_that_the_operation_failed(service: Service) -> None:
    poller = await asyncio.to_thread(_azure, service, "refuse", {})
    with pytest.raises(HttpResponseError) as raised:
        await asyncio.to_thread(poller.result, 60)
    assert poller.status().lower() == "failed"
    assert raised.value.error is not None
    assert raised.value.error.code == "refused"


async def test_requests_completes_the_flow(service: Service) -> None:
    def flow() -> Any:
        with requests.Session() as session:
            first = session.post(f"{service.url}/words", json={"text": "to be"}, timeout=20)
            assert first.status_code == 202
            url = service.url + first.headers["Location"]
            while (answer := session.get(url, headers={"Prefer": "wait=20"}, timeout=40)).status_code == 202:
                pass
            return answer.json()

    assert (await asyncio.to_thread(flow))["words"] == 2


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_httpx_completes_the_flow(service: Service, library: Any) -> None:
    async with library.AsyncClient(base_url=service.url, timeout=40) as http:
        first = await http.post("/words", json={"text": "to be"})
        answer = await http.get(first.headers["Location"], headers={"Prefer": "wait=20"})
        assert (answer.status_code, answer.json()["words"]) == (200, 2)
        followed = await http.post("/see_other", json={}, follow_redirects=True)
        assert followed.status_code in (200, 202)


async def test_curl_completes_the_flow(service: Service) -> None:
    def curl(*arguments: str) -> str:
        return subprocess.run(
            ["curl", "--silent", "--show-error", "--fail", "--max-time", "60", *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    typed = ("--header", "Content-Type: application/json")
    head, _, body = (
        await asyncio.to_thread(curl, "--include", f"{service.url}/words", *typed, "--data", '{"text": "to be"}')
    ).partition("\n\n")
    location = next(line for line in head.splitlines() if line.lower().startswith("location:")).split()[1]
    assert json.loads(body)["links"]["result"] == location
    result = await asyncio.to_thread(curl, "--header", "Prefer: wait=20", service.url + location)
    assert json.loads(result)["words"] == 2
    at_once = await asyncio.to_thread(
        curl, f"{service.url}/words", *typed, "--header", "Prefer: wait=20", "--data", '{"text": "to be"}'
    )
    assert json.loads(at_once) == json.loads(result)
