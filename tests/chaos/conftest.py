"""Options of the chaos run: how long, and from which seed."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known only when tests/chaos is named on the command line; in a run of all tests the defaults hold."""
    group = parser.getgroup("chaos")
    group.addoption("--chaos-long", action="store_true", help="hundreds of kills instead of two dozen")
    group.addoption("--chaos-seed", type=int, metavar="N", help="repeat the schedule of an earlier run")


@pytest.fixture
def chaos_long(pytestconfig: pytest.Config) -> bool:
    """Whether the long form was asked for."""
    return bool(pytestconfig.getoption("chaos_long", default=False))


@pytest.fixture
def chaos_seed(pytestconfig: pytest.Config) -> int:
    """The seed of every random choice."""
    seed: int | None = pytestconfig.getoption("chaos_seed", default=None)
    return int.from_bytes(os.urandom(4), "big") if seed is None else seed
