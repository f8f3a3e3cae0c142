"""The wheel: what is in it, and that it serves a guest who has packages of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "jobstream": ROOT / "jobstream",
    "jobstream_api": ROOT / "api" / "jobstream_api",
    "jobstream_workers": ROOT / "workers" / "jobstream_workers",
    "jobstream_cli": ROOT / "cli" / "jobstream_cli",
}

GUEST_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "guest"
version = "1.0"

[tool.hatch.build.targets.wheel]
only-include = ["api", "guest_tasks.py"]
"""
GUEST_TASKS = """
import api
from jobstream import task


@task
async def greet(name: str) -> str:
    return f"{api.GREETING}, {name}"
"""


@dataclass(frozen=True)
class Distributions:
    """The two files that a release consists of."""

    sdist: Path
    wheel: Path


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds the wheel, beside a guest's package called `api`."""

    root: Path
    work: Path
    """An empty directory to run in."""

    def run(self, code: str) -> str:
        """What a Python program prints in it."""
        command = [str(self.root / "bin" / "python"), "-c", code]
        return subprocess.run(
            command, cwd=self.work, env=self.variables(), check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def variables(self, **more: str) -> dict[str, str]:
        return {"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "HOME": str(self.work), **more}


def build(source: Path, target: Path, *kinds: str) -> None:
    """Build with the hatchling that is installed here: no network, no environment of its own."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(target), str(source)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The sdist, and the wheel made from that sdist."""
    target = tmp_path_factory.mktemp("dist")
    build(ROOT, target)
    (sdist,) = target.glob("*.tar.gz")
    (wheel,) = target.glob("*.whl")
    return Distributions(sdist, wheel)


@pytest.fixture(scope="module")
def guest_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of someone else, which has a package `api` and a module with a task."""
    source = tmp_path_factory.mktemp("guest")
    (source / "pyproject.toml").write_text(GUEST_PROJECT)
    (source / "guest_tasks.py").write_text(GUEST_TASKS)
    (source / "api").mkdir()
    (source / "api" / "__init__.py").write_text('GREETING = "Good morning"\n')
    build(source, source / "dist", "--wheel")
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(
    distributions: Distributions, guest_wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    root = tmp_path_factory.mktemp("venv")
    venv.create(root, symlinks=True)
    python = root / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    # The guest first: a wheel that ships a file of theirs would overwrite it without a word.
    for wheel in (guest_wheel, distributions.wheel):
        subprocess.run([*pip, str(wheel)], check=True, timeout=100)
    borrow_dependencies(root)
    return Environment(root, tmp_path_factory.mktemp("work"))


def borrow_dependencies(root: Path) -> None:
    """Let the environment see the packages installed here, after its own. Python does not read the .pth files of a
    directory named in a .pth file, so that the editable install of this checkout stays behind."""
    here = sysconfig.get_paths()
    (site_packages,) = root.glob("lib/python3.*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{here['purelib']}\n{here['platlib']}\n")


@contextmanager
def service(environment: Environment, port: int) -> Iterator[subprocess.Popen[str]]:
    """`jobstream dev` with the guest's tasks, in a process group of its own, which does not outlive the test."""
    command = [str(environment.root / "bin" / "jobstream"), "dev", "--redis", "fake", "--port", str(port)]
    process = subprocess.Popen(
        command,
        cwd=environment.work,
        env=environment.variables(JOBSTREAM_TASKS="guest_tasks"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)
        with process:
            pass


def kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_for_task(client: httpx2.Client, task: str, process: subprocess.Popen[str]) -> None:
    """Until a worker has announced the task. The service speaks to us over HTTP only, so that we have to ask."""
    deadline = time.monotonic() + 40
    pause = threading.Event()
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx2.TransportError):
            if client.get(f"/tasks/{task}").status_code == 200:
                return
        pause.wait(0.1)
    kill(process)
    pytest.fail(f"no worker announced {task!r}:\n{process.communicate()[0]}")


def test_the_wheel_holds_the_four_packages_whole_and_nothing_else(distributions: Distributions) -> None:
    sources = {
        f"{name}/{path.relative_to(directory).as_posix()}"
        for name, directory in PACKAGES.items()
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert any(name.endswith(".lua") for name in sources)
    assert {f"{package}/py.typed" for package in PACKAGES} <= sources

    with zipfile.ZipFile(distributions.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == sources


def test_the_wheel_names_its_licence_and_its_command(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as wheel:
        info = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
        assert wheel.read(info["LICENSE"]) == (ROOT / "LICENSE").read_bytes()
        assert "jobstream = jobstream_cli.main:main" in wheel.read(info["entry_points.txt"]).decode()


def test_the_sdist_holds_what_pyproject_names(distributions: Distributions) -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = [path.removeprefix("/") for path in document["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]]
    with tarfile.open(distributions.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO", "scripts/setup"} <= names
    for path in named:
        if (ROOT / path).is_file() or any((ROOT / path).glob("**/*.*")):
            assert any(name == path or name.startswith(f"{path}/") for name in names), path


def test_the_installed_packages_are_the_wheels_and_a_guests_api_is_left_alone(environment: Environment) -> None:
    code = "import jobstream, jobstream_api, jobstream_workers, jobstream_cli, api\n"
    code += "for m in (jobstream, jobstream_api, jobstream_workers, jobstream_cli, api): print(m.__file__)\n"
    code += "print(api.GREETING)"
    *files, greeting = environment.run(code).splitlines()
    assert len(files) == 5
    assert all(Path(file).is_relative_to(environment.root) for file in files), files
    assert greeting == "Good morning"


def test_a_guests_task_runs_in_the_installed_service(environment: Environment) -> None:
    port = free_port()
    with (
        service(environment, port) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client,
    ):
        wait_for_task(client, "greet", process)

        accepted = client.post("/greet", json={"name": "Ada"})
        assert accepted.status_code == 202, accepted.text
        job = accepted.json()
        client.get(job["links"]["events"])  # the stream ends with the job
        result = client.get(accepted.headers["Location"])
        assert (result.status_code, result.json()) == (200, "Good morning, Ada")

        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
        printed, _ = process.communicate(timeout=30)  # returns when the last process that holds the pipe has ended
        assert process.returncode == 0, printed
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
