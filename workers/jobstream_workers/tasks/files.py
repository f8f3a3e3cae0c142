"""files: hashes and measures uploaded files. A plain `def` task: it runs in a thread and may block."""

from __future__ import annotations

import codecs
import hashlib
import mimetypes
from typing import Annotated

from pydantic import BaseModel, Field

from jobstream import JobContext, JobFile, task
from jobstream.files import CHUNK_BYTES


class FileReport(BaseModel):
    """What is in a file."""

    name: str
    size: int = Field(description="Bytes")
    sha256: str
    blake2b: str
    intact: bool = Field(description="Whether the file is still what was uploaded")
    media_type: str | None = Field(description="Guessed from the name, else what the client said")
    lines: int | None = Field(description="Null for what is not text: UTF-8 without null characters")


@task
def files(job: JobContext, files: Annotated[list[JobFile], Field(min_length=1)]) -> list[FileReport]:
    """Hash and measure uploaded files, one after the other."""
    reports: list[FileReport] = []
    done = 0
    job.progress(0, sum(file.size for file in files))
    for file in files:
        job.progress(message=f"Reading {file.name}")
        report = measure(job, file, done=done)
        if not report.intact:
            job.log(f"{file.name} is not what was uploaded", level="warning")
        reports.append(report)
        done += file.size
        job.progress(done)
        job.items(report.name for report in reports)
        job.chunk(report.model_dump())
    return reports


def measure(job: JobContext, file: JobFile, *, done: int) -> FileReport:
    """Read the file once. `done`: the bytes of the files before it, for the progress."""
    sha256, blake2b, lines, size = hashlib.sha256(), hashlib.blake2b(), Lines(), 0
    with job.files.open(file) as source:
        while piece := source.read(CHUNK_BYTES):
            sha256.update(piece)
            blake2b.update(piece)
            lines.add(piece)
            size += len(piece)
            job.progress(done + size)
    return FileReport(
        name=file.name,
        size=size,
        sha256=sha256.hexdigest(),
        blake2b=blake2b.hexdigest(),
        intact=(size, sha256.hexdigest()) == (file.size, file.sha256),
        media_type=mimetypes.guess_type(file.name)[0] or file.content_type,
        lines=lines.end(),
    )


class Lines:
    """Counts lines until the bytes turn out not to be text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_text = True
        self._ended = 0
        self._open = False

    def add(self, piece: bytes, *, final: bool = False) -> None:
        """Count a piece, wherever it was cut."""
        if not self._is_text:
            return
        try:
            self._decoder.decode(piece, final)
        except UnicodeDecodeError:
            self._is_text = False
        self._is_text &= b"\0" not in piece
        self._ended += piece.count(b"\n")
        self._open = not piece.endswith(b"\n") if piece else self._open

    def end(self) -> int | None:
        """How many lines there were, the last one with or without a line feed; None if it was not text."""
        self.add(b"", final=True)
        return self._ended + self._open if self._is_text else None
