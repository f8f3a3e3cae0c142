"""Files in a bucket of an S3-compatible server, by obstore: Rust's object_store, without boto."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from jobstream.errors import FileMissing, JobstreamError, StorageUnavailable
from jobstream.storage import Place, Sink, missing

PART_BYTES = 8 << 20
"""An upload larger than this goes in parts of this size: S3 takes 10,000 of them, 80 GB."""
PARTS_AT_ONCE = 2
"""Parts of one upload on their way: with the one that is filled, all that it holds in memory."""
PIECE_BYTES = 1 << 18
"""What is handed to the sender at a time."""
READ_BYTES = 4 << 20
"""What one request reads ahead."""
REQUEST_SECONDS = 300
"""What a request may take: the end of a large multipart upload takes S3 minutes."""
RETRY_SECONDS = 20


class S3Storage:
    """`s3://bucket/prefix`. Credentials are found as AWS's own tools find them: environment, web identity, instance."""

    def __init__(self, place: Place, *, bucket: str, prefix: str) -> None:
        self.place = place
        where: dict[str, Any] = {}
        if place.endpoint:
            where["endpoint"] = place.endpoint
        if place.region:
            where["region"] = place.region
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "allow_http": place.endpoint.startswith("http://"),
                "timeout": timedelta(seconds=REQUEST_SECONDS),
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            **where,
        )

    def create(self, key: str, *, content_type: str, disposition: str) -> Sink:
        """A new object: one request if it is small, else a multipart upload."""
        return _S3Sink(self._store, key, {"Content-Type": content_type, "Content-Disposition": disposition})

    def open(self, key: str) -> BinaryIO:
        """Read it by ranges, as they are asked for."""
        with self._errors(key):
            size = obstore.head(self._store, key)["size"]
        return cast(BinaryIO, io.BufferedReader(_Ranges(self, key, size), READ_BYTES))

    def read(self, key: str, start: int, length: int) -> memoryview:
        """A range of it."""
        with self._errors(key):
            return memoryview(obstore.get_range(self._store, key, start=start, length=length))

    def local_path(self, key: str) -> Path | None:
        """It has none."""
        return None

    def link(self, key: str, *, seconds: int) -> str | None:
        """A presigned URL."""
        with self._errors(key):
            return obstore.sign(self._store, "GET", key, timedelta(seconds=seconds))

    def remove(self, job_id: str) -> None:
        """Delete all objects behind the job's prefix."""
        with self._errors(job_id):
            for batch in obstore.list(self._store, f"{job_id}/"):
                for entry in batch:
                    with contextlib.suppress(FileNotFoundError):
                        obstore.delete(self._store, entry["path"])

    def owners(self) -> Iterator[tuple[str, float]]:
        """What a listing of the bucket shows: an upload in parts is not there before its end."""
        newest: dict[str, float] = {}
        with self._errors("the bucket"):
            for batch in obstore.list(self._store):
                for entry in batch:
                    job_id = entry["path"].partition("/")[0]
                    newest[job_id] = max(newest.get(job_id, 0.0), entry["last_modified"].timestamp())
        yield from newest.items()

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise FileMissing(missing(key, self.place)) from None
        except (BaseError, OSError) as error:
            raise _unavailable(error) from error


class _Ranges(io.RawIOBase):
    """An object as a file that can seek."""

    def __init__(self, storage: S3Storage, key: str, size: int) -> None:
        self._storage = storage
        self._key = key
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readall(self) -> bytes:
        """The rest, at once: Python's own way would ask for 8 KB at a time."""
        wanted = max(0, self._size - self._at)
        rest = bytes(self._storage.read(self._key, self._at, wanted)) if wanted else b""
        self._at += len(rest)
        return rest

    def readinto(self, target: Any) -> int:
        wanted = min(len(target), self._size - self._at)
        if wanted <= 0:
            return 0
        piece = self._storage.read(self._key, self._at, wanted)
        target[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class _Aborted(Exception):
    """Ends an upload in parts: obstore then has the server forget them."""


_END = None


class _S3Sink:
    """Holds what may be all of a small object; a larger one goes to a thread that sends. `write` waits while it is
    behind."""

    def __init__(self, store: S3Store, key: str, attributes: dict[str, str]) -> None:
        self._store = store
        self._key = key
        self._attributes = attributes
        self._held = bytearray()
        self._pieces: queue.Queue[bytes | None] = queue.Queue(maxsize=4)
        self._sender: threading.Thread | None = None
        self._failure: Exception | None = None
        self._ended = threading.Event()
        self._aborted = False

    def write(self, piece: bytes) -> None:
        if self._sender is not None:
            self._put(bytes(piece))
            return
        self._held += piece
        if len(self._held) >= PART_BYTES:
            self._sender = threading.Thread(target=self._send, name="jobstream-s3", daemon=True)
            self._sender.start()
            held, self._held = self._held, bytearray()
            for start in range(0, len(held), PIECE_BYTES):
                self._put(bytes(held[start : start + PIECE_BYTES]))

    def commit(self) -> None:
        if self._sender is None:
            try:
                obstore.put(self._store, self._key, bytes(self._held), attributes=self._attributes, use_multipart=False)
            except (BaseError, OSError) as error:
                raise _unavailable(error) from error
            return
        self._put(_END)
        self._sender.join()
        if self._failure is not None:
            raise _unavailable(self._failure) from self._failure

    def abort(self) -> None:
        self._held = bytearray()
        if self._sender is not None:
            self._aborted = True
            with contextlib.suppress(JobstreamError):
                self._put(_END)
            self._sender.join()

    def _put(self, piece: bytes | None) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=0.2)
                return
        raise _unavailable(self._failure or _Aborted())

    def _send(self) -> None:
        try:
            obstore.put(
                self._store,
                self._key,
                self._taken(),
                attributes=self._attributes,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )
        except Exception as error:
            self._failure = error
        finally:
            self._ended.set()

    def _taken(self) -> Iterator[bytes]:
        while (piece := self._pieces.get()) is not _END:
            yield piece
        if self._aborted:
            raise _Aborted


def _unavailable(error: Exception) -> StorageUnavailable:
    return StorageUnavailable(f"Files cannot be kept or read for the moment ({type(error).__name__})")
