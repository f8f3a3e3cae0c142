"""The live display: what is sent to the terminal, and how a job reads in a line."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import pytest

from jobstream.client import Event, NotFound, Problem
from jobstream.job import JobProgress, JobStatus
from jobstream_cli.bars import bar_lines, duration, plain_line
from jobstream_cli.screen import Look, Screen, cells, crop, look_of, pad
from jobstream_cli.views import JobView
from tests.unit.stub_service import job

UNICODE = Look(colour=False, unicode=True, screen=True)
ASCII = Look(colour=False, unicode=False, screen=True)
COLOUR = Look(colour=True, unicode=True, screen=True)


class Terminal(io.StringIO):
    """Keeps what is sent, and understands the few sequences that a Screen uses."""

    encoding = "utf-8"

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        super().__init__()
        self.size = os.terminal_size((columns, rows))
        self.sent = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.sent += text
        return super().write(text)

    def take(self) -> str:
        sent, self.sent = self.sent, ""
        return sent

    @property
    def picture(self) -> list[str]:
        """The lines one would see, above the cursor's."""
        lines, row = [""], 0
        for token in _tokens(self.getvalue()):
            if token == "\n":
                row += 1
                if row == len(lines):
                    lines.append("")
            elif token == "\x1b[K":
                pass  # a line is written whole, so what `write` replaced is gone already
            elif token == "\x1b[J":
                del lines[row:]
                lines.append("")
            elif token.startswith("\x1b["):
                row -= int(token[2:-1])
                assert row >= 0
            else:
                lines[row] = token
        assert row == len(lines) - 1, "the cursor rests below the block"
        return lines[:-1]


def _tokens(text: str) -> Iterator[str]:
    while text:
        if text.startswith("\x1b["):
            end = next(index for index in range(2, len(text)) if text[index].isalpha()) + 1
        elif text.startswith("\n"):
            end = 1
        else:
            end = min((at for mark in ("\x1b", "\n") if (at := text.find(mark)) > 0), default=len(text))
        yield text[:end]
        text = text[end:]


def screen_on(terminal: Terminal) -> Screen:
    return Screen(terminal, size=lambda: terminal.size)


def test_only_changed_lines_are_sent_again() -> None:
    terminal = Terminal()
    screen = screen_on(terminal)
    screen.draw(["first", "second", "third"])
    terminal.take()
    screen.draw(["first", "SECOND", "third"])
    sent = terminal.take()
    assert "SECOND" in sent
    assert "first" not in sent
    assert "third" not in sent
    assert terminal.picture == ["first", "SECOND", "third"]


def test_the_same_picture_sends_nothing() -> None:
    terminal = Terminal()
    screen = screen_on(terminal)
    screen.draw(["first"])
    terminal.take()
    screen.draw(["first"])
    assert terminal.take() == ""


def test_a_block_grows_and_shrinks() -> None:
    terminal = Terminal()
    screen = screen_on(terminal)
    screen.draw(["a", "b"])
    screen.draw(["a", "b", "c"])
    assert terminal.picture == ["a", "b", "c"]
    screen.draw(["a"])
    assert terminal.picture == ["a"]


def test_what_does_not_fit_into_the_height_is_counted() -> None:
    terminal = Terminal(rows=5)
    screen_on(terminal).draw([f"line {number}" for number in range(10)])
    assert terminal.picture == ["line 0", "line 1", "line 2", "... 7 more"]


def test_a_printed_line_stays_above_the_block() -> None:
    terminal = Terminal()
    screen = screen_on(terminal)
    screen.draw(["bar"])
    screen.print("a log line")
    screen.draw(["BAR"])
    assert terminal.picture == ["a log line", "BAR"]


def test_colour_needs_a_terminal_and_nobody_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert look_of(Terminal()) == Look(colour=True, unicode=True, screen=True)
    assert look_of(io.StringIO()).colour is False
    monkeypatch.setenv("NO_COLOR", "1")
    assert look_of(Terminal()) == Look(colour=False, unicode=True, screen=True)
    monkeypatch.setenv("TERM", "dumb")
    assert look_of(Terminal()).screen is False


def test_wide_letters_take_two_cells_and_accents_none() -> None:
    assert cells("日本") == 4
    assert cells("e\u0301") == 1
    assert crop("日本語", 5) == "日本"
    assert pad("日本語", 5) == "日本 "


def running(**progress: object) -> JobView:
    return JobView("01JDABCDEF", "words", JobStatus.RUNNING, JobProgress.model_validate(progress))


def test_a_running_job_shows_bar_percent_eta_items_and_message() -> None:
    view = running(current=50, total=100, percent=50.0, message="chapter 3", eta_s=41.0, items=["a", "b"])
    (line,) = bar_lines([view], columns=80, look=UNICODE)
    assert line == "● words  ━━━━━━━━━━──────────   50%       ~41 s left  2 items  chapter 3"


def test_an_unknown_total_shows_the_count() -> None:
    (line,) = bar_lines([running(current=1830)], columns=80, look=UNICODE)
    assert line.split() == ["●", "words", "─" * 20, "running", "1,830"]


def test_99_point_9_percent_is_not_100() -> None:
    (line,) = bar_lines([running(current=999, total=1000, percent=99.9)], columns=80, look=UNICODE)
    assert "99%" in line


@pytest.mark.parametrize("columns", [20, 40, 60, 79, 200])
@pytest.mark.parametrize("message", ["short", "long " * 60, "日本語" * 60])
def test_no_line_is_wider_than_the_terminal(columns: int, message: str) -> None:
    view = running(current=50, total=100, percent=50.0, message=message, eta_s=41.0)
    for look in (UNICODE, ASCII):
        for line in bar_lines([view, JobView("x" * 200)], columns=columns, look=look):
            assert cells(line) <= columns


def test_ascii_terminals_get_ascii() -> None:
    view = running(current=50, total=100, percent=52.5, message="x" * 200)
    assert all(line.isascii() for line in bar_lines([view, view], columns=80, look=ASCII))


def test_colour_is_only_around_the_mark() -> None:
    (line,) = bar_lines([running()], columns=80, look=COLOUR)
    assert line.startswith("\x1b[36m●\x1b[0m words")
    assert line.count("\x1b") == 2


def test_jobs_of_one_task_are_told_apart_by_the_end_of_their_ids() -> None:
    views = [JobView("01JDAAAAAA", "words"), JobView("01JDBBBBBB", "words"), JobView("01JDCCCCCC", "primes")]
    lines = bar_lines(views, columns=80, look=UNICODE)
    assert [line.split("  ")[0].split(" ", 1)[1].strip() for line in lines] == [
        "words …AAAAAA",
        "words …BBBBBB",
        "primes",
    ]


def test_a_finished_job_shows_how_long_it_took() -> None:
    view = JobView("j1")
    times = {"started_at": "2026-11-21T06:40:00Z", "finished_at": "2026-11-21T06:40:03.2Z"}
    view.apply(Event("e-1", "done", job(status="succeeded", **times)))
    (line,) = bar_lines([view], columns=80, look=UNICODE)
    assert line == f"✓ words  {'━' * 20}  succeeded  in 3.2 s"


def test_a_plain_line_holds_the_whole_id_and_the_figures() -> None:
    view = running(current=1830, total=3000, percent=61.0, message="frame 1830", eta_s=40.0)
    assert plain_line(view) == "words 01JDABCDEF running 61% 1,830/3,000 ~40 s left: frame 1830"


def test_a_view_follows_the_events() -> None:
    view = JobView("j1")
    assert view.apply(Event("e-1", "snapshot", job(status="queued")))
    assert view.apply(Event("e-2", "status", {"status": "running", "attempt": 1}))
    assert not view.apply(Event("", "progress", {"current": 1, "total": 4, "percent": 25.0}))
    assert not view.apply(Event("e-3", "log", {"level": "info", "message": "hello"}))
    assert (view.task, view.word, view.progress.percent, view.done) == ("words", "running", 25.0, False)
    assert view.apply(Event("e-4", "done", job(status="succeeded")))
    assert view.done


def test_a_job_that_cannot_be_watched_says_so() -> None:
    view = JobView("j1", fault=NotFound(Problem(detail="There is no job 'j1'", status=404)))
    assert plain_line(view) == "job j1 not found: There is no job 'j1'"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.004, "4 ms"), (0.44, "0.4 s"), (9.94, "9.9 s"), (12.3, "12 s"), (600, "10 min"), (10_000, "3 h")],
)
def test_durations_are_short(seconds: float, said: str) -> None:
    assert duration(seconds) == said
