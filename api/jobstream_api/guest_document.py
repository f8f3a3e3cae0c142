"""A guest's own OpenAPI document, with a typed operation for each announced task behind the router's prefix."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI

from jobstream.call import NOBODY
from jobstream.errors import ConfigurationError
from jobstream_api.failures import PROBLEM
from jobstream_api.jobs import service_of
from jobstream_api.openapi import JOB_ENDED, add_task
from jobstream_api.routes.problem_pages import CATALOGUE
from jobstream_api.service import Service

_COMPONENTS = "#/components/schemas/"
_OURS = "Jobstream"
"""What the names of our schemas begin with: the guest may have a `Job` of its own."""

_LINKED = {"monitor": ("/jobs/{job_id}", "get"), "cancel": ("/jobs/{job_id}/cancel", "post")}


def describe_tasks(app: FastAPI) -> None:
    """Let the document of an app that includes the router (`/openapi.json`, `/docs`) have the tasks' operations.

    They follow the catalogue while the app runs: a new worker's task is there without a restart. Before it runs, the
    document is as it was.
    """
    app.openapi = _GuestDocument(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


class _GuestDocument:
    """Made anew when the catalogue, or the app's own part, changes."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._base = app.openapi
        self._made: tuple[int, dict[str, Any], dict[str, Any]] | None = None

    def __call__(self) -> dict[str, Any]:
        base = self._base()
        try:
            service = service_of(self._app)
        except ConfigurationError:  # it does not run yet
            return base
        version = service.tasks.version
        if self._made is None or self._made[0] != version or self._made[1] is not base:
            self._made = (version, base, self._with_tasks(base, service))
        return self._made[2]

    def _with_tasks(self, base: dict[str, Any], service: Service) -> dict[str, Any]:
        ours: dict[str, Any] = {"paths": {}, "components": {"schemas": {"Problem": PROBLEM, "JobEnded": JOB_ENDED}}}
        for task in service.tasks.tasks.values():
            if task.input_schema != NOBODY:
                add_task(ours, task, accepted_status=service.accepted_status(task))
        place = self._app.url_path_for(CATALOGUE).removesuffix("/problems")
        operations = {
            name: base["paths"].get(place + path, {}).get(method, {}).get("operationId")
            for name, (path, method) in _LINKED.items()
        }
        ours = _renamed(_linked(ours, operations))
        document = copy.deepcopy(base)
        for path, item in ours["paths"].items():
            document["paths"][place + path] = item
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in ours["components"]["schemas"].items():
            schemas[_OURS + name] = schema
        return document


def _linked(document: dict[str, Any], operations: dict[str, str | None]) -> dict[str, Any]:
    """Links lead to operations by the ids that those have in the app; to what is not in its document there is none."""
    for item in document["paths"].values():
        for operation in item.values():
            for response in operation["responses"].values():
                for name in operations.keys() & response.get("links", {}).keys():
                    if (known := operations[name]) is None:
                        del response["links"][name]
                    else:
                        response["links"][name]["operationId"] = known
    return document


def _renamed(node: Any) -> Any:
    """A copy whose pointers lead to our names."""
    if isinstance(node, dict):
        return {key: _renamed(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_renamed(item) for item in node]
    if isinstance(node, str) and node.startswith(_COMPONENTS):
        return _COMPONENTS + _OURS + node.removeprefix(_COMPONENTS)
    return node
