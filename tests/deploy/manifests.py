"""deploy/k8s as kubectl renders it, and how to find things in it."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
K8S = DEPLOY / "k8s"
OVERLAYS = ("local", "production")
COMPONENTS = ("redis", "uploads", "autoscale-api", "autoscale-worker", "monitoring", "gateway", "ingress")
PART_OF = "app.kubernetes.io/part-of"
COMPONENT = "app.kubernetes.io/component"

Document = dict[str, Any]


def kubectl() -> str | None:
    """The system's kubectl, or the one that scripts/setup has fetched."""
    return shutil.which("kubectl") or shutil.which(str(ROOT / ".venv" / "bin" / "kubectl"))


def render(directory: Path) -> Bundle:
    """What `kubectl apply -k` would send."""
    program = kubectl()
    assert program is not None
    finished = subprocess.run(
        [program, "kustomize", str(directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return Bundle(tuple(yaml.safe_load_all(finished.stdout)))


def render_with(component: str, directory: Path) -> Bundle:
    """The base and one component, in the namespace `jobstream`."""
    relative = [Path(*[".."] * len(directory.parts[1:]), *(K8S / name).parts[1:]) for name in ("base", "components")]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "jobstream",
        "resources": [str(relative[0])],
        "components": [str(relative[1] / component)],
        "replicas": [{"name": name, "count": 1} for name in ("api", "worker") if component != f"autoscale-{name}"],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(directory)


@dataclass(frozen=True)
class Workload:
    """What makes pods: a Deployment or a StatefulSet."""

    document: Document

    @property
    def name(self) -> str:
        """Its kind and name, for people."""
        return f"{self.document['kind']} {self.document['metadata']['name']}"

    @property
    def role(self) -> str:
        """api, worker or redis."""
        return str(self.labels.get(COMPONENT))

    @property
    def spec(self) -> Document:
        return dict(self.document["spec"])

    @property
    def labels(self) -> dict[str, str]:
        """Those of its pods."""
        return dict(self.spec["template"]["metadata"].get("labels", {}))

    @property
    def pod(self) -> Document:
        return dict(self.spec["template"]["spec"])

    @property
    def containers(self) -> list[Document]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """The named ports of its containers."""
        return {port["name"]: port["containerPort"] for each in self.containers for port in each.get("ports", [])}

    @property
    def probes(self) -> Iterator[tuple[Document, str, Document]]:
        """(container, kind, probe)."""
        for container in self.containers:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                if kind in container:
                    yield container, kind, container[kind]


@dataclass(frozen=True)
class Bundle:
    """Everything that is applied together. `external`: kinds and names of what others make."""

    documents: Sequence[Document]
    external: frozenset[tuple[str, str]] = frozenset()

    def of(self, *kinds: str) -> list[Document]:
        """All documents of these kinds."""
        return [document for document in self.documents if document["kind"] in kinds]

    def get(self, kind: str, name: str) -> Document | None:
        """The document of that kind and name, also when its name ends in kustomize's hash."""
        return next((each for each in self.of(kind) if each["metadata"]["name"] == name), None)

    def generated(self, kind: str, name: str) -> Document:
        """A ConfigMap or Secret by its name before the hash; empty when it is made elsewhere."""
        found = [each for each in self.of(kind) if each["metadata"]["name"].rpartition("-")[0] == name]
        return found[0] if found else {}

    def known(self, kind: str, name: str) -> bool:
        """Whether something of that kind and name is here, or made by others."""
        return self.get(kind, name) is not None or (kind, name) in self.external

    @property
    def workloads(self) -> list[Workload]:
        return [Workload(document) for document in self.of("Deployment", "StatefulSet")]

    def selected(self, labels: Mapping[str, str]) -> list[Workload]:
        """Whose pods have all of these labels."""
        return [each for each in self.workloads if labels.items() <= each.labels.items()]

    def role(self, role: str) -> Workload:
        """The only workload of that role."""
        (found,) = (each for each in self.workloads if each.role == role)
        return found

    def environment(self, container: Document) -> dict[str, str]:
        """What the container's ConfigMaps, Secrets and `env` say, as far as it is known here."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            for kind, reference in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if reference in source:
                    found |= values(self.get(kind, source[reference]["name"]))
        for variable in container.get("env", []):
            if "value" in variable:
                found[variable["name"]] = variable["value"]
                continue
            for kind, reference in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                if where := variable["valueFrom"].get(reference):
                    found[variable["name"]] = values(self.get(kind, where["name"])).get(where["key"], "")
        return found


def values(document: Document | None) -> dict[str, str]:
    """What a ConfigMap or a Secret holds, as text."""
    if document is None:
        return {}
    if document["kind"] == "Secret":
        decoded = {key: base64.b64decode(value).decode() for key, value in (document.get("data") or {}).items()}
        return decoded | (document.get("stringData") or {})
    return dict(document.get("data") or {})


def names(documents: Iterable[Document]) -> list[str]:
    """Kind and name of each."""
    return [f"{document['kind']} {document['metadata']['name']}" for document in documents]
