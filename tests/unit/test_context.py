"""What running code says: progress as state, logs and chunks in order, one notice per batch, and the time left."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path

import msgspec
import pytest

from jobstream import JobCancelled, JobContext
from jobstream.cancellation import Flag
from jobstream.context import LOG_LINE_BYTES
from jobstream.errors import OutboxFull
from jobstream.files import FileStore
from jobstream.gauge import ProgressState
from jobstream.outbox import CHUNK_BYTES, LOG_BYTES, LOGS_WAITING, REFUSED_BYTES, Batch, Entry, Outbox
from jobstream.progress import ITEMS_KEPT, Eta, percent


class Heard:
    """An outbox, how often it told, and a job that fills it."""

    def __init__(self, files: Path, *, never_block: int | None = None) -> None:
        self.notices = 0
        self.outbox = Outbox(self._count, never_block=never_block)
        self.cancelled = Flag()
        self.job = JobContext(
            "j1",
            task="words",
            attempt=1,
            max_attempts=3,
            outbox=self.outbox,
            files=FileStore(files),
            cancelled=self.cancelled,
        )

    def _count(self) -> None:
        self.notices += 1

    def cancel(self) -> None:
        """As the worker does."""
        self.cancelled.set()
        self.outbox.interrupt()

    def progress(self) -> ProgressState:
        state = self.outbox.take().progress
        assert state is not None
        return state

    def said(self) -> list[object]:
        return [msgspec.json.decode(entry.data) for entry in self.outbox.take().entries]


@pytest.fixture
def heard(tmp_path: Path) -> Heard:
    return Heard(tmp_path)


# Progress


def test_progress_keeps_what_it_is_not_told_again(heard: Heard) -> None:
    heard.job.progress(1, 10, "reading")
    heard.job.items(["a"])
    heard.job.progress(2)
    assert heard.progress() == ProgressState(2, 10, "reading", ("a",))
    heard.job.progress(message="writing")
    assert heard.progress() == ProgressState(2, 10, "writing", ("a",))


def test_zero_is_progress(heard: Heard) -> None:
    heard.job.progress(5, 5)
    heard.job.progress(0, 0, "")
    assert heard.progress() == ProgressState(0, 0, "", ())


def test_only_the_latest_items_are_kept(heard: Heard) -> None:
    heard.job.items(str(number) for number in range(ITEMS_KEPT + 5))
    items = heard.progress().items
    assert (len(items), items[0], items[-1]) == (ITEMS_KEPT, "5", str(ITEMS_KEPT + 4))


def test_whatever_a_task_counts_with_can_be_stored(heard: Heard, tmp_path: Path) -> None:
    heard.job.progress(Decimal("0.5"), 1 << 80)  # type: ignore[arg-type]
    heard.job.items([tmp_path, "caf\udce9"])  # type: ignore[list-item]
    state = heard.progress()
    assert state == ProgressState(0.5, float(1 << 80), None, (str(tmp_path), "caf?"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=ProgressState) == state
    heard.job.progress(current=True)
    assert type(heard.progress().current) is int


def test_progress_that_is_no_number_fails_where_it_is_said(heard: Heard) -> None:
    with pytest.raises(ValueError, match="many"):
        heard.job.progress("many")  # type: ignore[arg-type]


def test_track_counts_the_items_that_are_finished(heard: Heard) -> None:
    seen = [heard.progress() for _ in heard.job.track("abc", message="letters")]
    assert [(state.current, state.total, state.message) for state in seen] == [
        (0, 3, "letters"),
        (1, 3, "letters"),
        (2, 3, "letters"),
    ]
    assert heard.progress().current == 3


def test_track_does_not_guess_a_total(heard: Heard) -> None:
    for _ in heard.job.track(iter("abc")):
        pass
    assert heard.progress() == ProgressState(3, None, None, ())


async def test_track_follows_async_iterables(heard: Heard) -> None:
    async def letters() -> AsyncIterator[str]:
        for letter in "abc":
            yield letter

    seen = [letter async for letter in heard.job.track(letters(), total=3)]
    assert seen == ["a", "b", "c"]
    assert heard.progress() == ProgressState(3, 3, None, ())


# Cancellation


def test_a_job_that_must_stop_notices_by_speaking(heard: Heard) -> None:
    heard.job.raise_if_cancelled()
    assert not heard.job.cancelled
    heard.cancel()
    assert heard.job.cancelled
    with pytest.raises(JobCancelled):
        heard.job.raise_if_cancelled()
    with pytest.raises(JobCancelled):
        heard.job.progress(1)
    assert heard.outbox.take() == Batch(None, [], 0)


def test_track_stops_at_the_next_item(heard: Heard) -> None:
    seen = []
    with pytest.raises(JobCancelled):  # noqa: PT012 (the loop is the subject)
        for item in heard.job.track(range(5)):
            seen.append(item)
            if item == 2:
                heard.cancel()
    assert seen == [0, 1, 2]


def test_no_except_exception_swallows_a_cancellation() -> None:
    assert not issubclass(JobCancelled, Exception)


def test_a_job_that_must_stop_can_still_say_its_last_words(heard: Heard) -> None:
    heard.cancel()
    heard.job.log("closing")
    heard.job.chunk(1)
    assert heard.said() == [{"level": "info", "message": "closing"}, 1]


# Logs and chunks


def test_logs_and_chunks_keep_their_order(heard: Heard) -> None:
    heard.job.log("one", level="warning")
    heard.job.chunk({"two": 2})
    heard.job.log("three")
    assert heard.said() == [
        {"level": "warning", "message": "one"},
        {"two": 2},
        {"level": "info", "message": "three"},
    ]


def test_a_long_log_line_is_cut(heard: Heard) -> None:
    heard.job.log("x" * (LOG_LINE_BYTES + 1))
    assert heard.said() == [{"level": "info", "message": "x" * LOG_LINE_BYTES + "…"}]


def test_a_log_line_that_is_not_text_does_not_fail_the_job(heard: Heard) -> None:
    heard.job.log("caf\udce9 déjà")
    assert heard.said() == [{"level": "info", "message": "caf? déjà"}]


def test_a_chunk_that_json_cannot_say_fails_where_it_is_said(heard: Heard) -> None:
    with pytest.raises(TypeError):
        heard.job.chunk(object())
    assert heard.said() == []


# A tight loop


def test_what_a_tight_loop_says_waits_for_the_writer_and_its_last_word_is_kept(heard: Heard) -> None:
    for number in range(1000):
        heard.job.progress(number, 1000)
    assert heard.notices == 1
    assert heard.progress() == ProgressState(999, 1000, None, ())
    assert heard.outbox.take().progress is None
    heard.job.progress(1000)
    assert heard.notices == 2
    assert heard.progress().current == 1000


def test_a_word_that_says_something_new_is_not_lost(heard: Heard) -> None:
    heard.job.progress(1, 10)
    heard.job.progress(2, 10)
    assert heard.progress() == ProgressState(2, 10, None, ())
    heard.job.progress(3, 20)
    heard.job.progress(4, 30)
    heard.job.progress(5, message="m")
    heard.job.progress(None, 30)
    heard.job.progress(None)
    heard.job.items(["a"])
    heard.job.progress(6, 30, "n")
    heard.job.items(["b"])
    heard.job.progress(7)
    assert heard.progress() == ProgressState(7, 30, "n", ("b",))


def test_no_last_word_is_lost_between_a_loop_and_its_writer(heard: Heard) -> None:
    """The writer takes as fast as it can while a thread speaks: what is taken last is what was said last."""

    def speak() -> None:
        for number in range(200_000):
            heard.job.progress(number)

    spoken = threading.Thread(target=speak)
    spoken.start()
    taken: list[object] = []
    while spoken.is_alive() or heard.outbox.waiting:
        if (progress := heard.outbox.take().progress) is not None:
            taken.append(progress.current)
    assert taken[-1] == 199_999
    assert taken == sorted(taken)  # type: ignore[type-var]


# The outbox


def test_one_notice_per_batch(heard: Heard) -> None:
    for number in range(100):
        heard.job.progress(number)
        heard.job.log("line")
    assert heard.notices == 1
    heard.outbox.take()
    heard.job.chunk(1)
    assert heard.notices == 2


def test_what_was_taken_is_not_given_again(heard: Heard) -> None:
    heard.job.progress(1)
    heard.job.log("line")
    heard.outbox.take()
    assert heard.outbox.take() == Batch(None, [], 0)


def test_old_log_lines_give_way_and_are_counted_but_chunks_never_do(heard: Heard) -> None:
    heard.job.chunk("kept")
    for number in range(LOGS_WAITING + 3):
        heard.job.log(str(number))
    batch = heard.outbox.take()
    assert batch.logs_dropped == 3
    assert len(batch.entries) == LOGS_WAITING + 1
    assert batch.entries[0] == Entry("chunk", b'"kept"')
    assert msgspec.json.decode(batch.entries[1].data)["message"] == "3"


def test_log_lines_that_wait_are_bounded_by_their_size_too(heard: Heard) -> None:
    heard.job.chunk("first")
    for number in range(600):
        heard.job.log(f"{number} " + "x" * 10_000)
        if number == 50:
            heard.job.chunk("second")
    batch = heard.outbox.take()
    assert sum(len(entry.data) for entry in batch.entries) < LOG_BYTES
    logs = [msgspec.json.decode(entry.data)["message"].split()[0] for entry in batch.entries if entry.kind == "log"]
    assert logs == [str(number) for number in range(batch.logs_dropped, 600)]
    assert [entry.data for entry in batch.entries if entry.kind == "chunk"] == [b'"first"', b'"second"']
    heard.job.log("again")
    assert heard.outbox.take().logs_dropped == 0


LARGE = "x" * (CHUNK_BYTES // 4)


def fill(heard: Heard) -> int:
    """Say chunks until there is no room; how many."""
    number = 0
    while not heard.outbox.full:
        heard.job.chunk(LARGE)
        number += 1
    return number


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """Runs something in a thread, which must end."""
    threads: list[threading.Thread] = []

    def start(work: Callable[[], object]) -> threading.Thread:
        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_thread_that_says_too_much_is_held_back_until_there_is_room(
    heard: Heard, in_thread: Callable[[Callable[[], object]], threading.Thread]
) -> None:
    total, taken = 50, list[object]()
    speaking = in_thread(lambda: [heard.job.chunk([number, LARGE]) for number in range(total)])
    while len(taken) < total:
        said = heard.said()
        assert len(said) <= 4
        taken += said
    speaking.join(20)
    assert [chunk[0] for chunk in taken if isinstance(chunk, list)] == list(range(total))


def test_a_thread_that_is_held_back_hears_of_its_cancellation(
    heard: Heard, in_thread: Callable[[Callable[[], object]], threading.Thread]
) -> None:
    heard_of = threading.Event()

    def speak() -> None:
        try:
            while True:
                heard.job.chunk(LARGE)
        except JobCancelled:
            heard_of.set()

    in_thread(speak)
    while not heard.outbox.full:
        pass
    heard.cancel()
    assert heard_of.wait(20)
    assert len(heard.said()) == 4
    heard.job.log("closing")
    assert heard.job.chunk("last") is not None


def test_what_is_said_without_await_is_refused_before_the_memory_is_full(tmp_path: Path) -> None:
    heard = Heard(tmp_path, never_block=threading.get_ident())
    with pytest.raises(OutboxFull, match="await"):  # noqa: PT012 (the loop is the subject)
        for _ in range(REFUSED_BYTES):
            heard.job.chunk(LARGE)
    said = heard.outbox.take().entries
    assert REFUSED_BYTES <= sum(len(entry.data) + 1_000 for entry in said) < REFUSED_BYTES + 2 * len(LARGE)
    heard.job.chunk("goes on")


async def test_a_coroutine_that_awaits_waits_for_room(tmp_path: Path) -> None:
    heard = Heard(tmp_path, never_block=threading.get_ident())
    await heard.job.chunk("small")
    number = fill(heard)

    async def speak() -> None:
        await heard.job.chunk("one more")

    speaking = asyncio.create_task(speak())
    await asyncio.sleep(0)
    assert not speaking.done()
    assert len(heard.outbox.take().entries) == number + 2
    await speaking
    fill(heard)
    speaking = asyncio.create_task(speak())
    await asyncio.sleep(0)
    heard.cancel()
    await speaking
    with pytest.raises(JobCancelled):
        heard.job.chunk("too much")


def test_a_batch_can_be_said_again_in_another_outbox(heard: Heard) -> None:
    batch = Batch(ProgressState(1, 2, "m", ("a",)), [Entry("log", b"{}"), Entry("chunk", b"1")], 7)
    heard.outbox.put(batch)
    assert heard.notices == 1
    assert heard.outbox.take() == batch


def test_nothing_said_by_many_threads_is_lost(heard: Heard) -> None:
    def talk(name: int) -> None:
        for number in range(2_000):
            heard.job.chunk([name, number])

    threads = [threading.Thread(target=talk, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    heard_so_far: list[object] = []
    while any(thread.is_alive() for thread in threads):
        heard_so_far += heard.said()
    heard_so_far += heard.said()
    for name in range(4):
        numbers = [chunk[1] for chunk in heard_so_far if isinstance(chunk, list) and chunk[0] == name]
        assert numbers == list(range(2_000))


# Percent and time left


@pytest.mark.parametrize(
    ("current", "total", "expected"),
    [(1, 3, 33.3), (0, 10, 0.0), (12, 10, 100.0), (-1, 10, 0.0), (None, 10, None), (1, None, None), (1, 0, None)],
)
def test_percent_stays_between_0_and_100(current: float | None, total: float | None, expected: float | None) -> None:
    assert percent(current, total) == expected


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_percent_says_nothing_of_numbers_that_are_none(odd: float) -> None:
    assert percent(odd, 10) is None


class Clock:
    """Time that moves when it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_follows_from_the_rate() -> None:
    clock = Clock()
    eta = Eta(clock)
    assert eta.update(0, 100) is None
    clock.now = 1.0
    assert eta.update(10, 100) == 9.0
    clock.now = 2.0
    assert eta.update(20, 100) == 8.0


def _evenly(readings: int, seconds: float) -> list[tuple[float, int]]:
    return [(seconds * number / readings, number) for number in range(readings + 1)]


def _in_bursts(bursts: int, seconds: float, *, of: int = 10, apart: float = 1e-4) -> list[tuple[float, int]]:
    times = [seconds * (burst + 1) / bursts + apart * number for burst in range(bursts) for number in range(of)]
    return [(0.0, 0), *((time, number) for number, time in enumerate(times, start=1))]


def _irregularly(readings: int, seconds: float) -> list[tuple[float, int]]:
    """A steady job that says so whenever it comes to it: the same work in the same time."""
    chance = random.Random(7)
    times = sorted(chance.uniform(0, seconds) for _ in range(readings))
    return [(0.0, 0), *((time, round(1e6 * time / seconds)) for time in times), (seconds, 1_000_000)]


@pytest.mark.parametrize("seconds", [10.0, 60.0, 600.0, 36_000.0])
@pytest.mark.parametrize(
    "job",
    [
        pytest.param(partial(_evenly, 1_000), id="often"),
        pytest.param(partial(_evenly, 4), id="four-times-in-all"),
        pytest.param(partial(_in_bursts, 40), id="in-bursts"),
        pytest.param(partial(_in_bursts, 40, apart=0.002), id="in-longer-bursts"),
        pytest.param(partial(_irregularly, 50), id="irregularly"),
    ],
)
def test_behind_half_of_a_steady_job_the_time_left_is_right_within_a_fifth(
    job: Callable[[float], list[tuple[float, int]]], seconds: float
) -> None:
    clock = Clock()
    eta = Eta(clock)
    readings = job(seconds)
    end, total = readings[-1]
    looked_at = 0
    for clock.now, current in readings:
        left = eta.update(current, total)
        if end / 2 <= clock.now <= end * 0.75:
            assert left is not None
            # To a tenth of a second, as it is told; and in a burst the job is ahead of itself by up to a burst.
            assert left == pytest.approx(end - clock.now, rel=0.2, abs=0.06)
            looked_at += 1
    assert looked_at


def test_the_first_moment_of_a_job_says_nothing() -> None:
    clock = Clock()
    eta = Eta(clock)
    for number in range(10):  # all at once, as when a list is begun
        clock.now = number * 1e-4
        assert eta.update(number, 1_000) is None
    clock.now = 10.0
    left = eta.update(20, 1_000)
    assert left is not None
    assert 980 / 2 < left < 980 / 1  # 20 in ten seconds, the half of them before the first


def test_a_job_that_slows_down_is_believed_in_time() -> None:
    clock = Clock()
    eta = Eta(clock)
    left = None
    for clock.now in map(float, range(61)):
        left = eta.update(clock.now * 10, 2_000)
    for clock.now in map(float, range(61, 181)):  # from here on a tenth as fast
        left = eta.update(600 + (clock.now - 60), 2_000)
    assert left is not None
    assert left > (2_000 - 720) / 4  # of the true rate of 1, and 10 before


def test_a_changing_rate_is_smoothed() -> None:
    clock = Clock()
    eta = Eta(clock)
    eta.update(0, 100)
    clock.now = 1.0
    eta.update(10, 100)
    clock.now = 2.0
    left = eta.update(40, 100)  # 30 a second in this one, 10 before
    assert left is not None
    assert 60 / 30 < left < 60 / 10


def test_progress_that_begins_anew_forgets_the_old_rate() -> None:
    clock = Clock()
    eta = Eta(clock)
    eta.update(0, 100)
    clock.now = 1.0
    assert eta.update(50, 100) == 1.0
    clock.now = 2.0
    assert eta.update(0, 100) is None


def test_without_a_total_nobody_knows_the_time_left() -> None:
    clock = Clock()
    eta = Eta(clock)
    eta.update(0, None)
    clock.now = 1.0
    assert eta.update(10, None) is None
    assert eta.update(None, 10) is None
    assert eta.update(10, 5) is None
    assert eta.update(10, 20) == 1.0
