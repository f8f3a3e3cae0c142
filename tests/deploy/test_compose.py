"""deploy/compose.yaml at work: everything starts, a job is done, everything goes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.deploy import image
from tests.deploy.manifests import DEPLOY
from tests.ports import free_port

pytestmark = pytest.mark.timeout(900)

PATIENCE = 300.0


@pytest.fixture
def compose(built: str, tmp_path: Path) -> Iterator[str]:
    """The project's name; its API is at PORT."""
    project = f"jobstream-test-compose-{os.getpid()}"
    # The only change: Redis's image is the stand-in, too.
    (tmp_path / "redis.yaml").write_text(yaml.safe_dump({"services": {"redis": {"image": image.base()}}}))
    port = str(free_port())
    environment = image.ENVIRONMENT | {
        "REDIS_PASSWORD": "letters0and1digits",
        "JOBSTREAM_IMAGE": built,
        "JOBSTREAM_PORT": port,
    }

    def run(*words: str) -> None:
        files = ["--file", str(DEPLOY / "compose.yaml"), "--file", str(tmp_path / "redis.yaml")]
        program = str(Path(sys.executable).parent / "podman-compose")
        finished = subprocess.run(
            [program, "--project-name", project, *files, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr

    try:
        run("up", "--detach", "--no-build")
        yield f"{project} {port}"
    finally:
        run("down", "--volumes", "--timeout", "10")


def test_compose_starts_a_service_that_does_a_job(compose: str) -> None:
    project, port = compose.split()
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        deadline = time.monotonic() + PATIENCE
        while not ready(client):
            assert time.monotonic() < deadline, image.podman("logs", f"{project}_api_1", check=False)
            time.sleep(0.1)
        scopes = ["--scope", "submit", "--scope", "read"]
        said = image.podman("exec", f"{project}_api_1", "jobstream", "keys", "create", "--tenant", "me", *scopes)
        client.headers["Authorization"] = f"Bearer {re.findall(r'jsk_[^ ]+', said)[-1].strip()}"
        assert client.post("/words", json={"text": "to be"}, headers={"Authorization": ""}).status_code == 401
        text = {"files": ("note.txt", b"to be or not to be")}
        job = client.post("/files", files=text).raise_for_status().json()
        while not job["done"]:
            assert time.monotonic() < deadline, job
            job = client.get(job["links"]["self"], headers={"Prefer": "wait=5"}).json()
    assert job["status"] == "succeeded", job["error"]


def ready(client: httpx2.Client) -> bool:
    """Whether the API is, and has heard of the worker's tasks."""
    try:
        client.get("/readyz").raise_for_status()
        return "files" in client.get("/openapi.json").text
    except httpx2.HTTPError:
        return False
