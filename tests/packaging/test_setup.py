"""The set-up script, on machines that lack something: it says what, and never takes half an install for a whole one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ["sh", "cat", "cksum", "dirname", "grep", "id", "mkdir", "mktemp", "rm"]

LOCKS = ["requirements/runtime.txt", "requirements/dev.txt", "tests/js/package-lock.json"]

OLD_PYTHON = """#!/bin/sh
case $2 in *version_info\\[:3\\]*) echo 3.9.2 ;; *) exit 1 ;; esac
"""
PYTHON_WITHOUT_VENV = f"""#!/bin/sh
case $2 in
    *ensurepip*) exit 1 ;;
    *_base_executable*) echo "$0" ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


class Machine:
    """A checkout on a machine that has a shell, a few programs, and what the test adds."""

    def __init__(self, root: Path) -> None:
        self.checkout = root / "check out"
        self.bin = root / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            program = shutil.which(tool)
            assert program, tool
            (self.bin / tool).symlink_to(program)
        for name in ("scripts/setup", "pyproject.toml", *LOCKS):
            copy = self.checkout / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy)

    def add(self, name: str, script: str) -> None:
        program = self.bin / name
        program.write_text(script)
        program.chmod(0o755)

    def setup(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "scripts" / "setup", *options],
            env={"PATH": str(self.bin), "TMPDIR": str(self.bin), **variables},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_python_that_is_too_old_is_named_with_its_version(machine: Machine) -> None:
    machine.add("python3", OLD_PYTHON)
    finished = machine.setup()
    assert finished.returncode == 1
    assert "needs Python 3.11 or newer, and python3 is 3.9.2" in finished.stderr


def test_a_machine_without_python_is_told_so(machine: Machine) -> None:
    finished = machine.setup()
    assert finished.returncode == 1
    assert "python3 is missing" in finished.stderr


def test_a_python_that_cannot_make_a_venv_is_reported_before_anything_is_made(machine: Machine) -> None:
    machine.add("python3", PYTHON_WITHOUT_VENV)
    finished = machine.setup()
    assert finished.returncode == 1
    assert "python3 cannot make virtual environments" in finished.stderr
    assert not (machine.checkout / ".venv").exists()


def test_a_missing_redis_server_is_reported_before_anything_is_made(machine: Machine) -> None:
    finished = machine.setup("--dev", "--redis", PYTHON=sys.executable)
    assert finished.returncode == 1
    assert "put redis-server or valkey-server on PATH" in finished.stderr
    assert not (machine.checkout / ".venv").exists()


def test_where_ci_is_set_a_missing_browser_is_an_error_before_anything_is_made(machine: Machine) -> None:
    finished = machine.setup("--dev", "--browser", PYTHON=sys.executable, CI="true")
    assert finished.returncode == 1
    assert "the tests in real clients need a browser: put chromium on PATH" in finished.stderr
    assert not (machine.checkout / ".venv").exists()


def test_where_ci_is_set_a_missing_nginx_is_an_error(machine: Machine) -> None:
    finished = machine.setup("--dev", "--nginx", PYTHON=sys.executable, CI="true")
    assert finished.returncode == 1
    assert "the tests behind a proxy need one: put nginx on PATH" in finished.stderr


def test_where_ci_is_set_a_missing_prometheus_is_an_error(machine: Machine) -> None:
    finished = machine.setup("--dev", "--prometheus", PYTHON=sys.executable, CI="true")
    assert finished.returncode == 1
    assert "the tests of rules and dashboard need Prometheus: put prometheus and promtool on PATH" in finished.stderr


def test_where_ci_is_set_missing_containers_are_an_error(machine: Machine) -> None:
    finished = machine.setup("--dev", "--deploy", PYTHON=sys.executable, CI="true")
    assert finished.returncode == 1
    assert "the tests of deploy/ need containers: install Podman" in finished.stderr


def test_a_node_that_is_too_old_is_none(machine: Machine) -> None:
    machine.add("chromium", "#!/bin/sh\n")
    machine.add("npm", "#!/bin/sh\n")
    machine.add("node", "#!/bin/sh\nexit 1\n")
    finished = machine.setup("--dev", "--browser", PYTHON=sys.executable, CI="true")
    assert finished.returncode == 1
    assert "put node, 18 or later, and npm on PATH" in finished.stderr


def test_without_ci_a_browser_that_cannot_be_had_is_said_and_set_up_goes_on(machine: Machine) -> None:
    machine.add("chromium", "#!/bin/sh\n")
    machine.add("node", "#!/bin/sh\n")
    machine.add("npm", "#!/bin/sh\necho no network\nexit 1\n")
    finished = machine.setup("--dev", "--browser", PYTHON=sys.executable, PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null")
    assert "the tests in real clients will be skipped: this failed: npm ci" in finished.stdout
    assert "no network" in finished.stderr
    assert "setup: installing requirements/dev.txt" in finished.stdout


def test_npm_packages_are_installed_once(machine: Machine) -> None:
    machine.add("chromium", "#!/bin/sh\n")
    machine.add("node", "#!/bin/sh\n")
    machine.add("npm", "#!/bin/sh\nmkdir node_modules && echo installed\n")  # would fail the second time
    for said in (True, False):
        finished = machine.setup("--browser", PYTHON=sys.executable, PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null")
        assert ("installing the npm packages of tests/js" in finished.stdout) == said
        assert "will be skipped" not in finished.stdout


def test_a_half_made_venv_is_started_over_and_a_failed_install_shows_pips_words(machine: Machine) -> None:
    remains = machine.checkout / ".venv" / "remains"
    remains.parent.mkdir()
    remains.touch()
    (remains.parent / ".unfinished").touch()

    finished = machine.setup(PYTHON=sys.executable, PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null")

    assert finished.returncode == 1
    assert "setup: making .venv with Python 3." in finished.stdout
    assert not remains.exists()
    assert "No matching distribution found" in finished.stderr
    assert not (remains.parent / ".installed").exists()
