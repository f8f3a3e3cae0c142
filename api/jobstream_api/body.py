"""Request bodies into a task's input: JSON, HTML forms, and multipart with files that stream to storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from jobstream.errors import FieldError, InvalidInput, MalformedBody, PayloadTooLarge, UnsupportedMediaType
from jobstream.files import CHUNK_BYTES, FileLimits, FileStore, is_of_type
from jobstream.task import json_pointer
from jobstream_api.coming import declared_length
from jobstream_api.settings import ApiSettings
from jobstream_api.validation import InputValidator

ACCEPTED = "application/json, multipart/form-data, application/x-www-form-urlencoded"
_PART_HEADER_BYTES = 16_384
_FIELDS_MAX = 1_000
HOLD_AGAIN_SECONDS = 600.0


@dataclass(frozen=True)
class BodyReader:
    """Reads one request's body as the input of a task, under the service's limits."""

    request: Request
    validator: InputValidator
    settings: ApiSettings
    files: FileStore
    job_id: str
    hold: Callable[[str], Awaitable[None]]
    """Called before the first upload is stored, and again while they arrive: the job's id is in use."""
    stored: list[dict[str, Any]] = field(default_factory=list)
    """The uploads so far: the files of the job."""

    def check_head(self) -> None:
        """Raises what the headers alone tell: PayloadTooLarge for a declared length, and UnsupportedMediaType."""
        kind, _ = self._media_type()
        if kind == "multipart/form-data":
            settings, task = self.settings, self.validator.task
            files = settings.max_files * settings.max_file_bytes if task.file_fields else 0
            parts = (_FIELDS_MAX + settings.max_files) * _PART_HEADER_BYTES
            check_length(self.request, at_most=settings.max_body_bytes + files + parts)
            return
        check_length(self.request, at_most=self.settings.max_body_bytes)
        if kind and kind != "application/x-www-form-urlencoded" and not is_json(kind):
            raise UnsupportedMediaType(f"Send {ACCEPTED}, not {kind[:100]}")

    def _media_type(self) -> tuple[str, bytes]:
        """The media type, in lower case, and the boundary."""
        media_type, options = parse_options_header(self.request.headers.get("content-type", ""))
        return media_type.decode("latin-1").lower(), options.get(b"boundary", b"")

    async def read(self) -> dict[str, Any]:
        """The valid input, after `check_head`. Raises what that raises, MalformedBody and InvalidInput.

        Uploads are stored under the job's id as they arrive: whoever calls removes them when the job comes to nothing.
        """
        kind, boundary = self._media_type()
        if kind == "multipart/form-data":
            return self.validator.check(await self._multipart(boundary))
        if kind == "application/x-www-form-urlencoded":
            return self.validator.check(self._form(await self._limited()))
        if is_json(kind):
            return self._json(await self._limited())
        async for piece in self.request.stream():
            if piece:
                raise UnsupportedMediaType(f"Send {ACCEPTED}; Content-Type is missing")
        return self.validator.check({})

    async def _limited(self) -> bytes:
        return await read_body(self.request, at_most=self.settings.max_body_bytes)

    def _json(self, body: bytes) -> dict[str, Any]:
        try:
            data = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedBody(f"The body is not JSON: {error}") from None
        return check_without_files(self.validator, data)

    def _form(self, body: bytes) -> dict[str, Any]:
        try:
            fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="strict")
        except ValueError as error:
            raise MalformedBody(f"The body is not a form: {error}") from None
        form = Form(self.validator)
        for name, value in fields:
            form.add(name, value)
        return form.data

    async def _multipart(self, boundary: bytes) -> dict[str, Any]:
        if not boundary:
            raise MalformedBody("multipart/form-data needs a boundary")
        form = Form(self.validator)
        stored: dict[str, list[dict[str, Any]]] = {}
        room, count = self.settings.max_body_bytes, 0
        async for part in _parts(self.request, boundary, at_most=_FIELDS_MAX + self.settings.max_files):
            if part.file_name is None:
                value = await self._text(part, room)
                room -= len(value)
                form.add(part.name, _decoded(part.name, value))
            elif part.file_name == "":
                await _skip_empty(part)
            else:
                count += 1
                stored.setdefault(part.name, []).append(await self._store(part, count))
        return form.data | {name: self._file_value(name, files) for name, files in stored.items()}

    async def _text(self, part: Part, room: int) -> bytes:
        value = bytearray()
        async for piece in part.pieces:
            value += piece
            if len(value) > room:
                raise PayloadTooLarge(f"The form's fields may hold {self.settings.max_body_bytes} bytes")
        return bytes(value)

    async def _store(self, part: Part, number: int) -> dict[str, Any]:
        file_fields, limit = self.validator.task.file_fields, self.settings.max_file_bytes
        if part.name not in file_fields:
            known = ", ".join(file_fields) or "none"
            raise InvalidInput(
                f"The task takes no files in {part.name[:64]!r}; file fields: {known}",
                errors=[FieldError(pointer=json_pointer([part.name]), detail="no file field")],
            )
        if number > self.settings.max_files:
            raise PayloadTooLarge(f"A job may have {self.settings.max_files} files")
        limits = FileLimits.of(self.validator.properties[part.name])
        for types in filter(None, (self.settings.accepted_file_types, limits.types)):
            if not is_of_type(part.content_type, types):
                raise UnsupportedMediaType(f"Files in {part.name[:64]!r} are {', '.join(types)}")
        limit = min(limit, limits.max_bytes or limit)
        await self.hold(self.job_id)
        held = asyncio.get_running_loop().time()
        writer = self.files.create(self.job_id, number, name=part.file_name or "", content_type=part.content_type)
        async with writer:
            waiting = bytearray()  # a trip to a thread costs as much as the piece that a network read brings
            async for piece in part.pieces:
                waiting += piece
                if writer.size + len(waiting) > limit:
                    raise PayloadTooLarge(f"A file may hold {limit} bytes")
                if len(waiting) >= CHUNK_BYTES:
                    await writer.write(bytes(waiting))
                    waiting.clear()
                    if asyncio.get_running_loop().time() - held > HOLD_AGAIN_SECONDS:
                        held = asyncio.get_running_loop().time()
                        await self.hold(self.job_id)
            if waiting:
                await writer.write(bytes(waiting))
        file = writer.file.model_dump()
        self.stored.append(file)
        return file

    def _file_value(self, name: str, files: list[dict[str, Any]]) -> Any:
        if takes_many(self.validator.properties[name]):
            return files
        if len(files) > 1:
            raise InvalidInput(
                f"The task takes one file in {name!r}",
                errors=[FieldError(pointer=json_pointer([name]), detail=f"one file, not {len(files)}")],
            )
        return files[0]


def is_json(media_type: str) -> bool:
    """True for JSON and what is written in it."""
    return media_type == "application/json" or media_type.endswith("+json")


def check_length(request: Request, *, at_most: int) -> None:
    """Raises PayloadTooLarge for a body that says itself that it is."""
    length = declared_length(request.headers.raw)
    if length is not None and length > at_most:
        raise PayloadTooLarge(f"The body may hold {at_most} bytes")


async def read_body(request: Request, *, at_most: int) -> bytes:
    """The whole body. Raises PayloadTooLarge: by Content-Length before a byte is read, else as soon as it is."""
    check_length(request, at_most=at_most)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > at_most:
            raise PayloadTooLarge(f"The body may hold {at_most} bytes")
    return bytes(body)


def check_without_files(validator: InputValidator, data: object) -> dict[str, Any]:
    """The valid input, which came as JSON. Raises InvalidInput, also when it pretends to have uploads."""
    if isinstance(data, dict):
        sent = [name for name in validator.task.file_fields if data.get(name)]
        if sent:
            raise InvalidInput(
                "Files are sent as multipart/form-data",
                errors=[FieldError(pointer=json_pointer([name]), detail="send it as a file part") for name in sent],
            )
    return validator.check(data)


async def _skip_empty(part: Part) -> None:
    """What a browser sends for a file input that was left empty: a file without a name and without content."""
    async for piece in part.pieces:
        if piece:
            raise MalformedBody(f"The file in {part.name[:64]!r} has no name")


def _decoded(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise MalformedBody(f"The field {name[:64]!r} is not UTF-8") from None


class Form:
    """Form fields into JSON: a form knows only text, the task's schema says what the text means."""

    def __init__(self, validator: InputValidator) -> None:
        self._validator = validator
        self.data: dict[str, Any] = {}

    def add(self, name: str, value: str) -> None:
        """Take one field. A field that may be repeated becomes an array; an empty optional field is left out."""
        if name in self._validator.task.file_fields:
            raise InvalidInput(
                f"{name!r} takes files",
                errors=[FieldError(pointer=json_pointer([name]), detail="send it as a file part")],
            )
        schema = self._validator.properties.get(name, {})
        if takes_many(schema):
            items = next(option for option in _options(schema) if option.get("type") == "array").get("items", {})
            self.data.setdefault(name, []).append(_meant(items, value))
        elif value != "" or _takes_text(schema):
            self.data[name] = _meant(schema, value)


def _meant(schema: dict[str, Any], value: str) -> Any:
    """Text as text where the schema takes text, else as the JSON value that it spells; else as it is."""
    if _takes_text(schema):
        return value
    if value == "on" and any(option.get("type") == "boolean" for option in _options(schema)):
        return True  # a ticked check box
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def takes_many(schema: dict[str, Any]) -> bool:
    """True for an array field."""
    return any(option.get("type") == "array" for option in _options(schema))


def _takes_text(schema: dict[str, Any]) -> bool:
    options = _options(schema)
    return not schema or any(
        option.get("type") == "string" or isinstance(option.get("const"), str) or "enum" in option for option in options
    )


def _options(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]


@dataclass
class Part:
    """One part of a multipart body; `pieces` must be read before the next part is asked for."""

    name: str
    file_name: str | None
    content_type: str | None
    pieces: AsyncIterator[bytes]


def _callbacks(seen: list[tuple[str, bytes]]) -> Any:
    """Parser callbacks that note, in order, what is in the piece of body it was just given."""

    def take(kind: str) -> Any:
        return lambda data, start, end: seen.append((kind, data[start:end]))

    def mark(kind: str) -> Any:
        return lambda: seen.append((kind, b""))

    return {
        "on_part_begin": mark("begin"),
        "on_header_field": take("field"),
        "on_header_value": take("value"),
        "on_header_end": mark("header"),
        "on_headers_finished": mark("headers"),
        "on_part_data": take("data"),
        "on_part_end": mark("end"),
        "on_end": mark("finished"),
    }


async def _parts(request: Request, boundary: bytes, *, at_most: int) -> AsyncIterator[Part]:
    """The parts of a multipart/form-data body (RFC 7578), streamed: memory holds one network read at most."""
    stream = _multipart_events(request, boundary)
    finished, count = False, 0
    async for kind, value in stream:
        if kind == "headers":
            count += 1
            if count > at_most:
                raise PayloadTooLarge(f"A form may have {at_most} parts")
            part = _part(value, stream)
            yield part
            async for _ in part.pieces:  # what the consumer left unread
                pass
        finished = finished or kind == "finished"
    if not finished:
        raise MalformedBody("The multipart body ends before its last boundary")


def _part(disposition_and_type: bytes, stream: AsyncIterator[tuple[str, bytes]]) -> Part:
    disposition, _, content_type = disposition_and_type.partition(b"\n")
    kind, options = parse_options_header(disposition)
    name = options.get(b"name")
    if kind != b"form-data" or name is None:
        raise MalformedBody("Each part needs Content-Disposition: form-data with a name")
    file_name = options.get(b"filename")

    async def pieces() -> AsyncIterator[bytes]:
        async for kind, value in stream:
            if kind == "end":
                return
            yield value
        raise MalformedBody("The multipart body ends within a part")

    return Part(
        name=name.decode("utf-8", "replace"),
        file_name=None if file_name is None else file_name.decode("utf-8", "replace"),
        content_type=content_type.decode("latin-1")[:255] or None,
        pieces=pieces(),
    )


async def _multipart_events(request: Request, boundary: bytes) -> AsyncIterator[tuple[str, bytes]]:
    """`headers` (disposition, newline, content type), then `data`…, then `end`, for each part; at last `finished`."""
    seen: list[tuple[str, bytes]] = []
    try:
        parser = MultipartParser(boundary, _callbacks(seen))
    except (MultipartParseError, ValueError) as error:
        raise MalformedBody(f"The multipart boundary is not valid: {error}") from None
    headers: dict[bytes, bytes] = {}
    name = value = b""
    header_bytes = 0
    async for piece in request.stream():
        if not piece:
            continue
        try:
            parser.write(piece)
        except MultipartParseError as error:
            raise MalformedBody(f"The multipart body cannot be parsed: {error}") from None
        noted = list(seen)
        seen.clear()
        for kind, data in noted:
            match kind:
                case "begin":
                    headers, name, value, header_bytes = {}, b"", b"", 0
                case "field" | "value":
                    header_bytes += len(data)
                    if header_bytes > _PART_HEADER_BYTES:
                        raise PayloadTooLarge("A part's headers are too large")
                    name, value = (name + data, value) if kind == "field" else (name, value + data)
                case "header":
                    headers[name.lower()] = value
                    name = value = b""
                case "headers":
                    disposition = headers.get(b"content-disposition", b"")
                    yield kind, disposition.replace(b"\n", b" ") + b"\n" + headers.get(b"content-type", b"")
                case _:
                    yield kind, data
