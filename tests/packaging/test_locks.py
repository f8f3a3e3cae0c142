"""The locks: what `make setup` installs is what pyproject.toml asks for, checked by hash and bound to no place."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ["runtime", "dev", "deploy"]

PIN = re.compile(
    r"([a-z0-9-]+)==([\w.+!]+)(?: ; [\w<>=!'. ()]+)? \\\n"  # name, version, marker
    r"(?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
)


def read(lock: str) -> str:
    return (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")


def pins(lock: str) -> dict[str, str]:
    return dict(PIN.findall(read(lock)))


def requirements(*, groups: tuple[str, ...]) -> list[Requirement]:
    """What pyproject.toml asks for: the dependencies, those of every extra, and those of these groups."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    lines: list[str] = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        lines += extra
    for group in groups:
        lines += [line for line in document["dependency-groups"][group] if isinstance(line, str)]
    return [found for line in lines if (found := Requirement(line)).name != project["name"]]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_pins_and_hashes_and_no_address(lock: str) -> None:
    without_pins = PIN.sub("", read(lock))
    assert [line for line in without_pins.splitlines() if not line.startswith("#")] == []
    assert "/" not in read(lock)


@pytest.mark.parametrize(("lock", "groups"), [("runtime", ("build",)), ("dev", ("build", "dev"))])
def test_a_lock_holds_what_pyproject_asks_for(lock: str, groups: tuple[str, ...]) -> None:
    pinned = pins(lock)
    for requirement in requirements(groups=groups):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in the lock: make lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: make lock"


def test_the_lock_of_the_npm_packages_holds_hashes_and_no_address() -> None:
    lock = json.loads((ROOT / "tests" / "js" / "package-lock.json").read_text(encoding="utf-8"))
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name


def test_the_runtime_is_tested_with_the_versions_that_run() -> None:
    assert pins("runtime").items() <= pins("dev").items()
