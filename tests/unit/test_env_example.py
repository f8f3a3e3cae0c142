"""`.env.example` names every setting with its default, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobstream_api.settings import ApiSettings
from jobstream_workers.settings import WorkerSettings

ROOT = Path(__file__).parents[2]


def test_the_example_is_what_the_settings_say() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "env_example"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / ".env.example").read_text() == printed, "run: .venv/bin/python scripts/env_example > .env.example"


def test_every_variable_that_the_code_names_is_in_the_example() -> None:
    """Settings, and the variables that are read by name."""
    named: set[str] = set()
    for folder in ("jobstream", "api", "workers", "cli"):
        for source in (ROOT / folder).rglob("*.py"):
            named |= set(re.findall(r"JOBSTREAM_[A-Z_]+[A-Z]", source.read_text()))
    example = (ROOT / ".env.example").read_text()
    assert {name for name in named if f"#{name}=" not in example} <= {"JOBSTREAM_FETCH"}


@pytest.mark.parametrize("settings", [ApiSettings, WorkerSettings])
def test_the_example_with_every_line_uncommented_changes_nothing(
    settings: type[ApiSettings | WorkerSettings], tmp_path: Path
) -> None:
    text = re.sub(r"(?m)^#(JOBSTREAM_)", r"\1", (ROOT / ".env.example").read_text())
    (tmp_path / "all.env").write_text(text)
    assert settings(_env_file=tmp_path / "all.env") == settings(_env_file=None)


def test_a_setting_comes_from_the_environment_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("JOBSTREAM_PORT=1111\nJOBSTREAM_HOST=::1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOBSTREAM_PORT", "2222")
    settings = ApiSettings()
    assert (settings.port, settings.host) == (2222, "::1")
