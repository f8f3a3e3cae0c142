"""What linters say of the Dockerfile and of compose.yaml."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.deploy.conftest import missing
from tests.deploy.image import DOCKERFILE
from tests.deploy.manifests import DEPLOY


def lint(*command: str) -> str:
    """What a linter of the virtual environment finds."""
    program = shutil.which(command[0], path=str(Path(sys.executable).parent))
    if program is None:
        missing(f"no {command[0]}")
    finished = subprocess.run([str(program), *command[1:]], capture_output=True, text=True, timeout=100, check=False)
    return "" if finished.returncode == 0 else finished.stdout + finished.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert lint("hadolint", str(DOCKERFILE)) == ""


def test_compose_knows_everything_that_is_said() -> None:
    assert lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")) == ""
