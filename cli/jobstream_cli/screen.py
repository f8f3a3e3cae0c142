"""A block of lines at the bottom of a terminal, redrawn in place: only the lines that changed are sent."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO


class Look(NamedTuple):
    """What a stream can show."""

    colour: bool
    unicode: bool
    screen: bool
    """Lines can be redrawn in place."""


def look_of(stream: TextIO) -> Look:
    """A terminal gets colours, unless https://no-color.org asks for none; nothing else ever does."""
    screen = stream.isatty() and os.environ.get("TERM") != "dumb"
    return Look(
        colour=screen and not os.environ.get("NO_COLOR"),
        unicode=(stream.encoding or "").lower().replace("-", "") == "utf8",
        screen=screen,
    )


def clean(text: str) -> str:
    """One line without control characters: what a task says must not steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def cells(text: str) -> int:
    """How wide the text is on a terminal."""
    return sum(map(_cells, text))


def crop(text: str, width: int) -> str:
    """The beginning of a text that fits into so many cells."""
    used = 0
    for index, letter in enumerate(text):
        used += _cells(letter)
        if used > width:
            return text[:index]
    return text


def pad(text: str, width: int) -> str:
    """The text in exactly so many cells: cropped, or filled with spaces."""
    cut = crop(text, width)
    return cut + " " * (width - cells(cut))


def _cells(letter: str) -> int:
    if letter.isascii():
        return 1
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


class Screen:
    """Draws the block. The cursor rests on the line below it, so that whatever comes next starts clean."""

    def __init__(self, stream: TextIO, *, size: Callable[[], os.terminal_size] = shutil.get_terminal_size) -> None:
        self._stream = stream
        self._size = size
        self._drawn: list[str] = []

    @property
    def columns(self) -> int:
        """Cells a line may take; the last column stays free, where some terminals wrap."""
        return max(self._size().columns - 1, 20)

    @property
    def rows(self) -> int:
        """Lines the block may have; one more is the cursor's."""
        return max(self._size().lines - 1, 1)

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the block by lines that fit into `columns`; what does not fit into the height is counted."""
        wanted = list(lines)
        rows = self.rows
        if len(wanted) > rows:
            wanted[rows - 1 :] = [f"... {len(wanted) - rows + 1} more"]
        if wanted == self._drawn:
            return
        parts = [self._to_top()]
        for index, line in enumerate(wanted):
            same = index < len(self._drawn) and self._drawn[index] == line
            parts.append("\n" if same else f"{line}\x1b[K\n")
        if len(wanted) < len(self._drawn):
            parts.append("\x1b[J")
        self._send("".join(parts))
        self._drawn = wanted

    def print(self, text: str) -> None:
        """Add a line that stays, above the block."""
        block = self._drawn
        self._send(f"{self._to_top()}\x1b[J{text}\n")
        self._drawn = []
        self.draw(block)

    def _to_top(self) -> str:
        return f"\x1b[{len(self._drawn)}F" if self._drawn else ""

    def _send(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
