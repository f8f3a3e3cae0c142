"""The OpenAPI document, read by a linter: Redocly, with its recommended rules."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx2

from tests.acceptance.service import Service
from tests.browser.chromium import JS


def found(node: str, document: Path) -> list[str]:
    """What the linter says of it."""
    finished = subprocess.run(
        [node, JS / "lint.mjs", document], check=True, capture_output=True, text=True, timeout=100
    )
    return finished.stdout.splitlines()


def test_a_linter_finds_nothing_in_the_document(node: str, service: Service, tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    document.write_bytes(httpx2.get(f"{service.url}/openapi.json").content)
    assert found(node, document) == []
    members = json.loads(document.read_bytes())
    members["paths"]["/jobs"]["get"]["operationId"] = "monitor"
    document.write_text(json.dumps(members))
    [mistake] = found(node, document)
    assert "operation-operationId-unique" in mistake
