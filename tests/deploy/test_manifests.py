"""The manifests: they render, Kubernetes knows what they say, and what they name is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from tests.deploy.checks import mistakes
from tests.deploy.manifests import COMPONENTS, DEPLOY, K8S, OVERLAYS, Bundle, names, render, render_with
from tests.deploy.schemas import core_mistakes, extension_mistakes

EXTERNAL = frozenset(
    {
        ("Secret", "jobstream"),
        ("Secret", "redis"),
        ("Secret", "jobstream-metrics"),  # an API key
    }
)
"""What deploy/README.md says that others make, where an overlay does not."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Each overlay, and the base with each component alone."""
    found = {name: render(K8S / "overlays" / name) for name in OVERLAYS}
    found |= {f"base + {name}": render_with(name, tmp_path_factory.mktemp(name)) for name in COMPONENTS}
    return {name: dataclasses.replace(bundle, external=EXTERNAL) for name, bundle in found.items()}


def test_kubernetes_knows_everything_that_is_said(bundles: dict[str, Bundle]) -> None:
    documents = {str(document): document for bundle in bundles.values() for document in bundle.documents}
    assert core_mistakes(list(documents.values())) == []


def test_the_extensions_know_everything_that_is_said_to_them(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    documents = [document for bundle in bundles.values() for document in bundle.documents]
    found = extension_mistakes(documents, tmp_path)
    assert {names([documents[index]])[0]: words for index, words in found.items()} == {}


@pytest.mark.parametrize("which", [*OVERLAYS, *(f"base + {name}" for name in COMPONENTS)])
def test_what_is_named_is_there_and_times_add_up(bundles: dict[str, Bundle], which: str) -> None:
    assert mistakes(bundles[which]) == []


@pytest.mark.parametrize("which", OVERLAYS)
def test_somebody_says_how_many_pods_an_overlay_has(bundles: dict[str, Bundle], which: str) -> None:
    scaled = {
        each["spec"]["scaleTargetRef"]["name"] for each in bundles[which].of("HorizontalPodAutoscaler", "ScaledObject")
    }
    for workload in bundles[which].workloads:
        assert ("replicas" in workload.spec) != (workload.document["metadata"]["name"] in scaled), workload.name


def test_the_alerts_are_those_that_are_tested(bundles: dict[str, Bundle]) -> None:
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    (rule,) = bundles["base + monitoring"].of("PrometheusRule")
    assert rule["spec"]["groups"] == alerts["groups"]
