"""The words by which a job is found."""

from __future__ import annotations

import random

import pytest

from jobstream.errors import InvalidParameter
from jobstream.search import WORDS_MAX, parse_query, words_of


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"text": "To be or not to be"}, ("to", "be", "or", "not")),
        ({"order": 4711, "paid": True, "rate": 0.5}, ("4711",)),
        ({"a": ["ﬁne CAFÉ", {"b": "Straße"}], "c": "x"}, ("fine", "café", "strasse")),
        ({"id": "f" * 33, "file": "report-2026.pdf"}, ("report", "2026", "pdf")),
        ({}, ()),
        (None, ()),
    ],
)
def test_words_are_those_of_the_values_folded_each_once(data: object, words: tuple[str, ...]) -> None:
    assert words_of(data) == words


def test_tags_come_first_and_a_job_is_found_by_no_more_words_than_agreed() -> None:
    words = words_of({"text": " ".join(f"word{number}" for number in range(100))}, tags=["customer:42"])
    assert words[:3] == ("customer", "42", "word0")
    assert len(words) == WORDS_MAX
    assert words_of({"text": "one two"}, limit=0) == ()


def test_a_long_text_is_looked_at_from_its_beginning_only() -> None:
    assert words_of({"text": "the " * 2_000 + "end"}) == ("the",)
    assert words_of({"texts": ["the " * 2_000, "end"]}) == ("the",)


def test_a_query_is_folded_like_the_input() -> None:
    assert parse_query("  CAFÉ, strasse café ") == ("café", "strasse")


@pytest.mark.parametrize("text", ["", "-", "a", "x" * 33, "one two three four five six seven eight nine"])
def test_a_query_without_words_or_with_too_many_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="q is 1 to 8 words"):
        parse_query(text)


def test_a_job_is_found_by_each_of_its_words() -> None:
    rng = random.Random(11)
    for _ in range(2_000):
        text = "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x250), rng.randrange(0xD800)))) for _ in range(60)
        )
        for word in words_of({"text": text}):
            assert parse_query(word) == (word,)
            assert not {" ", "~", "!"} & set(word)
