"""Arguments as input: `key=text`, `key:=json`, `key=@file`, `key:=@file.json`, `@object.json`, `-`; and as uploads."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import click
from pydantic import JsonValue

_FIELD = re.compile(r"(?P<key>[^=:@]+)(?P<sign>:?=)(?P<value>.*)\Z", re.DOTALL)


def parse_fields(arguments: Iterable[str]) -> dict[str, JsonValue]:
    """The input object that the arguments spell; later ones win. Raises click.UsageError."""
    found: dict[str, JsonValue] = {}
    for argument in arguments:
        if argument == "-":
            found.update(_object(sys.stdin.read(), "standard input"))
        elif argument.startswith("@"):
            found.update(_object(_read(argument[1:]), argument[1:]))
        elif match := _FIELD.match(argument):
            found[match["key"]] = _value(match["sign"], match["value"], argument)
        else:
            raise click.UsageError(f"{argument!r} is neither key=text, key:=json, key=@file, @object.json nor -")
    return found


def parse_files(arguments: Iterable[str]) -> dict[str, list[Path]]:
    """The uploads by field: `PATH` for the field `files`, or `FIELD=PATH`. Raises click.UsageError."""
    found: dict[str, list[Path]] = {}
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if not sign or Path(argument).exists():
            name, path = "files", argument
        if not Path(path).is_file():
            raise click.UsageError(f"{path}: no such file")
        found.setdefault(name, []).append(Path(path))
    return found


def _value(sign: str, value: str, argument: str) -> JsonValue:
    text = _read(value[1:]) if value.startswith("@") else value
    return _decoded(text, argument) if sign == ":=" else text


def _object(text: str, where: str) -> dict[str, JsonValue]:
    value = _decoded(text, where)
    if not isinstance(value, dict):
        raise click.UsageError(f"{where}: expected a JSON object")
    return value


def _decoded(text: str, where: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{where}: not JSON: {error}") from None
    return value


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{name}: {error}") from None
