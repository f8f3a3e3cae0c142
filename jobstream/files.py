"""Files of jobs: uploads that an input names, and those that a task saves; kept until the job's record goes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import mimetypes
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import quote

import msgspec
import pydantic
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobstream.storage import LocalStorage, Place, Sink, Storage, open_storage

CHUNK_BYTES = 1 << 18
"""How much of a file is held in memory at once."""

FILE_MARK = "x-jobstream-file"
"""The JSON Schema keyword that marks an input field as an upload."""
TYPES_MARK = "x-jobstream-types"
BYTES_MARK = "x-jobstream-max-bytes"
"""Keywords of a field with `FileLimits`."""

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_KEY = re.compile(r"(?P<job>[A-Za-z0-9_-]{1,128})/(?P<name>[0-9]{1,6}|(?:input-|result-)?[0-9a-f]{16})\Z")

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?:; ?[ -~]*)?\Z")

Source = str | Path | bytes | bytearray | memoryview | BinaryIO | Iterable[bytes]
"""What a file can be made of: a path (a `str` is one, too), bytes, a file that is open for reading, pieces of bytes."""


class FileSettings(BaseSettings):
    """Where files are kept. API and workers must see the same ones."""

    model_config = SettingsConfigDict(env_prefix="JOBSTREAM_", env_file=".env", extra="ignore", env_ignore_empty=True)

    files_dir: Path = Field(
        Path(".jobstream/files"),
        description="Directory for uploaded files and those that tasks save; API and workers on several machines must "
        "share it.",
    )
    files_url: str = Field(
        "",
        description="s3://BUCKET/PREFIX: keep files there instead of in a directory (needs `jobstream[s3]`). "
        "Credentials come from the environment, as AWS's own tools name them (AWS_ACCESS_KEY_ID …), or from the "
        "machine's role.",
    )
    files_endpoint: str = Field("", description="URL of an S3-compatible server; empty: AWS.")
    spill_bytes: int = Field(
        0,
        ge=0,
        description="Inputs and results in JSON that are larger than this are kept with the files instead of in Redis; "
        "0: none. The same for API and workers, which must share the files then.",
    )
    files_region: str = Field("", description="The bucket's region; empty: AWS_REGION, else us-east-1.")

    @property
    def files_place(self) -> Place:
        """All of it together."""
        return Place(str(self.files_dir.absolute()), self.files_url, self.files_endpoint, self.files_region)


class JobFile(BaseModel):
    """A file of a job: an upload, as a task's input names it, or one that the task has saved and returns.

    A task asks for uploads by a field of this type (or `list[JobFile]`) in its input model; clients send them as
    `multipart/form-data` parts of the field's name. Open it with `job.files`; make one with `job.save`.
    """

    model_config = ConfigDict(frozen=True, json_schema_extra={FILE_MARK: True})

    name: str = Field(description="The client's name for it, or the task's, without any path")
    size: int = Field(description="Bytes")
    sha256: str = Field(description="Hex digest of the content")
    content_type: str | None = None
    key: str = Field(description="`{job id}/{file}`: it is downloaded at `/jobs/{job id}/files/{file}`")


@dataclass(frozen=True)
class FileLimits:
    """What a field of uploads takes: `Annotated[list[JobFile], FileLimits(types=("image/*",), max_bytes=5_000_000)]`.

    `types`: media types, as the client names them in the part; `max_bytes`: of each file. Checked while it arrives.
    """

    types: tuple[str, ...] = ()
    max_bytes: int | None = None

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = {**handler(core)}
        if self.types:
            schema[TYPES_MARK] = list(self.types)
        if self.max_bytes is not None:
            schema[BYTES_MARK] = self.max_bytes
        return schema

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> FileLimits:
        """The limits that a field's JSON Schema names, itself or for its items."""
        items = schema.get("items")
        both = {**(items if isinstance(items, Mapping) else {}), **schema}
        return cls(types=tuple(both.get(TYPES_MARK, ())), max_bytes=both.get(BYTES_MARK))


def is_of_type(content_type: str | None, types: Iterable[str]) -> bool:
    """True when the media type is one of these; `image/*` stands for all images."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return any(kind == wanted or (wanted.endswith("/*") and kind.startswith(wanted[:-1])) for wanted in types)


class FileStore:
    """The files of all jobs, or (`of`) those of one: it opens that job's files only, whatever an input names.

    Names given by clients never become paths. Raises FileMissing for a file that is gone or was never here,
    StorageFull, StorageUnavailable.
    """

    def __init__(self, storage: Storage | Path, *, job_id: str | None = None, scratch: Path | None = None) -> None:
        """`storage`: or the directory of a local one. `scratch`: where `path` may put copies; None: a new directory."""
        self.storage: Storage = LocalStorage(storage) if isinstance(storage, Path) else storage
        self._job_id = job_id
        self._scratch = scratch
        self._copies: Path | None = None

    @classmethod
    def at(cls, place: Place) -> FileStore:
        """The files at the place. Raises ConfigurationError."""
        return cls(open_storage(place))

    def of(self, job_id: str, *, scratch: Path | None = None) -> FileStore:
        """The same store for one job; whoever asks for it calls `close`."""
        return FileStore(self.storage, job_id=job_id, scratch=scratch)

    def path(self, file: JobFile) -> Path:
        """The file as a path, for what cannot read a stream. Not to be written to. Blocks: in an `async def` task call
        it by `asyncio.to_thread`.

        In a local directory it is the file itself, elsewhere a copy that goes when the attempt ends.
        Raises ValueError for a key that this store never gave out, or gave to another job.
        """
        key = self._key(file)
        if (path := self.storage.local_path(key)) is not None:
            return path
        return self._copy(key)

    def open(self, file: JobFile) -> BinaryIO:
        """Open the file for reading; it can seek. Raises ValueError as `path` does."""
        return self.storage.open(self._key(file))

    async def stream(self, file: JobFile, chunk_bytes: int = CHUNK_BYTES) -> AsyncIterator[bytes]:
        """Read the file piece by piece without blocking the event loop."""
        source = await asyncio.to_thread(self.open, file)
        try:
            while piece := await asyncio.to_thread(source.read, chunk_bytes):
                yield piece
        finally:
            source.close()

    def create(self, job_id: str, number: int, *, name: str, content_type: str | None) -> FileWriter:
        """A writer for the job's next upload (`async with`); `FileWriter.file` is the finished JobFile."""
        if not _JOB_ID.match(job_id):
            raise ValueError(f"not a job id: {job_id!r}")
        return FileWriter(self.storage, f"{job_id}/{number}", name=clean_name(name), content_type=content_type)

    def writer(self, name: str, content_type: str | None = None) -> FileWriter:
        """A new file of this job, to be written piece by piece: `with` or `async with`. After the block
        `FileWriter.file` is what the task returns; an error within the block leaves nothing behind."""
        if self._job_id is None:
            raise ValueError("these are the files of all jobs")
        name = clean_name(name)
        # Not counted: an attempt that has lost its job without knowing may be writing, too.
        key = f"{self._job_id}/{secrets.token_hex(8)}"
        return FileWriter(self.storage, key, name=name, content_type=content_type or mimetypes.guess_type(name)[0])

    def save(self, source: Source, name: str | None = None, content_type: str | None = None) -> JobFile:
        """Keep a file of this job: see `JobContext.save`. Blocks."""
        with contextlib.ExitStack() as opened:
            if isinstance(source, str | Path):
                name = name or Path(source).name
                source = opened.enter_context(open(source, "rb"))
            with self.writer(_named(name), content_type) as writer:
                for piece in _pieces(source):
                    writer.put(piece)
        return writer.file

    async def save_async(
        self, source: Source | AsyncIterable[bytes], name: str | None = None, content_type: str | None = None
    ) -> JobFile:
        """`save` for `async def` tasks, also for pieces that an async iterator gives."""
        if not isinstance(source, AsyncIterable):
            return await asyncio.to_thread(self.save, source, name, content_type)
        async with self.writer(_named(name), content_type) as writer:
            async for piece in source:
                await writer.write(piece)
        return writer.file

    def spill(self, job_id: str, kind: Literal["input", "result"], content: bytes) -> JobFile:
        """Keep what is too large for Redis. Blocks."""
        name, media = (
            ("result.json", "application/json") if kind == "result" else ("input.msgpack", "application/msgpack")
        )
        # As in `writer`: two attempts may end at once, and only one of them is the job's end.
        key = f"{job_id}/{kind}-{secrets.token_hex(8)}"
        with FileWriter(self.storage, key, name=name, content_type=media) as writer:
            writer.put(content)
        return writer.file

    def remove(self, job_id: str) -> None:
        """Delete everything the job owns. Nothing there is not an error. Raises StorageUnavailable."""
        if not _JOB_ID.match(job_id):
            raise ValueError(f"not a job id: {job_id!r}")
        self.storage.remove(job_id)

    def owners(self) -> dict[str, float]:
        """The ids of the jobs that own files here, with the time (s since the epoch) of their newest one."""
        return {job_id: newest for job_id, newest in self.storage.owners() if _JOB_ID.match(job_id)}

    def link(self, file: JobFile, *, seconds: int) -> str | None:
        """A URL of the storage's own at which anybody can fetch the file for so long; None: there is none."""
        return self.storage.link(self._key(file), seconds=seconds)

    def close(self) -> None:
        """Remove the copies that `path` has made."""
        copies, self._copies = self._copies, None
        if copies is not None:
            shutil.rmtree(copies, ignore_errors=True)

    def _copy(self, key: str) -> Path:
        if self._copies is None:
            self._copies = self._scratch or Path(tempfile.mkdtemp(prefix="jobstream-"))
            self._copies.mkdir(parents=True, exist_ok=True)
        copy = self._copies / key.replace("/", "-")
        if not copy.exists():
            part = copy.with_suffix(f".{secrets.token_hex(4)}")  # two threads may want the same file
            with self.storage.open(key) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
            part.replace(copy)
        return copy

    def _key(self, file: JobFile) -> str:
        match = _KEY.match(file.key)
        if match is None or self._job_id not in (None, match["job"]):
            raise ValueError(f"not a key of this job's files: {file.key!r}")
        return file.key


class FileWriter:
    """Streams one file into the storage, hashing as it goes. It is there when the block has ended without an error."""

    def __init__(self, storage: Storage, key: str, *, name: str, content_type: str | None) -> None:
        self._storage = storage
        self._key, self._name, self._content_type = key, name, content_type
        self._hash = hashlib.sha256()
        self._sink: Sink | None = None
        self.size = 0

    def __enter__(self) -> Self:
        self._sink = self._storage.create(
            self._key, content_type=media_type(self._content_type), disposition=disposition(self._name)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if error is not None:
            sink.abort()
            return
        try:
            sink.commit()
        except BaseException:
            sink.abort()
            raise

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def put(self, piece: bytes) -> None:
        """Append; returns when the storage has taken the piece. Raises StorageFull and StorageUnavailable."""
        if self._sink is None:
            raise ValueError("the file is written within its `with` block")
        self._sink.write(piece)
        self._hash.update(piece)
        self.size += len(piece)

    async def write(self, piece: bytes) -> None:
        """`put`, without blocking the event loop."""
        await asyncio.to_thread(self.put, piece)

    @property
    def file(self) -> JobFile:
        """What input or result say of this file."""
        return JobFile(
            name=self._name,
            size=self.size,
            sha256=self._hash.hexdigest(),
            content_type=self._content_type,
            key=self._key,
        )


def clean_name(name: str) -> str:
    """The last component of a file name, without control characters, at most 255 characters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter for letter in last if letter.isprintable())[:255] or "unnamed"


def media_type(content_type: str | None) -> str:
    """What a download says that it is: what was said of the file, if that is a media type at all."""
    return content_type if content_type and _MEDIA_TYPE.match(content_type) else "application/octet-stream"


def disposition(name: str) -> str:
    """The Content-Disposition of a download (RFC 6266): kept as a file of that name, never shown."""
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%' else "_" for letter in name)
    exact = "" if plain == name else f"; filename*=UTF-8''{quote(name.encode(errors='replace'), safe='')}"
    return f'attachment; filename="{plain}"{exact}'


def file_result(result: bytes | None, job_id: str) -> JobFile | None:
    """The file, if the result (JSON) is a file of the job and nothing else."""
    if not result or len(result) > 4096 or job_id.encode() not in result:
        return None
    return _as_file(msgspec.json.decode(result), job_id)


def is_spilled(file: JobFile) -> bool:
    """True for a result that was too large for Redis: it is answered with itself, as if it were there."""
    return file.key.partition("/")[2].startswith("result-")


def files_in(data: object, job_id: str) -> Iterator[JobFile]:
    """The files of the job that a result, or an input, names, wherever in it."""
    if isinstance(data, Mapping):
        if (file := _as_file(data, job_id)) is not None:
            yield file
        else:
            for value in data.values():
                yield from files_in(value, job_id)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from files_in(value, job_id)


def _as_file(value: Any, job_id: str) -> JobFile | None:
    if not isinstance(value, Mapping) or value.keys() != JobFile.model_fields.keys():
        return None
    with contextlib.suppress(pydantic.ValidationError):
        file = JobFile.model_validate(value)
        match = _KEY.match(file.key)
        if match is not None and match["job"] == job_id and _SHA256.match(file.sha256) and file.size >= 0:
            return file
    return None


def _named(name: str | None) -> str:
    if name is None:
        raise ValueError("a file needs a name: job.save(source, name)")
    return name


def _pieces(source: Any) -> Iterator[bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    if hasattr(source, "read"):
        while piece := source.read(CHUNK_BYTES):
            if isinstance(piece, str):
                raise TypeError("a file is made of bytes: open it with mode 'rb'")
            yield piece
    else:
        yield from source
