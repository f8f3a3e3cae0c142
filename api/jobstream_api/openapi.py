"""The OpenAPI document: the fixed routes as FastAPI describes them, and a typed operation per announced task."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI

from jobstream.catalogue import Announcement
from jobstream.files import FILE_MARK
from jobstream.job import Job
from jobstream_api.problems import MEDIA_TYPE
from jobstream_api.service import Service

_COMPONENTS = "#/components/schemas/"

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


class OpenApi:
    """Made anew when the catalogue changes, and only then."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._service = service
        self._base = app.openapi  # FastAPI's own, before it is replaced by this
        self._made: tuple[int, dict[str, Any]] | None = None

    def __call__(self) -> dict[str, Any]:
        book = self._service.tasks
        if self._made is None or self._made[0] != book.version:
            document = copy.deepcopy(self._base())
            for task in book.tasks.values():
                add_task(document, task)
            self._made = (book.version, document)
        return self._made[1]


def add_task(document: dict[str, Any], task: Announcement) -> None:
    """Add the operations of one task to an OpenAPI document."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.setdefault("Problem", _PROBLEM)
    if "Job" not in schemas:
        _add_schema(schemas, "Job", Job.model_json_schema(mode="serialization"), prefix="")
    parts = [part.capitalize() for part in task.name.replace("_", "-").split("-")]
    camel = "".join(parts)
    input_ref = _add_schema(schemas, f"{camel}Input", _as_form(task), prefix=f"{camel}Input")
    output_ref = _add_schema(schemas, f"{camel}Result", task.output_schema, prefix=f"{camel}Result")
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
            "requestBody": {"required": True, "content": _contents(task, input_ref)},
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


def _contents(task: Announcement, reference: dict[str, Any]) -> dict[str, Any]:
    """JSON unless files are required, multipart where there are file fields."""
    content: dict[str, Any] = {}
    if not set(task.file_fields) & set(task.input_schema.get("required", ())):
        content["application/json"] = {"schema": reference}
    if task.file_fields:
        content["multipart/form-data"] = {"schema": reference}
    return content


def _as_form(task: Announcement) -> dict[str, Any]:
    """The input schema with uploads as what a client sends: binary parts."""
    schema = copy.deepcopy(task.input_schema)
    for name in task.file_fields:
        field = schema["properties"][name]
        binary: dict[str, Any] = {"type": "string", "format": "binary"}
        many = field.get("type") == "array" or any(option.get("type") == "array" for option in field.get("anyOf", ()))
        kept = {key: field[key] for key in ("title", "description", "minItems", "maxItems") if key in field}
        schema["properties"][name] = kept | ({"type": "array", "items": binary} if many else binary)
    definitions = schema.get("$defs", {})
    for name in [name for name, definition in definitions.items() if definition.get(FILE_MARK)]:
        del definitions[name]
    return schema


def _add_schema(schemas: dict[str, Any], name: str, schema: dict[str, Any], *, prefix: str) -> dict[str, str]:
    """Move a JSON Schema and its definitions into the components, under names of its own."""
    schema = copy.deepcopy(schema)
    definitions = schema.pop("$defs", {})
    for key, definition in definitions.items():
        schemas[prefix + key] = _moved(definition, prefix)
    schemas[name] = _moved(schema, prefix)
    return {"$ref": _COMPONENTS + name}


def _moved(node: Any, prefix: str) -> Any:
    if isinstance(node, dict):
        return {
            key: _COMPONENTS + prefix + value.removeprefix("#/$defs/")
            if key == "$ref" and isinstance(value, str)
            else _moved(value, prefix)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_moved(item, prefix) for item in node]
    return node


def _problems(errors: dict[str, str]) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": {"$ref": _COMPONENTS + "Problem"}}}
    return {status: {"description": text, "content": content} for status, text in errors.items()}


def _submit_parameters() -> list[dict[str, Any]]:
    seconds = {"type": "number", "exclusiveMinimum": 0}
    described: dict[str, tuple[str, dict[str, Any]]] = {
        "delay": ("Seconds to wait before it runs", {"type": "number", "minimum": 0}),
        "run_at": ("Time to run it at (RFC 3339)", {"type": "string", "format": "date-time"}),
        "queue": ("Queue, instead of the task's own", {"type": "string"}),
        "tags": ("Tags to find it by", {"type": "array", "items": {"type": "string"}}),
        "timeout": ("Seconds an attempt may take", seconds),
        "ttl": ("Seconds the finished record is kept", seconds),
    }
    return [
        {"name": name, "in": "query", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in described.items()
    ]
