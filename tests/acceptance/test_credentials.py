"""How clients show who they are: header, command line, Python client; what answers and documents say about it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import pytest

from jobstream.caller import Scope
from jobstream.client import Client, Unauthorized
from jobstream.redis import RedisSource
from jobstream_cli.exits import Exit
from tests.acceptance import wire
from tests.acceptance.guarded import Guarded, guarded
from tests.acceptance.service import ROOT


@pytest.fixture
async def service(source: RedisSource) -> AsyncIterator[Guarded]:
    async with guarded(source) as service:
        yield service


async def test_a_key_is_taken_from_either_header(service: Guarded) -> None:
    key = await service.key("acme")
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer  {key}"},
        {"X-API-Key": key},
    ):
        async with service.http(**headers) as http:
            assert (await http.get("/jobs")).status_code == 200
    for headers in (
        {"Authorization": key},
        {"Authorization": f"Basic {key}"},
        {"Authorization": "Bearer x", "X-API-Key": key},
    ):
        async with service.http(**headers) as http:
            wire.problem(await http.get("/jobs"), 401, "unauthorized")


async def test_nobody_without_a_key_learns_whether_their_request_makes_sense(service: Guarded) -> None:
    async with service.http() as http:
        for path in ("/jobs?status=nonsense", "/no-such-task", "/jobs/nothing"):
            wire.problem(await http.get(path), 401, "unauthorized")
        wire.problem(await http.post("/quiet?nonsense=1", content=b"{"), 401, "unauthorized")
        for path in ("/livez", "/readyz", "/", "/docs", "/openapi.json", "/problems/unauthorized"):
            assert (await http.get(path)).status_code == 200


async def test_the_python_client_and_the_command_line_send_a_token(service: Guarded) -> None:
    key = await service.key("acme", Scope.SUBMIT)
    async with Client(service.url, token=key) as client:
        assert (await client.submit("quiet", {})).id
        with pytest.raises(Unauthorized):
            await client.job("nothing").get()
    for token, command, code in (
        (key, ["submit", "quiet"], Exit.OK),
        (key, ["list"], Exit.UNAUTHORIZED),
        ("", ["submit", "quiet"], Exit.UNAUTHORIZED),
    ):
        env = {name: value for name, value in os.environ.items() if not name.startswith("JOBSTREAM_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jobstream_cli", "--url", service.url, *command),
            env=env | {"JOBSTREAM_TOKEN": token},
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        assert process.returncode == code, said
        assert key.encode() not in said


async def test_the_document_says_what_each_operation_asks_for(service: Guarded) -> None:
    async with service.http(await service.key("acme")) as http:
        document = (await http.get("/openapi.json")).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey", "ticket"}
    asked = {
        (method, path): operation.get("security")
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in ("get", "post", "delete")
    }
    assert asked["get", "/livez"] is None
    assert asked["post", "/quiet"] == [{"bearer": ["submit"]}, {"apiKey": ["submit"]}]
    assert asked["delete", "/quiet/{job_id}"] == [{"bearer": ["cancel"]}, {"apiKey": ["cancel"]}]
    assert asked["get", "/tasks"] == [{"bearer": []}, {"apiKey": []}]
    assert asked["get", "/jobs/{job_id}/events"] == [{"bearer": ["read"]}, {"apiKey": ["read"]}, {"ticket": []}]
    public = {path for (_, path), security in asked.items() if security is None}
    assert public <= {"/livez", "/readyz", "/problems", "/problems/{code}"}


async def test_an_open_service_documents_no_keys(source: RedisSource) -> None:
    async with guarded(source, auth=None) as service, service.http() as http:
        document = (await http.get("/openapi.json")).json()
        assert "securitySchemes" not in document["components"]
        assert (await wire.submit(http, "quiet"))["owner"] is None
        refused = await http.post("/quiet", json={}, headers={"Origin": "https://example.org"})
        wire.problem(refused, 401, "unauthorized")
        refused = await http.get("/jobs", headers={"Host": "rebound.example.org"})
        wire.problem(refused, 401, "unauthorized")
