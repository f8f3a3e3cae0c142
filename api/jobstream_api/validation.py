"""Inputs against the schemas that workers announce: the API validates without any of the user's code."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

from jobstream.catalogue import Announcement
from jobstream.errors import FieldError, InvalidInput
from jobstream.task import json_pointer

ERRORS_SHOWN = 50


class InputValidator:
    """One task's input schema, compiled once."""

    def __init__(self, task: Announcement) -> None:
        self.task = task
        # Masked: what a client sent, possibly a secret or a megabyte, is not repeated in the answer.
        self._validator = jsonschema_rs.validator_for(
            task.input_schema, validate_formats=True, mask="the value", offline=True
        )
        self.properties: dict[str, Any] = task.input_schema.get("properties", {})

    def check(self, data: object) -> dict[str, Any]:
        """The input as it came. Raises InvalidInput with a JSON pointer for each error."""
        errors: list[FieldError] = []
        try:
            for error in self._validator.iter_errors(data):
                errors += _field_errors(error)
                if len(errors) >= ERRORS_SHOWN:
                    break
        except ValueError:  # jsonschema-rs goes 255 levels deep
            errors = [FieldError(pointer="", detail="it is nested too deeply")]
        if errors or not isinstance(data, dict):
            first = errors[0] if errors else FieldError(pointer="", detail="the input is a JSON object")
            where = f" at {first['pointer']}" if first["pointer"] else ""
            raise InvalidInput(
                f"The input of task {self.task.name!r} is not valid{where}: {first['detail']}", errors=errors
            )
        return data


def _field_errors(error: jsonschema_rs.ValidationError) -> list[FieldError]:
    path = list(error.instance_path)
    kind = error.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
        return [FieldError(pointer=json_pointer([*path, str(kind.property)]), detail="field required")]
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
        return [FieldError(pointer=json_pointer([*path, name]), detail="unknown field") for name in kind.unexpected]
    return [FieldError(pointer=json_pointer(path), detail=error.message)]
