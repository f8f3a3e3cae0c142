"""words: the counts are those of the whole text, however it was cut and wherever it came from."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema_rs
import pytest

from jobstream import JobCancelled, JobFile, TaskError
from jobstream.errors import InvalidInput
from jobstream.files import CHUNK_BYTES, FileStore
from jobstream_workers.tasks import words
from jobstream_workers.tasks.words import Text, WordCount, WordFrequency
from tests.unit.task_bench import Bench

ALPHABET = "ab Straße ÄÖ\n\r\nπ 日本語 𝔘𝔫𝔦 🎉 _x9-'. İ\u0301\t"


class ChoppingStore(FileStore):
    """Reads files in pieces of random sizes, so that borders cut every character and every word somewhere."""

    def __init__(self, root: Path, chance: random.Random, longest: int) -> None:
        super().__init__(root)
        self._chance, self._longest = chance, longest

    async def stream(self, file: JobFile, chunk_bytes: int = CHUNK_BYTES) -> AsyncIterator[bytes]:
        content, start = self.path(file).read_bytes(), 0
        while start < len(content):
            end = start + self._chance.randint(1, self._longest)
            yield content[start:end]
            start = end


async def run(bench: Bench, text: Text) -> WordCount:
    result = await words(bench.job, text)
    assert isinstance(result, WordCount)
    return result


def naive(*texts: str, top: int = 10) -> WordCount:
    found = Counter(word.casefold() for text in texts for word in re.findall(r"\w+", text))
    return WordCount(
        words=found.total(),
        unique=len(found),
        lines=sum(len(text.split("\n")) - (text.endswith("\n") or not text) for text in texts),
        characters=sum(map(len, texts)),
        most_common=[WordFrequency(word=word, count=count) for word, count in found.most_common(top)],
    )


async def test_a_text_is_counted(tmp_path: Path) -> None:
    result = await run(Bench.at(tmp_path), Text(text="To be, or not to BE\nthat is", top=2))
    assert result == WordCount(
        words=8,
        unique=6,
        lines=2,
        characters=27,
        most_common=[WordFrequency(word="to", count=2), WordFrequency(word="be", count=2)],
    )


@pytest.mark.parametrize("seed", range(60))
async def test_borders_between_pieces_change_nothing(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    texts = ["".join(chance.choices(ALPHABET, k=chance.randint(0, 400))) for _ in range(chance.randint(1, 3))]
    bench = Bench(ChoppingStore(tmp_path, chance, longest=chance.choice([1, 2, 5, 40])))
    uploads = [await bench.upload(text.encode()) for text in texts]
    assert await run(bench, Text(files=uploads, top=50)) == naive(*texts, top=50)


async def test_real_pieces_of_a_large_file_and_a_large_text_are_counted_whole(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    text = "größer日本語 kleiner\n" * 50_000  # a character and a word lie across most of its borders
    upload = await bench.upload(text.encode())
    assert upload.size > 4 * CHUNK_BYTES
    assert await run(bench, Text(text=text, files=[upload])) == naive(text, text)


async def test_a_source_ends_its_last_word_and_its_last_line(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    result = await run(bench, Text(text="one", files=[await bench.upload(b"two"), await bench.upload(b"three")]))
    assert (result.words, result.lines) == (3, 3)


@pytest.mark.parametrize("longest", [1 << 10, 1 << 18])
async def test_an_endless_word_is_counted_in_pieces_wherever_it_is_cut(longest: int, tmp_path: Path) -> None:
    bench = Bench(ChoppingStore(tmp_path, random.Random(1), longest))
    result = await run(bench, Text(files=[await bench.upload(b"x" * (3 * 65_536 + 1))]))
    assert (result.words, result.unique) == (4, 2)


async def test_progress_counts_bytes_and_names_the_finished_files(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    files = [await bench.upload("ä".encode() * 300_000, "first.txt"), await bench.upload(b"", "empty.txt")]
    await run(bench, Text(text="ü", files=files))
    assert bench.progress == (600_002, 600_002, "Counting empty.txt", ("first.txt", "empty.txt"))
    steps = [state.current for state in bench.outbox.states]
    assert steps == sorted(steps, key=lambda step: step or 0)
    assert len(set(steps)) > 3


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"\xff", 0),
        (b"caf\xe9 au lait", 3),
        (b"cut \xe2\x82", 4),
        ("ä".encode() * CHUNK_BYTES + b"\x80", 2 * CHUNK_BYTES),
        (b"x" * (CHUNK_BYTES - 1) + b"\xe2\x82", CHUNK_BYTES - 1),
        (b"x" * (CHUNK_BYTES - 1) + b"\xe2(", CHUNK_BYTES - 1),
    ],
)
async def test_what_is_not_utf8_is_refused_with_name_and_offset(content: bytes, offset: int, tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    good, bad = await bench.upload(b"fine", "good.txt"), await bench.upload(content, "bad.txt")
    with pytest.raises(TaskError, match=rf"^bad\.txt is not UTF-8 text: see the byte at offset {offset}$") as caught:
        await run(bench, Text(files=[good, bad]))
    assert (caught.value.http_status, caught.value.problem_code) == (422, "not-utf-8")
    assert bench.progress.items == ("good.txt",)


async def test_a_cancelled_job_stops_counting(tmp_path: Path) -> None:
    bench = Bench.at(tmp_path)
    bench.cancelled.set()
    with pytest.raises(JobCancelled):
        await run(bench, Text(text="word"))


@pytest.mark.parametrize("data", [{}, {"text": None}, {"files": []}, {"txt": "a"}, {"text": "a", "top": 1_001}])
def test_schema_and_model_refuse_the_same_inputs(data: dict[str, object]) -> None:
    assert not jsonschema_rs.is_valid(words.input_schema, data)
    with pytest.raises(InvalidInput):
        words.parse_input(data)


@pytest.mark.parametrize("data", [{"text": ""}, {"text": "a", "files": []}, {"text": None, "files": ["file"]}])
def test_schema_and_model_accept_the_same_inputs(data: dict[str, object]) -> None:
    if data.get("files"):
        data = data | {"files": [{"name": "a", "size": 1, "sha256": "0", "key": "job/1"}]}
    assert jsonschema_rs.is_valid(words.input_schema, data)
    words.parse_input(data)
