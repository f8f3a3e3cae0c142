"""Redis at its `maxmemory`: what is submitted is refused whole, whatever way it comes, and told when to come back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from arq.connections import ArqRedis

from jobstream.files import JobFile
from jobstream.redis import UrlSource
from jobstream.task import task
from tests.acceptance.guarded import Guarded, announce, guarded


@task(name="reads")
async def reads(files: list[JobFile]) -> int:
    """A task that takes files, which nobody runs."""
    return len(files)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Where uploads go."""
    return tmp_path / "files"


@pytest.fixture
async def service(real_source: UrlSource, real_client: ArqRedis, files: Path) -> AsyncIterator[Guarded]:
    """A service with tenants, a rate and a depth: everything that writes before a job is stored."""
    await announce(real_client, [reads])
    async with guarded(real_source, files_dir=files, tenant_rate="1000/m", queue_depth=1000) as service:
        yield service


@asynccontextmanager
async def full(client: ArqRedis) -> AsyncIterator[None]:
    """While the block runs, Redis takes nothing that needs memory."""
    await client.config_set("maxmemory", "100kb")
    try:
        yield
    finally:
        await client.config_set("maxmemory", "0")


async def contents(client: ArqRedis) -> dict[bytes, bytes]:
    """All that is stored."""
    return {key: await client.dump(key) for key in await client.keys("*")}


def kept_for(files: Path) -> set[str]:
    """Jobs that have uploads."""
    return {Path(folder).name for folder, _, names in os.walk(files) if names}  # some go while we look


REQUESTS = {
    "a job": ("/quiet", {"json": {"text": "x" * 2_000}}),
    "a job under a key": ("/quiet", {"json": {}, "headers": {"Idempotency-Key": '"k"'}}),
    "a batch": ("/jobs/batch", {"json": [{"task": "quiet"}] * 50}),
    "a batch under a key": ("/jobs/batch", {"json": [{"task": "quiet"}], "headers": {"Idempotency-Key": '"k"'}}),
    "an upload": ("/reads", {"files": [("files", ("a.bin", b"x" * 100_000))]}),
    "an upload under a key": (
        "/reads",
        {"files": [("files", ("a.bin", b"x" * 100_000))], "headers": {"Idempotency-Key": '"k"'}},
    ),
}


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_submit_is_refused_whole_and_taken_when_there_is_room(service: Guarded, files: Path, kind: str) -> None:
    path, options = REQUESTS[kind]
    async with service.http(await service.key("acme")) as http:
        assert (await http.get("/tasks")).status_code == 200  # the key's first use is noted
        before = await contents(service.client)
        async with full(service.client):
            refused: httpx2.Response = await http.post(path, **options)  # type: ignore[arg-type]
            assert refused.status_code == 503, refused.text
            assert refused.json()["code"] == "redis-unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            assert (await http.get("/jobs")).json()["jobs"] == []
        after = await contents(service.client)
        assert {key for key in after if after[key] != before.get(key)} <= {b"jobstream:epoch"}
        assert before.keys() == after.keys()
        accepted: httpx2.Response = await http.post(path, **options)  # type: ignore[arg-type]
        assert accepted.status_code == 202, accepted.text
        assert "idempotent-replayed" not in accepted.headers
    if "upload" in kind:
        while kept_for(files) != {accepted.json()["id"]}:  # the others go when it is clear that nothing was stored
            await service.client.ping()
