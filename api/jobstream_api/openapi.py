"""The OpenAPI document: the fixed routes as FastAPI describes them, and a typed operation per announced task."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from jobstream.catalogue import Announcement
from jobstream.files import FILE_MARK
from jobstream.job import Job
from jobstream_api.auth.document import add_security
from jobstream_api.body import takes_many
from jobstream_api.problems import MEDIA_TYPE
from jobstream_api.service import Service

_COMPONENTS = "#/components/schemas/"
_DEFINITIONS = "#/$defs/"

_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "An error (RFC 9457)",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "retryable": {"type": "boolean"},
        "attempt": {"type": "integer"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer (RFC 6901)"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}

_SUBMIT_ERRORS = {
    "400": "The body cannot be parsed",
    "404": "No such task",
    "413": "The body, a field or a file is too large",
    "415": "The media type is not accepted",
    "422": "The input does not fit the schema",
    "503": "Redis is away; nothing was accepted",
}
_RESULT_ERRORS = {
    "404": "No such job",
    "410": "The job was cancelled or purged",
    "422": "The task refused its input",
    "500": "The task failed",
    "503": "Redis is away",
    "504": "The task took too long",
}


FAILURE: dict[int | str, dict[str, Any]] = {
    "default": {"description": "A failure", "content": {MEDIA_TYPE: {"schema": {"$ref": _COMPONENTS + "Problem"}}}}
}
"""What every operation may answer; the document that names it must be made by `OpenApi`."""


class OpenApi:
    """Made anew when the catalogue changes, and only then."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._service = service
        self._app = app
        self._base = app.openapi  # FastAPI's own, before it is replaced by this
        self._made: tuple[int, dict[str, Any]] | None = None

    def __call__(self) -> dict[str, Any]:
        book = self._service.tasks
        if self._made is None or self._made[0] != book.version:
            document = copy.deepcopy(self._base())
            document["servers"] = [{"url": self._service.root_path or "/"}]
            document["components"]["schemas"]["Problem"] = _PROBLEM
            for task in book.tasks.values():
                add_task(document, task)
            if not self._service.gate.open:
                add_security(document, self._app.routes, tasks=book.tasks)
            self._made = (book.version, document)
        return self._made[1]


def add_task(document: dict[str, Any], task: Announcement) -> None:
    """Add the operations of one task to an OpenAPI document."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    if "Job" not in schemas:
        _add_schema(schemas, "Job", Job.model_json_schema(mode="serialization"))
    camel = "".join(part.capitalize() for part in task.name.split("-"))
    bodies = {
        media_type: {"schema": _add_schema(schemas, camel + kind, schema)} for media_type, kind, schema in _inputs(task)
    }
    output_ref = _add_schema(schemas, f"{camel}Result", task.output_schema)
    accepted = {
        "description": "Accepted: poll `Location` for the result, or follow the events",
        "headers": {
            name: {"schema": {"type": "string"}, "description": text}
            for name, text in {
                "Location": "The result",
                "Operation-Location": "The monitor, absolute",
                "Retry-After": "Seconds",
                "Link": "The monitor and the event stream",
            }.items()
        },
        "content": {"application/json": {"schema": {"$ref": _COMPONENTS + "Job"}}},
        "links": {
            "result": {"operationId": f"get_{task.name}", "parameters": {"job_id": "$response.body#/id"}},
        },
    }
    job_id = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
    document["paths"][f"/{task.name}"] = {
        "post": {
            "tags": [task.name],
            "operationId": f"submit_{task.name}",
            "summary": task.summary,
            "description": task.description,
            "parameters": _submit_parameters(),
            "requestBody": {"required": True, "content": bodies},
            "responses": {str(task.accepted_status): accepted, **_problems(_SUBMIT_ERRORS)},
        }
    }
    document["paths"][f"/{task.name}/{{job_id}}"] = {
        "get": {
            "tags": [task.name],
            "operationId": f"get_{task.name}",
            "summary": f"The result of a {task.name} job, once there is one",
            "parameters": [job_id],
            "responses": {
                "200": {"description": "The result", "content": {"application/json": {"schema": output_ref}}},
                "202": {
                    "description": "Not done yet",
                    "content": {"application/json": {"schema": {"$ref": _COMPONENTS + "Job"}}},
                },
                **_problems(_RESULT_ERRORS),
            },
        },
        "delete": {
            "tags": [task.name],
            "operationId": f"delete_{task.name}",
            "summary": f"Stop a {task.name} job and forget it",
            "parameters": [job_id],
            "responses": {
                "204": {"description": "Forgotten"},
                "202": {
                    "description": "It runs: it is stopped, then forgotten",
                    "content": {"application/json": {"schema": {"$ref": _COMPONENTS + "Job"}}},
                },
                **_problems({"404": "No such job", "410": "Purged before", "503": "Redis is away"}),
            },
        },
    }


def _inputs(task: Announcement) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Media type, kind and schema of what a submit takes: JSON has no files, multipart has them as binary parts."""
    if not set(task.file_fields) & set(task.input_schema.get("required", ())):
        yield "application/json", "Input", _with_files(task, {})
    if task.file_fields:
        yield "multipart/form-data", "Form", _with_files(task, {name: _binary(task, name) for name in task.file_fields})


def _with_files(task: Announcement, files: dict[str, Any]) -> dict[str, Any]:
    """The input schema with these properties as its file fields, and without what an upload is to the task."""
    schema = task.input_schema
    others = {name: value for name, value in schema.get("properties", {}).items() if name not in task.file_fields}
    definitions = {name: value for name, value in schema.get("$defs", {}).items() if not value.get(FILE_MARK)}
    return schema | {"properties": others | files, "$defs": definitions}


def _binary(task: Announcement, name: str) -> dict[str, Any]:
    field = task.input_schema["properties"][name]
    binary: dict[str, Any] = {"type": "string", "format": "binary"}
    kept = {key: field[key] for key in ("title", "description", "minItems", "maxItems") if key in field}
    return kept | ({"type": "array", "items": binary} if takes_many(field) else binary)


def _add_schema(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> dict[str, str]:
    """Move a JSON Schema and its definitions into the components, the definitions' names behind its own."""
    definitions = schema.get("$defs", {})
    schemas[name] = _moved({key: value for key, value in schema.items() if key != "$defs"}, name)
    for key, definition in definitions.items():
        schemas[name + key] = _moved(definition, name)
    return {"$ref": _COMPONENTS + name}


def _moved(node: Any, prefix: str) -> Any:
    """A copy whose pointers (`$ref`, and the mapping of a discriminator) lead to the components."""
    if isinstance(node, dict):
        return {key: _moved(value, prefix) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(item, prefix) for item in node]
    if isinstance(node, str) and node.startswith(_DEFINITIONS):
        return _COMPONENTS + prefix + node.removeprefix(_DEFINITIONS)
    return node


def _problems(errors: dict[str, str]) -> dict[str, Any]:
    return {status: FAILURE["default"] | {"description": text} for status, text in errors.items()}


def _submit_parameters() -> list[dict[str, Any]]:
    seconds = {"type": "number", "exclusiveMinimum": 0}
    described: dict[str, tuple[str, dict[str, Any]]] = {
        "delay": ("Seconds to wait before it runs", {"type": "number", "minimum": 0}),
        "run_at": ("Time to run it at (RFC 3339)", {"type": "string", "format": "date-time"}),
        "queue": ("Queue, instead of the task's own", {"type": "string"}),
        "priority": ("Higher runs first", {"type": "integer", "minimum": 0, "maximum": 100, "default": 0}),
        "tags": ("Tags to find it by", {"type": "array", "items": {"type": "string"}}),
        "timeout": ("Seconds an attempt may take", seconds),
        "ttl": ("Seconds the finished record is kept", seconds),
    }
    return [
        {"name": name, "in": "query", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in described.items()
    ]
