"""Files on their way: what is uploaded, and a download that goes on where it was cut. No I/O with the network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, Self, cast

import httpx2
from pydantic import BaseModel, Field

from jobstream.client.errors import UnexpectedResult
from jobstream.files import clean_name

Upload = Path | BinaryIO
"""A file by its path, or one that is open for reading: it is called by the last part of its `name`, if it has one."""

OnProgress = Callable[[int, int], object]
"""Told of the bytes that are there, and of how many there will be."""


class JobFileInfo(BaseModel):
    """A file of a job, as `files()` lists it."""

    name: str
    size: int = Field(description="Bytes")
    sha256: str
    content_type: str | None
    role: Literal["input", "result"]
    url: str


class Download:
    """One file, and what there is of it. It is where it is to be when all of it has come, and is what it should be."""

    def __init__(self, file: JobFileInfo, target: BinaryIO, on_progress: OnProgress | None) -> None:
        self.file = file
        self._target = target
        self._on_progress = on_progress
        self._hash = hashlib.sha256()
        self.at = 0

    @classmethod
    @contextmanager
    def to(cls, path: Path, file: JobFileInfo, on_progress: OnProgress | None) -> Iterator[Self]:
        """Into a file, which is beside `path` until the block ends without an error."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as target:
                download = cls(file, target, on_progress)
                yield download
                download.check()
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @property
    def headers(self) -> dict[str, str]:
        """Of the next request: a file never changes, so its rest is asked for without a condition."""
        return {"Range": f"bytes={self.at}-"} if self.at else {}

    def begin(self, response: httpx2.Response) -> None:
        """An answer has come: with the rest, or with all of it again."""
        if self.at and response.status_code != 206:
            self._target.seek(0)
            self._target.truncate()
            self._hash, self.at = hashlib.sha256(), 0

    def take(self, piece: bytes) -> None:
        """More of it."""
        self._target.write(piece)
        self._hash.update(piece)
        self.at += len(piece)
        if self._on_progress is not None:
            self._on_progress(self.at, self.file.size)

    @property
    def is_whole(self) -> bool:
        """Whether as many bytes have come as there are."""
        return self.at >= self.file.size

    def check(self) -> None:
        """Raises UnexpectedResult when it is not the file that was to come."""
        if self._hash.hexdigest() != self.file.sha256:
            raise UnexpectedResult(f"{self.file.name!r} has arrived damaged: its SHA-256 is not {self.file.sha256}")


def place_for(file: JobFileInfo, to: Path | str | None) -> Path:
    """Where a download goes: a path, or the file's own name in a directory (None: this one)."""
    path = Path(to) if to is not None else Path()
    name = clean_name(file.name)
    return path / (name if name.strip(".") else "unnamed") if path.is_dir() else path


def chosen(files: Sequence[JobFileInfo], name: str | None) -> JobFileInfo:
    """The file of that name; without a name the one that the job's result is. Raises LookupError."""
    fitting = [file for file in files if (file.role == "result" if name is None else file.name == name)]
    if len(fitting) != 1:
        known = ", ".join(repr(file.name) for file in files) or "none"
        wanted = "one file as its result" if name is None else f"one file named {name!r}"
        raise LookupError(f"the job has not {wanted}; it has {known}")
    return fitting[0]


@contextmanager
def opened(upload: Upload) -> Iterator[tuple[str, BinaryIO]]:
    """The upload's name, and it open, from where it was."""
    if isinstance(upload, Path):
        with upload.open("rb") as source:
            yield upload.name, source
        return
    name = clean_name(str(getattr(upload, "name", "") or "file"))
    if not upload.seekable():
        yield name, cast(BinaryIO, _OnlyRead(upload))
        return
    at = upload.tell()
    try:
        yield name, cast(BinaryIO, _Rest(upload, at))
    finally:
        upload.seek(at)  # should it have to be sent again


class _OnlyRead:
    """A file that can do nothing else: httpx2 sends it in chunks."""

    def __init__(self, source: BinaryIO) -> None:
        self.read = source.read


class _Rest(_OnlyRead):
    """A file that begins in the middle of another one: httpx2 would begin at its beginning."""

    def __init__(self, source: BinaryIO, at: int) -> None:
        super().__init__(source)
        self._source = source
        self._at = at

    def tell(self) -> int:
        return self._source.tell() - self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + self._at if whence == os.SEEK_SET else offset
        return self._source.seek(place, whence) - self._at


def can_be_sent_again(upload: Upload) -> bool:
    """False for what can be read only once."""
    return isinstance(upload, Path) or upload.seekable()
