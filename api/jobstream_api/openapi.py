"""The OpenAPI document: the fixed routes as FastAPI describes them, and a typed operation per announced task."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
from fastapi import FastAPI

from jobstream.bulk import SCOPES
from jobstream.call import NOBODY
from jobstream.catalogue import Announcement
from jobstream.files import FILE_MARK
from jobstream.job import RESERVED_QUEUES, Job
from jobstream.queue import AFTER_MAX, MAX_SECONDS, TAGS_MAX
from jobstream.webhooks.endpoints import EVENTS
from jobstream.webhooks.target import URL_LENGTH
from jobstream_api import failures
from jobstream_api.auth.document import add_security
from jobstream_api.body import takes_many
from jobstream_api.failures import PROBLEM, SUBMITTING, add_failures, problems
from jobstream_api.service import Service

_COMPONENTS = "#/components/schemas/"
_DEFINITIONS = "#/$defs/"

_SUBMIT_ERRORS = {
    "400": "The body cannot be parsed",
    "404": "No such task",
    "409": "The first request with this `Idempotency-Key` is still under way",
    "410": "The job was cancelled while the request waited",
    "413": "The body, a field or a file is too large",
    "415": "The media type is not accepted",
    "422": "The input does not fit the schema",
    "429": "More jobs than the quota lets through; nothing was accepted",
    "500": "The task failed while the request waited",
    "503": "Redis is away, or the queue is full; nothing was accepted",
    "504": "The task took too long while the request waited",
}
_RESULT_ERRORS = {
    "404": "No such job",
    "410": "The job was cancelled or purged",
    "422": "The task refused its input",
    "500": "The task failed",
    "503": "Redis is away",
    "504": "The task took too long",
}


_TAGS = {
    "jobs": "Every job, whatever its task: what it does, what happens to it, its end",
    "batches": "Many jobs as one",
    "schedules": "Jobs that come again",
    "webhooks": "Who is told when jobs end",
    "tasks": "What the workers can do",
    "problems": "What the codes of errors mean",
    "health": "For probes and Prometheus",
}

_HEADERS = {
    "Content-Location": "The URL of the result",
    "ETag": "The version of the job",
    "Idempotent-Replayed": "`true` when this is the first answer again",
    "Link": "The monitor and the event stream",
    "Location": "The result",
    "Operation-Location": "The monitor, absolute",
    "Preference-Applied": "Which preferences were honoured",
    **failures.HEADERS,
}

_PREFER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`wait=20` holds the answer for up to 20 s, 55 at most (RFC 7240)",
    "schema": {"type": "string"},
    "example": "wait=1",
}
_IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A quoted string: the same key with the same request gives the first answer again, for 24 hours",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}
_IF_NONE_MATCH: dict[str, Any] = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The `ETag` that is known; with `Prefer: wait` the answer comes when it is another one",
    "schema": {"type": "string"},
}


JOB_ENDED: dict[str, Any] = {
    "title": "JobEnded",
    "description": "The end of a job, as Standard Webhooks has it; below 20 KB",
    "type": "object",
    "required": ["type", "timestamp", "data"],
    "properties": {
        "type": {"type": "string", "enum": list(EVENTS)},
        "timestamp": {"type": "string", "format": "date-time"},
        "data": {"$ref": _COMPONENTS + "Job"},
        "omitted": {
            "description": "What was left out of the job because it is too large; its links lead to it",
            "type": "array",
            "items": {"type": "string"},
        },
    },
}


class OpenApi:
    """Made anew when the catalogue changes, and only then. Without tasks it says what every such service says."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._service = service
        self._app = app
        self._base = app.openapi  # FastAPI's own, before it is replaced by this
        self._made: dict[bool, tuple[int, dict[str, Any]]] = {}

    def __call__(self, *, with_tasks: bool = True) -> dict[str, Any]:
        book = self._service.tasks
        made = self._made.get(with_tasks)
        if made is None or made[0] != book.version:
            tasks = [task for task in book.tasks.values() if task.input_schema != NOBODY] if with_tasks else []
            document = copy.deepcopy(self._base())
            document["servers"] = [{"url": self._service.root_path or "/"}]
            document["components"]["schemas"]["Problem"] = PROBLEM
            document["components"]["schemas"]["JobEnded"] = JOB_ENDED
            for task in tasks:
                add_task(document, task, accepted_status=self._service.accepted_status(task))
            _add_job(document["components"]["schemas"])
            names = [task.name for task in tasks]
            document["tags"] = _tags(tasks)
            document["webhooks"] = {event: _ended(event) for event in EVENTS}
            if self._service.gate.open:
                document["security"] = []
            else:
                add_security(document, self._app.routes, tasks=names)
            add_failures(document, self._app.routes, asks=not self._service.gate.open, tasks=names)
            for path in SUBMITTING & document["paths"].keys():
                document["paths"][path]["post"].setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
            made = self._made[with_tasks] = (book.version, document)
        return made[1]


def _tags(tasks: list[Announcement]) -> list[dict[str, str]]:
    """The groups in which readers are shown the operations: first what they came for."""
    theirs = {task.name: task.summary for task in tasks if task.name not in SCOPES}
    ours = {task.name: task.summary for task in tasks if task.name in SCOPES}
    return [{"name": name, "description": text} for name, text in {**theirs, **_TAGS, **ours}.items()]


def add_task(document: dict[str, Any], task: Announcement, *, accepted_status: int) -> None:
    """Add the operations of one task, whose submits are answered with that status, to an OpenAPI document."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    _add_job(schemas)
    camel = "".join(part.capitalize() for part in task.name.split("-"))
    bodies = {
        media_type: {"schema": _add_schema(schemas, camel + kind, schema)} for media_type, kind, schema in _inputs(task)
    }
    output_ref = _add_schema(schemas, f"{camel}Result", task.output_schema)
    job = {"application/json": {"schema": {"$ref": _COMPONENTS + "Job"}}}
    result = {"application/json": {"schema": output_ref}}
    links = {
        "result": _link(f"get_{task.name}", "The result, once there is one"),
        "monitor": _link("monitor", "What the job is doing"),
        "cancel": _link("cancel", "Stop the job"),
        "purge": _link(f"delete_{task.name}", "Stop the job and forget it"),
    }
    download: dict[str, Any] = {}
    if not task.output_schema or FILE_MARK in json.dumps(task.output_schema):
        download = {"303": {"description": "The result is a file", "headers": _headers("Location", "Link")}}
    job_id = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
    document["paths"][f"/{task.name}"] = {
        "post": {
            "tags": [task.name],
            "operationId": f"submit_{task.name}",
            "summary": task.summary,
            "description": task.description,
            "parameters": [*_submit_parameters(), _PREFER, _IDEMPOTENCY_KEY],
            "callbacks": {"ended": {"{$request.query.callback_url}": _ended("job.ended")}},
            "requestBody": {"required": not _needs_nothing(task), "content": bodies},
            "responses": {
                "200": {
                    "description": "The result: the job ended within `Prefer: wait`",
                    "headers": _headers(
                        "Content-Location", "Preference-Applied", "Link", "ETag", "Idempotent-Replayed"
                    ),
                    "content": result,
                },
                **download,
                str(accepted_status): {
                    "description": "Accepted: poll `Location` for the result, or follow the events",
                    "headers": _headers(
                        "Location",
                        "Operation-Location",
                        "Retry-After",
                        "Link",
                        "ETag",
                        "Idempotent-Replayed",
                        "RateLimit",
                        "RateLimit-Policy",
                    ),
                    "content": job,
                    "links": links,
                },
                **problems(_SUBMIT_ERRORS),
            },
        }
    }
    document["paths"][f"/{task.name}/{{job_id}}"] = {
        "get": {
            "tags": [task.name],
            "operationId": f"get_{task.name}",
            "summary": f"The result of a {task.name} job, once there is one",
            "parameters": [job_id, _PREFER, _IF_NONE_MATCH],
            "responses": {
                "200": {"description": "The result", "headers": _headers("ETag", "Link"), "content": result},
                **download,
                "202": {
                    "description": "Not done yet",
                    "headers": _headers("ETag", "Link", "Retry-After"),
                    "content": job,
                },
                "304": {"description": "The version is still the one in `If-None-Match`"},
                **problems(_RESULT_ERRORS),
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
                    "headers": _headers("ETag", "Retry-After"),
                    "content": job,
                },
                **problems({"404": "No such job", "410": "Purged before", "503": "Redis is away"}),
            },
        },
    }


def _ended(event: str) -> dict[str, Any]:
    """The request that a receiver gets."""
    described = {
        "webhook-id": "The message, the same at every attempt: a receiver knows by it what it has",
        "webhook-timestamp": "Seconds since 1970 of this attempt",
        "webhook-signature": "`v1,` and base64 of the HMAC-SHA256 of `{id}.{timestamp}.{body}`; one per secret",
    }
    return {
        "post": {
            "tags": ["webhooks"],
            **({} if event == "job.ended" else {"operationId": "on_" + event.replace(".", "_")}),
            "summary": "A job has ended" if event == "job.ended" else f"A job has {event.removeprefix('job.')}",
            "security": [],
            "parameters": [
                {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
                for name, text in described.items()
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": _COMPONENTS + "JobEnded"}}},
            },
            "responses": {
                "2XX": {"description": "Received; what the answer says is not read"},
                "410": {"description": "Nothing more is to be sent: a registered receiver is disabled"},
                "4XX": {"description": "Not received: sent again later, not before `Retry-After`"},
                "5XX": {"description": "Not received: sent again later, not before `Retry-After`"},
            },
        }
    }


def _add_job(schemas: dict[str, Any]) -> None:
    if "Job" not in schemas:
        _add_schema(schemas, "Job", Job.model_json_schema(mode="serialization"))


def _needs_nothing(task: Announcement) -> bool:
    """True when a request without a body will do."""
    return jsonschema_rs.validator_for(task.input_schema, offline=True).is_valid({})


def _headers(*names: str) -> dict[str, Any]:
    return failures.headers(*names, among=_HEADERS)


def _link(operation: str, text: str) -> dict[str, Any]:
    return {"operationId": operation, "description": text, "parameters": {"job_id": "$response.body#/id"}}


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


def _submit_parameters() -> list[dict[str, Any]]:
    seconds = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SECONDS}
    tag = {"type": "string", "pattern": "^[A-Za-z0-9_.:/@+-]{1,64}$"}
    described: dict[str, tuple[str, dict[str, Any]]] = {
        "delay": ("Seconds to wait before it runs", {"type": "number", "minimum": 0, "maximum": MAX_SECONDS}),
        "run_at": (
            "Time to run it at (RFC 3339), instead of `delay`; at most a year away",
            {"type": "string", "format": "date-time"},
        ),
        "queue": (
            "Queue, instead of the task's own",
            {"type": "string", "pattern": "^[a-z0-9][a-z0-9_.-]{0,63}$", "not": {"enum": sorted(RESERVED_QUEUES)}},
        ),
        "priority": ("Higher runs first", {"type": "integer", "minimum": 0, "maximum": 100, "default": 0}),
        "tags": ("Tags to find it by", {"type": "array", "items": tag, "maxItems": TAGS_MAX}),
        "after": (
            "Jobs or batches, by their ids, that must have succeeded before it runs",
            {"type": "array", "items": {"type": "string", "pattern": "^[!-~]{1,128}$"}, "maxItems": AFTER_MAX},
        ),
        "timeout": ("Seconds an attempt may take", seconds),
        "ttl": ("Seconds the finished record is kept", seconds),
        "callback_url": (
            "Told of the job's end; a public address, unless the service allows it",
            {"type": "string", "format": "uri", "maxLength": URL_LENGTH},
        ),
    }
    return [
        {"name": name, "in": "query", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in described.items()
    ]
