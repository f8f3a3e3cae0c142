"""How a watched job reads: as one line with a bar, or as one plain line for logs and pipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click

from jobstream.job import JobProgress, JobStatus
from jobstream_cli.screen import Look, cells, clean, crop, pad
from jobstream_cli.views import JobView

BAR_CELLS = 20
WORD_CELLS = 9  # "cancelled"

_GLYPHS = {
    "waiting": "○.",
    "scheduled": "◷.",
    "queued": "○.",
    "running": "●>",
    "retrying": "↻~",
    "cancelling": "◌~",
    "succeeded": "✓+",
    "failed": "✕x",
    "cancelled": "⊘-",
}
_COLOURS = {
    "running": "cyan",
    "retrying": "yellow",
    "cancelling": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "not found": "red",
    "lost": "red",
}


def plain_line(view: JobView) -> str:
    """`words 01JD… running 61% 1,830/3,000 ~40 s left: frame 1830`."""
    parts = [view.task or "job", view.id, view.word]
    if view.status == JobStatus.RUNNING:
        parts += [percent(view.progress), count(view.progress), left(view.progress)]
    elif view.done:
        parts.append(took(view))
    line = " ".join(part for part in parts if part)
    return clean(f"{line}: {view.message}" if view.message else line)


def bar_lines(views: Sequence[JobView], *, columns: int, look: Look) -> list[str]:
    """One line for each job, none longer than `columns` cells."""
    names = _names(views, look)
    width = min(max(map(cells, names), default=0), columns // 3)
    return [_bar_line(view, pad(name, width), columns, look) for view, name in zip(views, names, strict=True)]


def percent(progress: JobProgress) -> str:
    """`61%`, or nothing while the total is unknown. 100 % is said when it is reached, not by rounding up."""
    return "" if progress.percent is None else f"{int(progress.percent)}%"


def count(progress: JobProgress) -> str:
    """`1,830/3,000`, `1,830`, or nothing."""
    if progress.current is None:
        return ""
    return _number(progress.current) + (f"/{_number(progress.total)}" if progress.total else "")


def left(progress: JobProgress) -> str:
    """`~40 s left`, `~3 min left`, or nothing."""
    return "" if progress.eta_s is None or progress.eta_s < 0.1 else f"~{duration(progress.eta_s)} left"


def took(view: JobView) -> str:
    """`in 3.2 s`, or nothing before the end."""
    return "" if view.seconds is None else f"in {duration(view.seconds)}"


def duration(seconds: float) -> str:
    """Seconds for people: `4 ms`, `0.4 s`, `12 s`, `3 min`, `2 h`."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _bar_line(view: JobView, name: str, columns: int, look: Look) -> str:
    colour = _COLOURS.get(view.word)
    glyphs = _GLYPHS.get(view.word, "?!")
    glyph = glyphs[0] if look.unicode else glyphs[1]
    word = f"{percent(view.progress):>4}" if view.status == JobStatus.RUNNING and percent(view.progress) else view.word
    head = f"{name}  {_bar(view, look)}  {pad(word, WORD_CELLS)}"
    said = "  ".join(part for part in _remarks(view) if part)
    room = columns - 2 - cells(head) - 2
    if cells(said) > room:
        said = crop(said, room - 1) + ("…" if look.unicode else "")
    line = f"{glyph} {head}  {said}".rstrip()
    painted = click.style(glyph, fg=colour) if look.colour and colour else glyph
    return painted + crop(line, columns)[1:]


def _remarks(view: JobView) -> list[str]:
    progress = view.progress
    items = f"{len(progress.items)} item{'s' if len(progress.items) > 1 else ''}" if progress.items else ""
    if view.done:
        return [took(view), items, clean(view.message)]
    return [left(progress), items or ("" if percent(progress) else count(progress)), clean(view.message)]


def _bar(view: JobView, look: Look) -> str:
    share = 100.0 if view.status == JobStatus.SUCCEEDED else view.progress.percent or 0.0
    halves = int(share / 100 * BAR_CELLS * 2)
    full, half, empty = ("━", "╸", "─") if look.unicode else ("#", "#", ".")
    return (full * (halves // 2) + half * (halves % 2)).ljust(BAR_CELLS, empty)


def _names(views: Sequence[JobView], look: Look) -> list[str]:
    """The tasks' names; with the end of the id where a name is not enough."""
    tasks = Counter(view.task for view in views)
    mark = "…" if look.unicode else ".."
    return [
        clean(view.task if view.task and tasks[view.task] == 1 else f"{view.task} {mark}{view.id[-6:]}".strip())
        for view in views
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
