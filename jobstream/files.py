"""Uploaded files: named in a job's input, kept in a directory of the job's own, opened by the task."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

CHUNK_BYTES = 1 << 18
"""How much of a file is held in memory at once."""

FILE_MARK = "x-jobstream-file"
"""The JSON Schema keyword that marks an input field as an upload."""

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_KEY = re.compile(r"(?P<job>[A-Za-z0-9_-]{1,128})/(?P<number>[0-9]{1,6})\Z")


class FileSettings(BaseSettings):
    """Where uploads are kept. API and workers must see the same directory."""

    model_config = SettingsConfigDict(env_prefix="JOBSTREAM_", env_file=".env", extra="ignore", env_ignore_empty=True)

    files_dir: Path = Field(Path(".jobstream/files"), description="Directory for uploaded files.")


class JobFile(BaseModel):
    """An uploaded file, as a task's input names it.

    A task asks for uploads by a field of this type (or `list[JobFile]`) in its input model; clients send them as
    `multipart/form-data` parts of the field's name. Open it with `job.files`.
    """

    model_config = ConfigDict(frozen=True, json_schema_extra={FILE_MARK: True})

    name: str = Field(description="The client's name for it, without any path")
    size: int = Field(description="Bytes")
    sha256: str = Field(description="Hex digest of the content")
    content_type: str | None = None
    key: str = Field(description="Where the service keeps it; of no use to clients")


class FileStore:
    """Uploads in a local directory: `root/<job id>/<number>`. Names given by clients never become paths."""

    def __init__(self, root: Path, *, job_id: str | None = None) -> None:
        self.root = root
        self._job_id = job_id

    def of(self, job_id: str) -> FileStore:
        """The same store for one job: it opens that job's files only, whatever an input names."""
        return FileStore(self.root, job_id=job_id)

    def path(self, file: JobFile) -> Path:
        """The file's path. Raises ValueError for a key that this store never gave out, or gave to another job."""
        match = _KEY.match(file.key)
        if match is None or self._job_id not in (None, match["job"]):
            raise ValueError(f"not a key of this job's files: {file.key!r}")
        return self.root / file.key

    def open(self, file: JobFile) -> BinaryIO:
        """Open the file for reading. Raises FileNotFoundError when the upload is gone."""
        return self.path(file).open("rb")

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
        return FileWriter(self.root, f"{job_id}/{number}", name=clean_name(name), content_type=content_type)

    def remove(self, job_id: str) -> None:
        """Delete everything the job owns. Nothing there is not an error."""
        if not _JOB_ID.match(job_id):
            raise ValueError(f"not a job id: {job_id!r}")
        shutil.rmtree(self.root / job_id, ignore_errors=True)

    def owners(self) -> dict[str, float]:
        """The ids of the jobs that own files here, with the time (s since the epoch) their directory last changed."""
        if not self.root.is_dir():
            return {}
        found: dict[str, float] = {}
        for entry in self.root.iterdir():
            try:
                if entry.is_dir() and _JOB_ID.match(entry.name):
                    found[entry.name] = entry.stat().st_mtime
            except FileNotFoundError:
                continue
        return found


class FileWriter:
    """Streams one upload to disk, hashing as it goes."""

    def __init__(self, root: Path, key: str, *, name: str, content_type: str | None) -> None:
        self._path = root / key
        self._key, self._name, self._content_type = key, name, content_type
        self._hash = hashlib.sha256()
        self.size = 0

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._path.parent.mkdir, parents=True, exist_ok=True)
        self._target = await asyncio.to_thread(self._path.open, "wb")
        return self

    async def write(self, piece: bytes) -> None:
        """Append; returns when the piece is handed to the operating system."""
        await asyncio.to_thread(self._write, piece)

    def _write(self, piece: bytes) -> None:
        self._target.write(piece)
        self._hash.update(piece)
        self.size += len(piece)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._target.close)

    @property
    def file(self) -> JobFile:
        """What the input says of this upload."""
        return JobFile(
            name=self._name,
            size=self.size,
            sha256=self._hash.hexdigest(),
            content_type=self._content_type,
            key=self._key,
        )


def clean_name(name: str) -> str:
    """The last component of a client's file name, without control characters, at most 255 characters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter for letter in last if letter.isprintable())[:255] or "unnamed"
