"""The words by which a job is found: those of its tags and of the strings and whole numbers in its input."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from jobstream.errors import InvalidParameter

WORDS_MAX = 16
"""Words kept for a job, unless a setting says otherwise: each costs about 130 bytes of Redis."""

ASKED_MAX = 8
"""Words that one search may ask for."""

_CHARACTERS = 4_096
"""Characters of an input that are looked at: what follows is content, not a name by which somebody asks."""

_WORD = re.compile(r"\w+")
_LENGTHS = range(2, 33)
"""Characters of a word that is kept: one letter finds everything, what is longer than 32 nobody types."""


def words_of(data: object, *, tags: Sequence[str] = (), limit: int = WORDS_MAX) -> tuple[str, ...]:
    """The first `limit` different words of the tags and of the input, folded; of a map its values, not its names."""
    found: dict[str, None] = {}
    left = _CHARACTERS
    for text in (*tags, *_texts(data)):
        for word in _words(text[:left]):
            if len(found) >= limit:
                return tuple(found)
            found[word] = None
        left -= len(text)
        if left <= 0:
            break
    return tuple(found)


def parse_query(text: str) -> tuple[str, ...]:
    """The words that a search asks for, all of which a job must have. Raises InvalidParameter when there are none."""
    asked = tuple(dict.fromkeys(_words(text)))
    if not 1 <= len(asked) <= ASKED_MAX:
        raise InvalidParameter(
            f"q is 1 to {ASKED_MAX} words of {_LENGTHS[0]} to {_LENGTHS[-1]} letters or digits; all of them must match"
        )
    return asked


def _words(text: str) -> Iterator[str]:
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        if len(match[0]) in _LENGTHS:
            yield match[0]


def _texts(value: object) -> Iterator[str]:
    """Depth first, in the order in which they are written. A stack of our own: inputs may be nested deeply."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, int) and not isinstance(item, bool):
            yield str(item)
        elif isinstance(item, dict):
            waiting.extend(reversed(item.values()))
        elif isinstance(item, list | tuple):
            waiting.extend(reversed(item))
