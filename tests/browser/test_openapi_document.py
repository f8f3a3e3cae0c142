"""The OpenAPI document, read by a linter: Redocly, with its recommended rules."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.service import Service
from tests.browser.chromium import JS

OLDEST_NODE = 20
QUIET = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true", "CI": "true"}


def test_a_linter_finds_nothing_in_the_document(node: str, service: Service, tmp_path: Path) -> None:
    version = subprocess.run([node, "--version"], check=True, capture_output=True, text=True, timeout=30).stdout
    if int(version.lstrip("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"the linter needs Node.js {OLDEST_NODE}, and this is {version.strip()}")
    (tmp_path / "openapi.json").write_bytes(httpx2.get(f"{service.url}/openapi.json").content)
    (tmp_path / "redocly.yaml").write_text("extends: [recommended]\ntelemetry: 'off'\n")
    finished = subprocess.run(
        [node, JS / "node_modules/@redocly/cli/bin/cli.js", "lint", "openapi.json", "--max-problems", "10"],
        cwd=tmp_path,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=100,
    )
    said = finished.stdout + finished.stderr
    assert finished.returncode == 0, said
    assert "Your API description is valid" in said
    assert "Warning was generated" not in said, said
