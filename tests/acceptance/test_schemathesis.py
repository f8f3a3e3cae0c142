"""schemathesis makes hundreds of requests from the OpenAPI document, one by one and in chains: nothing is found."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.acceptance.service import ROOT, Service

HERE = Path(__file__).parent
SECONDS = 20
"""Its own limit; with its start and its last request it takes a little longer."""

NOT_ASKED = "|".join(
    (
        *("^/(hang|die|puppet|fetch|crash|refuse|newcomer)", "/events$"),
        *(r"^/webhooks(/\{webhook_id\})?$", r"^/schedules/\{schedule_name\}$", "^/jobs/batch$"),
    )
)
"""Tasks that hang or fail on purpose, one that asks other machines, streams without an end, and what takes URLs, crons
or names of tasks."""


async def test_schemathesis_finds_nothing(service: Service, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
        *("run", f"{service.url}/openapi.json", "--seed", "1", "--max-examples", "2", "--max-time", str(SECONDS)),
        *("--phases", "examples,coverage,fuzzing,stateful", "--exclude-path-regex", NOT_ASKED),
        *("--request-timeout", "10", "--no-color", "--warnings", "off", "--generation-database", "none"),
    ]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.acceptance.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    finished = await asyncio.to_thread(
        subprocess.run, command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=110
    )
    assert finished.returncode == 0, finished.stdout[-8_000:] + finished.stderr[-2_000:]
    counted = re.search(r"(\d+) generated", finished.stdout)
    assert counted, finished.stdout[-2_000:]
    assert int(counted[1]) > 20  # as many as the machine does in that time
