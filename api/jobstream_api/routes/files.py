"""The files of a job: `GET /jobs/{id}/files` lists them, `GET /jobs/{id}/files/{file}` is a download."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from typing import BinaryIO, Literal, NamedTuple

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from jobstream.errors import FileMissing, FileNotFound, RangeNotSatisfiable
from jobstream.files import CHUNK_BYTES, JobFile, disposition, file_result, files_in, is_spilled, media_type
from jobstream.job import Record
from jobstream.store import is_visible, read_record
from jobstream_api.auth.gate import Watcher
from jobstream_api.service import Service
from jobstream_api.wire import PRIVATE, file_url

_RANGE = re.compile(r"bytes=(?:(?P<first>\d{1,18})-(?P<last>\d{1,18})?|-(?P<suffix>\d{1,18}))\Z", re.ASCII)


class FileView(BaseModel):
    """A file of a job."""

    name: str
    size: int = Field(description="Bytes")
    sha256: str
    content_type: str | None
    role: Literal["input", "result"]
    url: str = Field(description="Where it is downloaded")


class FileList(BaseModel):
    """The uploads that a job's input names, and the files that its result names."""

    files: list[FileView]


class Span(NamedTuple):
    """Bytes of a file; `stop` is the first one that is not among them."""

    start: int
    stop: int


_DOWNLOAD = {
    200: {"description": "The file", "content": {"application/octet-stream": {}}},
    206: {"description": "The bytes that `Range` asks for", "content": {"application/octet-stream": {}}},
    303: {"description": "The storage itself gives it: `Location` is signed, and valid for a minute"},
    304: {"description": "It is the one in `If-None-Match`"},
}


def add_routes(router: APIRouter, service: Service) -> None:
    """The list, and the download; a job's ticket opens both."""

    @router.get("/jobs/{job_id}/files", tags=["jobs"], summary="The files of the job", response_model=FileList)
    async def job_files(job_id: str, caller: Watcher) -> Response:
        record = await _record(service, job_id, caller.sees)
        views = [
            FileView(**file.model_dump(exclude={"key"}), role=role, url=file_url(file, service.prefix))
            for role, file in _files(record, job_id)
        ]
        return Response(FileList(files=views).model_dump_json(), media_type="application/json")

    # Not FastAPI's way from HEAD to GET: a link that is signed for GET answers no HEAD.
    @router.head("/jobs/{job_id}/files/{file}", include_in_schema=False)
    async def head(job_id: str, file: str, request: Request, caller: Watcher) -> Response:
        found = await _find(service, job_id, file, caller.sees)
        if _is_known(request, found):
            return Response(status_code=304, headers=_validators(found))
        source = await asyncio.to_thread(service.files.open, found)
        await asyncio.to_thread(source.close)
        return Response(headers=_headers(found) | {"Content-Length": str(found.size)})

    @router.get(
        "/jobs/{job_id}/files/{file}",
        tags=["jobs"],
        summary="Download a file of the job",
        response_class=Response,
        responses=_DOWNLOAD,  # type: ignore[arg-type]  # FastAPI's type is invariant in its keys
    )
    async def download(job_id: str, file: str, request: Request, caller: Watcher) -> Response:
        found = await _find(service, job_id, file, caller.sees)
        if _is_known(request, found):
            return Response(status_code=304, headers=_validators(found))
        if seconds := service.settings.files_link_seconds:
            link = await asyncio.to_thread(service.files.link, found, seconds=seconds)
            if link is not None:
                return Response(status_code=303, headers={"Location": link, "Cache-Control": "no-store"})
        span = _span(request, found)
        source = await asyncio.to_thread(service.files.open, found)
        headers = _headers(found)
        if span is None:
            return FileBody(source, Span(0, found.size), status=200, headers=headers)
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{found.size}"
        return FileBody(source, span, status=206, headers=headers)


async def with_spilled_result(response: Response, record: Record, service: Service) -> Response:
    """The answer, with the result itself in it if that was too large for the record. Raises FileMissing."""
    file = file_result(record.get(b"result"), record[b"id"].decode())
    if response.status_code != 200 or file is None or not is_spilled(file):
        return response
    source = await asyncio.to_thread(service.files.open, file)
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return FileBody(source, Span(0, file.size), status=200, headers=headers)


class FileBody(StreamingResponse):
    """Bytes of a file that is open. It is closed whatever becomes of the answer."""

    def __init__(self, source: BinaryIO, span: Span, *, status: int, headers: dict[str, str]) -> None:
        length = {"Content-Length": str(span.stop - span.start)}
        super().__init__(_pieces(source, *span), status_code=status, headers=headers | length)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.to_thread(self._source.close)


async def _pieces(source: BinaryIO, start: int, stop: int) -> AsyncIterator[bytes]:
    if start:
        await asyncio.to_thread(source.seek, start)
    left = stop - start
    while left > 0:
        piece = await asyncio.to_thread(source.read, min(left, CHUNK_BYTES))
        if not piece:
            raise FileMissing("The file is shorter than it was")
        left -= len(piece)
        yield piece


async def _record(service: Service, job_id: str, owner: str | None) -> Record:
    record = await read_record(service.client, job_id)
    if record is None or not is_visible(record.get(b"owner"), owner):
        raise await service.queue.missing(job_id, owner=owner)
    return record


async def _find(service: Service, job_id: str, file: str, owner: str | None) -> JobFile:
    """Raises JobNotFound, JobGone and FileNotFound: a job's own record says which files it has."""
    key = f"{job_id}/{file}"
    for _, found in _files(await _record(service, job_id, owner), job_id, key):
        if found.key == key:
            return found
    raise FileNotFound(f"Job {job_id} has no file {file[:64]!r}")


def _files(record: Record, job_id: str, key: str = "") -> list[tuple[Literal["input", "result"], JobFile]]:
    """Without duplicates: a task may return what it was given."""
    found: dict[str, tuple[Literal["input", "result"], JobFile]] = {}
    roles: tuple[tuple[bytes, Literal["input", "result"]], ...] = ((b"files", "input"), (b"result", "result"))
    for name, role in roles:
        text = record.get(name)
        if text and (key or job_id).encode() in text:
            for file in files_in(msgspec.json.decode(text), job_id):
                found.setdefault(file.key, (role, file))
    return list(found.values())


def _validators(file: JobFile) -> dict[str, str]:
    return {"ETag": f'"{file.sha256}"', "Cache-Control": PRIVATE}


def _headers(file: JobFile) -> dict[str, str]:
    """Whatever is in the file: a browser keeps it, and neither shows it nor runs it as a page of ours."""
    return {
        **_validators(file),
        "Content-Type": media_type(file.content_type),
        "Content-Disposition": disposition(file.name),
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:",  # RFC 9530
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }


def _is_known(request: Request, file: JobFile) -> bool:
    wanted = request.headers.get("if-none-match", "")
    return wanted.strip() == "*" or f'"{file.sha256}"' in (tag.strip().removeprefix("W/") for tag in wanted.split(","))


def _span(request: Request, file: JobFile) -> Span | None:
    """What `Range` asks for (RFC 9110, section 14.2); None: all of it, also when it asks for several ranges.

    Raises RangeNotSatisfiable.
    """
    match = _RANGE.match(request.headers.get("range", "").strip().lower())
    # A date is no strong validator of ours: then it may be another file, and all of it is sent.
    if match is None or request.headers.get("if-range", f'"{file.sha256}"').strip() != f'"{file.sha256}"':
        return None
    if match["suffix"] is not None:
        span = Span(max(0, file.size - int(match["suffix"])), file.size)
    else:
        last = file.size - 1 if match["last"] is None else min(int(match["last"]), file.size - 1)
        span = Span(int(match["first"]), last + 1)
        if match["last"] is not None and int(match["last"]) < span.start:
            return None  # not a range at all
    if span.start >= span.stop:
        raise RangeNotSatisfiable(f"The file has {file.size} bytes", size=file.size)
    return span
