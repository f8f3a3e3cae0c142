"""What the tests of deploy/ need, and what becomes of them without it."""

from __future__ import annotations

import importlib.util
import os

import pytest

from tests.deploy import image
from tests.deploy.manifests import kubectl
from tests.deploy.schemas import JS


def missing(what: str) -> None:
    """Skip with the reason; where everything is to be tested, fail."""
    reason = f"{what}: `scripts/setup --dev --deploy` installs it, or says how"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    if kubectl() is None:
        missing("no kubectl on PATH")
    if importlib.util.find_spec("kubernetes_validate") is None:
        missing("no kubernetes-validate")
    if not (JS / "node_modules" / "@kubernetes-models" / "keda").exists():
        missing("the npm packages of tests/js are not installed")


@pytest.fixture(scope="session")
def built() -> str:
    """The image as the Dockerfile makes it."""
    if complaint := image.missing_tool():
        missing(complaint)
    return image.build()
