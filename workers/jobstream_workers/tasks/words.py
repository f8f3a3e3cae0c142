"""words: counts what is in a text, in uploaded files, or in all of them together. An `async def` task."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobstream import JobContext, JobFile, TaskError, task
from jobstream.files import FileStore

PIECE = 1 << 18
"""Characters counted at a time: counting holds the interpreter, so a larger piece would hold up the event loop."""

WORD = re.compile(r"\w{1,65536}")
r"""A word is a run of `\w` (Unicode: letters and digits of every script, and `_`). A run beyond 65,536 characters
counts as several words, so that memory stays small whatever is sent."""


class Text(BaseModel):
    """What to count: a text, files, or both."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "anyOf": [
                {"required": ["text"], "properties": {"text": {"type": "string"}}},
                {"required": ["files"], "properties": {"files": {"minItems": 1}}},
            ]
        },
    )

    text: str | None = None
    files: list[JobFile] = Field([], description="Text files in UTF-8")
    top: int = Field(10, ge=0, le=1_000, description="How many of the most common words to list")

    @model_validator(mode="after")
    def _something_to_count(self) -> Self:
        if self.text is None and not self.files:
            raise ValueError("give a text or at least one file")
        return self


class WordFrequency(BaseModel):
    """A word, case-folded, and how often it was there."""

    word: str
    count: int


class WordCount(BaseModel):
    """What was counted."""

    words: int
    unique: int = Field(description="Different words; upper and lower case are the same")
    lines: int = Field(description="Lines end with a line feed; the last one need not")
    characters: int
    most_common: list[WordFrequency] = Field(description="The most frequent first; of equals the one met first")


@task
async def words(job: JobContext, text: Text) -> WordCount:
    """Count the words of a text, of uploaded UTF-8 files, or of all of them together."""
    tally, finished = Tally(), list[str]()
    job.progress(0, len((text.text or "").encode()) + sum(file.size for file in text.files), "Counting")
    await count(job, tally, pieces(text.text or ""))
    for file in text.files:
        job.progress(message=f"Counting {file.name}")
        await count(job, tally, decoded(job.files, file))
        finished.append(file.name)
        job.items(finished)
    return await asyncio.to_thread(tally.result, text.top)


async def count(job: JobContext, tally: Tally, source: AsyncIterator[str]) -> None:
    """Add a whole source to the tally; progress counts UTF-8 bytes."""
    async for piece in source:
        await asyncio.to_thread(tally.add, piece)
        job.progress(tally.bytes)
    tally.end_source()


async def pieces(text: str) -> AsyncIterator[str]:
    """The text, cut."""
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE]


async def decoded(store: FileStore, file: JobFile) -> AsyncIterator[str]:
    """The file's text, piece by piece. Raises TaskError at the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    try:
        async for piece in store.stream(file, PIECE):
            if text := decoder.decode(piece):
                yield text
            read += len(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        waiting, _ = decoder.getstate()  # the bytes of a cut character, which the failed decode began with
        offset = read - len(waiting) + error.start
        raise TaskError(f"{file.name} is not UTF-8 text: see the byte at offset {offset}", code="not-utf-8") from None


class Tally:
    """Counts pieces of text; a word that is cut by the border between two pieces counts once, as a whole."""

    def __init__(self) -> None:
        self.words = Counter[str]()
        self.lines = self.characters = self.bytes = 0
        self._cut_word = ""
        self._open_line = False

    def add(self, piece: str) -> None:
        """Count a piece, which is not empty."""
        found: list[str] = WORD.findall(self._cut_word + piece)
        self._cut_word = found.pop() if WORD.match(piece[-1]) else ""
        self.words.update(map(str.casefold, found))
        self.lines += piece.count("\n")
        self._open_line = piece[-1] != "\n"
        self.characters += len(piece)
        self.bytes += len(piece.encode())

    def end_source(self) -> None:
        """Neither a word nor a line goes on from one source into the next."""
        self.words.update([self._cut_word.casefold()] if self._cut_word else [])
        self.lines += self._open_line
        self._cut_word, self._open_line = "", False

    def result(self, top: int) -> WordCount:
        """What has been counted, with the `top` most common words."""
        return WordCount(
            words=self.words.total(),
            unique=len(self.words),
            lines=self.lines,
            characters=self.characters,
            most_common=[WordFrequency(word=word, count=count) for word, count in self.words.most_common(top)],
        )
