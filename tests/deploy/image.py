"""deploy/Dockerfile: what it says, and the image that is made of it.

Its base comes from a registry of images, which a test must not need. So a stand-in is made of Debian's packages: the
same files at other places, with a Redis in it to stand for Redis's image, too. It is made once on a machine.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deploy.manifests import DEPLOY, ROOT

DOCKERFILE = DEPLOY / "Dockerfile"
STANDIN = "localhost/jobstream-test-base"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
IMAGE = "localhost/jobstream-test"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "jobstream", "api", "workers", "cli")
PACKAGES = "python3,python3-venv,ca-certificates,redis-server"
RELEASE = "trixie"

ENVIRONMENT = os.environ | {"CONTAINERS_CONF": str(Path(__file__).parent / "containers.conf")}


@functools.cache
def image_environment() -> dict[str, str]:
    """The settings that the image's last stage brings."""
    last = DOCKERFILE.read_text().replace("\\\n", " ").rpartition("\nFROM ")[2]
    (line,) = re.findall(r"^ENV (.*)$", last, flags=re.MULTILINE)
    return dict(word.split("=", 1) for word in line.split())


def podman(*arguments: str, timeout: float = 100, check: bool = True) -> str:
    """What podman says. Raises AssertionError with its complaint."""
    finished = subprocess.run(
        ["podman", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    assert not check or finished.returncode == 0, f"podman {' '.join(arguments)}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout.strip()


def missing_tool() -> str | None:
    """What is not there to make images with."""
    for program in ("podman", "mmdebstrap"):
        if shutil.which(program) is None:
            return f"no {program}"
    said = subprocess.run(["podman", "info"], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    return None if said.returncode == 0 else f"podman does not work here: {said.stderr[-500:]}"


@contextmanager
def _alone() -> Iterator[None]:
    """One at a time on this machine, whatever checkout asks."""
    with (Path(tempfile.gettempdir()) / f"jobstream-test-images-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def base() -> str:
    """The stand-in's name; it is made when it is not there."""
    recipe = f"{RELEASE} {PACKAGES} 2"
    tag = f"{STANDIN}:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if exists(tag):
        return tag
    hooks = ['--customize-hook=install -d -o 999 -g 999 "$1/data"']
    if CERTIFICATES.exists():  # packages may come by way of a proxy with certificates of its own
        hooks.append(f"--customize-hook=copy-in {CERTIFICATES} {CERTIFICATES.parent}")
    with tempfile.TemporaryDirectory() as directory:
        root = f"{directory}/root.tar"
        made = subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", *hooks, RELEASE, root],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        podman("import", "--quiet", root, tag, timeout=200)
    return tag


def exists(tag: str) -> bool:
    """Whether podman has it."""
    return bool(podman("images", "--quiet", tag, check=False))


def build() -> str:
    """The image of this checkout on the stand-in; made once for each state of what goes into it."""
    with _alone():
        tag = f"{IMAGE}:{_digest(base())}"
        if not exists(tag):
            podman(
                *("build", "--quiet", "--layers=false", "--network", "host", "--build-arg", f"BASE={base()}"),
                *("--file", str(DOCKERFILE), "--tag", tag, str(ROOT)),
                timeout=400,
            )
            _forget_yesterdays()
    return tag


def _digest(under: str) -> str:
    """Of all that goes into the image."""
    found = hashlib.sha256(under.encode())
    for name in ("deploy/Dockerfile", ".dockerignore", "requirements/runtime.txt", *SOURCES):
        place = ROOT / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _forget_yesterdays() -> None:
    """Images of other states, unless they are in use."""
    old = podman("images", "--quiet", "--filter", f"reference={IMAGE}", "--filter", "until=24h", check=False)
    for name in old.split():
        podman("rmi", name, check=False)


def build_with_tasks(image: str, tag: str, module: Path) -> str:
    """An image made from `image` as deploy/README.md says, with a module of tasks."""
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(module, directory)
        lines = [f"FROM {image}", f"COPY {module.name} /app/", f"ENV JOBSTREAM_TASKS={module.stem}"]
        (Path(directory) / "Dockerfile").write_text("\n".join(lines) + "\n")
        podman("build", "--quiet", "--layers=false", "--tag", tag, directory, timeout=200)
    return tag


def size(tag: str) -> int:
    """Bytes of the image beyond its base."""
    (found,) = json.loads(podman("image", "inspect", tag))
    (under,) = json.loads(podman("image", "inspect", base()))
    return int(found["Size"]) - int(under["Size"])
