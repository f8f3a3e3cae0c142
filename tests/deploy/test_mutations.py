"""The checks check: each of these mistakes, made in the overlay `production`, is found by a schema or by a check."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.checks import mistakes
from tests.deploy.manifests import K8S, Bundle, Document, render
from tests.deploy.schemas import VERSIONS, core_mistakes, extension, extension_mistakes
from tests.deploy.test_manifests import EXTERNAL

Mutate = Callable[[Bundle], object]


def get(bundle: Bundle, kind: str, name: str) -> Document:
    """What is to be broken."""
    found = bundle.get(kind, name) or bundle.generated(kind, name)
    assert found, f"no {kind} {name}"
    return found


def spec(bundle: Bundle, kind: str, name: str) -> Document:
    """Its spec."""
    return dict_at(get(bundle, kind, name), "spec")


def pod(bundle: Bundle, name: str, kind: str = "Deployment") -> Document:
    """The spec of its pods."""
    return dict_at(get(bundle, kind, name), "spec", "template", "spec")


def container(bundle: Bundle, name: str, kind: str = "Deployment") -> Document:
    """Its only container."""
    return dict_at(pod(bundle, name, kind), "containers", 0)


def data(bundle: Bundle) -> Document:
    """The settings."""
    return dict_at(get(bundle, "ConfigMap", "jobstream"), "data")


def dict_at(document: Any, *path: str | int) -> Document:
    """The dict at that place."""
    for step in path:
        document = document[step]
    assert isinstance(document, dict)
    return document


def trigger(bundle: Bundle) -> Document:
    """What KEDA is told to read."""
    return dict_at(spec(bundle, "ScaledObject", "worker"), "triggers", 0, "metadata")


MISTAKES: dict[str, Mutate] = {
    # What a schema says.
    "a field with a typo": lambda it: container(it, "api").update(imagePullPolice="Always"),
    "a number that is a word": lambda it: spec(it, "Deployment", "worker").update(revisionHistoryLimit="three"),
    "a value in a ConfigMap that is a number": lambda it: data(it).update(JOBSTREAM_MAX_JOBS=10),
    "a version of an API that is gone": lambda it: get(it, "PodDisruptionBudget", "api").update(
        apiVersion="policy/v1beta1"
    ),
    "a kind that nobody knows": lambda it: get(it, "HTTPRoute", "api").update(kind="HttpRoute"),
    "a key that KEDA does not know": lambda it: spec(it, "ScaledObject", "worker").update(maxReplicas=5),
    "a word where KEDA wants a number": lambda it: spec(it, "ScaledObject", "worker").update(pollingInterval="5"),
    "a route without a port": lambda it: dict_at(spec(it, "HTTPRoute", "api"), "rules", 0).update(
        backendRefs=[{"port": 80}]
    ),
    # Names that do not meet.
    "a selector that is not the pods'": lambda it: dict_at(
        spec(it, "Deployment", "api"), "selector", "matchLabels"
    ).update({"app.kubernetes.io/component": "web"}),
    "a Service that selects nothing": lambda it: dict_at(spec(it, "Service", "api"), "selector").update(
        {"app.kubernetes.io/component": "web"}
    ),
    "a Service with a port that its pods lack": lambda it: dict_at(spec(it, "Service", "api"), "ports", 0).update(
        targetPort="web"
    ),
    "a ConfigMap that is not there": lambda it: dict_at(container(it, "api"), "envFrom", 0, "configMapRef").update(
        name="jobstream-settings"
    ),
    "a Secret that nobody makes": lambda it: dict_at(container(it, "worker"), "envFrom", 1, "secretRef").update(
        name="jobstream-secrets"
    ),
    "a volume that is not mounted": lambda it: container(it, "worker").update(volumeMounts=[]),
    "a mount without a volume": lambda it: pod(it, "api").update(volumes=[]),
    "two mounts at one path": lambda it: container(it, "api")["volumeMounts"].append(
        {"name": "uploads", "mountPath": "/tmp"}
    ),
    "a claim that is not there": lambda it: get(it, "PersistentVolumeClaim", "uploads")["metadata"].update(
        name="files"
    ),
    "a ServiceAccount that is not there": lambda it: pod(it, "worker").update(serviceAccountName="jobs"),
    "a probe at a port that is not there": lambda it: dict_at(
        container(it, "worker"), "livenessProbe", "httpGet"
    ).update(port="http"),
    "a probe at a path that is not there": lambda it: dict_at(container(it, "api"), "readinessProbe", "httpGet").update(
        path="/healthz/ready"
    ),
    "an HPA for nothing": lambda it: dict_at(spec(it, "HorizontalPodAutoscaler", "api"), "scaleTargetRef").update(
        name="web"
    ),
    "a ScaledObject for nothing": lambda it: dict_at(spec(it, "ScaledObject", "worker"), "scaleTargetRef").update(
        name="jobs"
    ),
    "a route to nothing": lambda it: dict_at(spec(it, "HTTPRoute", "api"), "rules", 0, "backendRefs", 0).update(
        name="web"
    ),
    "a policy for nothing": lambda it: dict_at(spec(it, "NetworkPolicy", "api"), "podSelector", "matchLabels").update(
        {"app.kubernetes.io/component": "web"}
    ),
    "a PodMonitor that finds nothing": lambda it: dict_at(
        spec(it, "PodMonitor", "worker"), "selector", "matchLabels"
    ).update({"app.kubernetes.io/component": "jobs"}),
    "a label that is none": lambda it: get(it, "Deployment", "api")["metadata"]["labels"].update(team="a team"),
    "a document in another namespace": lambda it: get(it, "Service", "api")["metadata"].update(namespace="default"),
    # Numbers that do not add up.
    "a preStop that eats the grace": lambda it: dict_at(container(it, "api"), "lifecycle", "preStop", "sleep").update(
        seconds=18
    ),
    "no preStop": lambda it: container(it, "api").pop("lifecycle"),
    "a drain longer than the grace": lambda it: data(it).update(JOBSTREAM_SHUTDOWN_SECONDS="600"),
    "a grace shorter than the drain": lambda it: pod(it, "worker").pop("terminationGracePeriodSeconds"),
    "a drain shorter than a job": lambda it: data(it).update(JOBSTREAM_SHUTDOWN_SECONDS="10"),
    "a liveness kill that waits for the drain": lambda it: container(it, "worker")["livenessProbe"].pop(
        "terminationGracePeriodSeconds"
    ),
    "memory that is no amount": lambda it: dict_at(container(it, "api"), "resources", "limits").update(memory="256Mb"),
    "more asked for than may be had": lambda it: dict_at(container(it, "api"), "resources", "requests").update(
        memory="2Gi"
    ),
    "no limit of memory": lambda it: container(it, "worker")["resources"].pop("limits"),
    "a rollout that can take no step": lambda it: dict_at(
        spec(it, "Deployment", "api"), "strategy", "rollingUpdate"
    ).update(maxSurge=0),
    "a number of pods beside an autoscaler": lambda it: spec(it, "Deployment", "worker").update(replicas=3),
    "two autoscalers": lambda it: dict_at(spec(it, "HorizontalPodAutoscaler", "api"), "scaleTargetRef").update(
        name="worker"
    ),
    "a budget that blocks for ever": lambda it: spec(it, "PodDisruptionBudget", "worker").update(maxUnavailable=0),
    "a budget with both numbers": lambda it: spec(it, "PodDisruptionBudget", "api").update(minAvailable=1),
    "streams that are cut": lambda it: dict_at(spec(it, "HTTPRoute", "api"), "rules", 0).pop("timeouts"),
    # What the service is not.
    "a setting with a typo": lambda it: data(it).update(JOBSTREAM_MAXJOBS="20"),
    "a setting with a value that it cannot have": lambda it: data(it).update(JOBSTREAM_MAX_JOBS="many"),
    "a port that the service does not listen on": lambda it: dict_at(container(it, "api"), "ports", 0).update(
        containerPort=8080
    ),
    "an argument that is no role": lambda it: container(it, "worker").update(args=["work"]),
    "an API that is open to all": lambda it: data(it).update(JOBSTREAM_AUTH="open"),
    "a metric that is not there": lambda it: trigger(it).update(valueLocation='jobs_due{queue="default"}'),
    "a metric of a queue that is not served": lambda it: trigger(it).update(
        valueLocation='jobstream_jobs_due{queue="low"}'
    ),
    "slots that are not the worker's": lambda it: data(it).update(JOBSTREAM_MAX_JOBS="50"),
    "metrics in another namespace": lambda it: trigger(it).update(url="http://api.default.svc/metrics"),
    # What must not be.
    "a privileged container": lambda it: container(it, "worker")["securityContext"].update(privileged=True),
    "a pod that runs as root": lambda it: pod(it, "api")["securityContext"].update(runAsNonRoot=False),
    "a root that may be written to": lambda it: container(it, "api")["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "a directory of the node": lambda it: pod(it, "worker")["volumes"].append(
        {"name": "node", "hostPath": {"path": "/"}}
    ),
    "a token of the cluster": lambda it: pod(it, "api").pop("automountServiceAccountToken"),
    "a namespace that admits everything": lambda it: get(it, "Namespace", "jobstream")["metadata"]["labels"].pop(
        "pod-security.kubernetes.io/enforce"
    ),
    "workers that anybody reaches": lambda it: spec(it, "NetworkPolicy", "worker-metrics")["ingress"][0].pop("from"),
}


@pytest.fixture(scope="module")
def production() -> Bundle:
    """The overlay, before anything is broken."""
    return dataclasses.replace(render(K8S / "overlays" / "production"), external=EXTERNAL)


def test_every_mistake_is_found(production: Bundle, tmp_path: Path) -> None:
    assert mistakes(production) == []
    broken = {name: copy.deepcopy(production) for name in MISTAKES}
    for name, mutate in MISTAKES.items():
        mutate(broken[name])
        assert broken[name] != production, f"{name}: nothing was broken"
    # One run of the compiler for all.
    changed = [
        (name, document)
        for name, bundle in broken.items()
        for document, before in zip(bundle.documents, production.documents, strict=True)
        if document != before
    ]
    found = extension_mistakes([document for _, document in changed], tmp_path)
    refused = {changed[index][0] for index in found}
    refused |= {
        name for name, document in changed if not extension(document) and core_mistakes([document], VERSIONS[:1])
    }
    missed = [name for name, bundle in broken.items() if name not in refused and not mistakes(bundle)]
    print(f"{len(MISTAKES)} mistakes: {len(refused)} found by schemas, {len(missed)} by nobody")
    assert missed == []
