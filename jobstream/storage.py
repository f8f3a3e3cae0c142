"""Where the bytes of files are: a local directory, or a bucket of an S3-compatible server. Blocking; threads may share.

A key is `<job id>/<name>`, made by `jobstream.files`; nothing that a client has chosen is in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

import msgspec

from jobstream.errors import ConfigurationError, FileMissing, JobstreamError, StorageFull, StorageUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Place:
    """What it takes to open a storage, in this process or in another one."""

    directory: str = ""
    url: str = ""
    """`s3://bucket/prefix`; it goes before the directory."""
    endpoint: str = ""
    region: str = ""

    def __str__(self) -> str:
        """As people name it."""
        return self.url + (f" at {self.endpoint}" if self.endpoint else "") if self.url else self.directory

    def dump(self) -> str:
        """As an argument of a process."""
        return msgspec.json.encode(asdict(self)).decode()

    @classmethod
    def load(cls, text: str) -> Place:
        """What `dump` has made."""
        return msgspec.json.decode(text, type=cls)


class Sink(Protocol):
    """One object on its way into the storage. Nobody sees it before `commit`; after `abort` nothing is left of it."""

    def write(self, piece: bytes) -> None:
        """Append. Raises StorageFull and StorageUnavailable, as `commit` does."""

    def commit(self) -> None:
        """All has been written."""

    def abort(self) -> None:
        """It comes to nothing. Raises nothing."""


class Storage(Protocol):
    """Objects by key."""

    place: Place

    def create(self, key: str, *, content_type: str, disposition: str) -> Sink:
        """A new object. `content_type` and `disposition`: the headers of an answer that the storage itself gives."""

    def open(self, key: str) -> BinaryIO:
        """Read it; the stream can seek. Raises FileMissing and StorageUnavailable."""

    def local_path(self, key: str) -> Path | None:
        """Its path, where it is a file of this machine."""

    def link(self, key: str, *, seconds: int) -> str | None:
        """A URL at which anybody can fetch it for so long, if the storage has such."""

    def remove(self, job_id: str) -> None:
        """Delete all that the job owns. Nothing there is not an error. Raises StorageUnavailable."""

    def owners(self) -> Iterator[tuple[str, float]]:
        """The jobs that own something here, and when that was last written to (s since the epoch)."""


def open_storage(place: Place) -> Storage:
    """The storage at the place. Raises ConfigurationError."""
    if not place.url:
        return LocalStorage(Path(place.directory))
    url = urlsplit(place.url)
    if url.scheme != "s3" or not url.netloc or url.query or url.fragment:
        raise ConfigurationError(f"JOBSTREAM_FILES_URL is s3://BUCKET or s3://BUCKET/PREFIX, not {place.url!r}")
    try:
        from jobstream.s3 import S3Storage
    except ImportError as error:
        raise ConfigurationError(
            f"Files on S3 need obstore ({error}): install it with `pip install 'jobstream[s3]'`"
        ) from error
    return S3Storage(place, bucket=url.netloc, prefix=url.path.strip("/"))


class LocalStorage:
    """A directory: `root/<job id>/<name>`. API and workers must see the same one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = Place(directory=str(root.absolute()))

    def create(self, key: str, *, content_type: str, disposition: str) -> Sink:
        """A new file; it has its name when it is whole."""
        return _LocalSink(self.root / key)

    def open(self, key: str) -> BinaryIO:
        """Open the file. A symbolic link is none of ours."""
        try:
            return os.fdopen(os.open(self.root / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
        except FileNotFoundError:
            raise FileMissing(missing(key, self.place)) from None
        except OSError as error:
            raise storage_error(error) from error

    def local_path(self, key: str) -> Path | None:
        """Where the file is. Raises FileMissing."""
        path = self.root / key
        if path.is_symlink() or not path.is_file():
            raise FileMissing(missing(key, self.place))
        return path

    def link(self, key: str, *, seconds: int) -> str | None:
        """There is none."""
        return None

    def remove(self, job_id: str) -> None:
        """Remove the job's directory."""
        shutil.rmtree(self.root / job_id, ignore_errors=True)

    def owners(self) -> Iterator[tuple[str, float]]:
        """The directories; the newest of a directory and its files counts."""
        try:
            entries = list(os.scandir(self.root))
        except FileNotFoundError:
            return
        for entry in entries:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if entry.is_dir(follow_symlinks=False):
                    inside = [file.stat(follow_symlinks=False).st_mtime for file in os.scandir(entry.path)]
                    yield entry.name, max([entry.stat(follow_symlinks=False).st_mtime, *inside])


class _LocalSink:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._part, flags, 0o644)
        except OSError as error:
            raise storage_error(error) from error

    def write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise storage_error(error) from error

    def commit(self) -> None:
        try:
            self._close()
            self._part.replace(self._path)
        except OSError as error:
            raise storage_error(error) from error

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._part.unlink()

    def _close(self) -> None:
        if self._file >= 0:
            closing, self._file = self._file, -1
            os.close(closing)


def missing(key: str, place: Place) -> str:
    """What to say of a file that is not there although a job says so."""
    hint = "" if place.url else "; API and workers on several machines need one directory that all of them share, or S3"
    return f"{key} is not in {place}{hint}"


def storage_error(error: OSError) -> JobstreamError:
    """What the operating system has refused, as clients are told of it."""
    if error.errno in _FULL:
        return StorageFull(f"No room for files ({os.strerror(error.errno or 0)})")
    return StorageUnavailable(f"Files cannot be kept or read for the moment ({type(error).__name__}: {error.strerror})")
