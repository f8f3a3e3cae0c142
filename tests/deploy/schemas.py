"""What Kubernetes and its extensions say a document may hold.

Kubernetes's own kinds are checked by kubernetes-validate, which carries the schemas of each version; a kind that it
does not know is a mistake, unless its type is among those of the npm packages `@kubernetes-models/…`. Those are
TypeScript, made from the definitions that the extensions publish: a document of such a kind is compiled as a literal of
its type.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.deploy.manifests import ROOT, Document

JS = ROOT / "tests" / "js"
VERSIONS = ("1.33", "1.36")
"""The oldest and the newest Kubernetes that deploy/README.md names."""

EXTENSIONS = {
    ("keda.sh/v1alpha1", "ScaledObject"): "keda/keda.sh/v1alpha1",
    ("keda.sh/v1alpha1", "TriggerAuthentication"): "keda/keda.sh/v1alpha1",
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): "gateway-api/gateway.networking.k8s.io/v1",
    ("monitoring.coreos.com/v1", "PodMonitor"): "prometheus-operator/monitoring.coreos.com/v1",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "prometheus-operator/monitoring.coreos.com/v1",
}


def extension(document: Document) -> str | None:
    """Where the type of its kind is; None for Kubernetes's own kinds, and for unknown ones."""
    return EXTENSIONS.get((str(document.get("apiVersion")), str(document.get("kind"))))


def core_mistakes(documents: Sequence[Document], versions: Sequence[str] = VERSIONS) -> list[str]:
    """What is wrong with documents of kinds that are not an extension's."""
    import kubernetes_validate

    found = []
    for document in documents:
        if extension(document):
            continue
        what = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
        for version in versions:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                found.append(f"{what}: Kubernetes {version} knows no {document.get('apiVersion')}")
            except kubernetes_validate.ValidationError as error:
                found.append(f"{what}: {error.message}")
    return found


def extension_mistakes(documents: Sequence[Document], directory: Path) -> dict[int, str]:
    """What is wrong with documents of the extensions' kinds: index → the compiler's words."""
    lines = []
    for index, document in enumerate(documents):
        place = extension(document)
        # One line each: the compiler's line is the index.
        lines.append(
            "export {};"
            if place is None
            else f"export const _{index}: import({json.dumps(str(JS / 'node_modules/@kubernetes-models' / place))})"
            f".I{document['kind']} = {json.dumps(document)};"
        )
    (directory / "documents.ts").write_text("\n".join(lines) + "\n")
    finished = subprocess.run(
        [
            str(JS / "node_modules" / ".bin" / "tsc"),
            *"--ignoreConfig --noEmit --strict --skipLibCheck --target es2023 --module esnext".split(),
            *"--moduleResolution bundler --pretty false".split(),
            "documents.ts",
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    found: dict[int, str] = {}
    for line in finished.stdout.splitlines():
        place, colon, words = line.partition("): ")
        if colon and place.startswith("documents.ts("):
            found[int(place.removeprefix("documents.ts(").partition(",")[0]) - 1] = words
    assert finished.returncode == 0 or found, finished.stdout + finished.stderr
    return found
