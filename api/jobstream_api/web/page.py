"""The page of a job: what is known of it, right without scripts and kept up to date with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.responses import HTMLResponse, Response

from jobstream.events import JobEvent
from jobstream.job import Job, JobStatus
from jobstream_api.web.html import Markup, document, element

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}

REFRESH_SECONDS = 2
"""How often a browser without scripts looks again."""

LINES_SHOWN = 1_000
"""The latest log lines and chunks in the page as it is served; the scripts fetch all that the service keeps."""

RESULT_SHOWN = 100_000
"""Characters of a result in the page; the whole is at the same address as JSON."""

GLYPHS = {
    JobStatus.SCHEDULED: "◷",
    JobStatus.QUEUED: "○",
    JobStatus.RUNNING: "◐",
    JobStatus.RETRYING: "↻",
    JobStatus.CANCELLING: "◌",
    JobStatus.SUCCEEDED: "✓",
    JobStatus.FAILED: "✕",
    JobStatus.CANCELLED: "⊘",
}


def job_page(
    job: Job,
    events: Sequence[JobEvent],
    *,
    status: int,
    headers: dict[str, str],
    prefix: str = "",
    query: str = "",
    may_cancel: bool = True,
) -> Response:
    """The page of a job with its log and partial output, as an answer with this status.

    `query`: what the page's scripts must send along, such as a ticket.
    """
    monitor = job.links.self + query
    body = element(
        "main",
        element("header", element("h1", job.task), element("p", job.id, class_="id")),
        _progress(job, monitor, may_cancel=may_cancel),
        _end(job),
        _list("items", "Processed", job.progress.items if job.progress else []),
        _output([event for event in events if event.kind == "chunk"]),
        _log([event for event in events if event.kind == "log"]),
        _facts(job),
        element(
            "footer",
            element("a", "This job as JSON", href=monitor),
            element("a", "API reference", href=f"{prefix}/docs"),
        ),
    )
    head = [element("script", type="module", src=f"{prefix}/static/job-page.js")]
    if not job.done:
        again = element("meta", http_equiv="refresh", content=str(REFRESH_SECONDS))
        head.append(element("noscript", again))
    return _page(_title(job), body, head, status=status, headers=headers, prefix=prefix)


def problem_page(members: dict[str, Any], *, headers: dict[str, str] | None = None, prefix: str = "") -> Response:
    """A problem (RFC 9457) for somebody to read, when there is no job to show."""
    body = element(
        "main",
        element("header", element("h1", str(members["title"]))),
        element("section", element("p", str(members["detail"])), element("p", str(members["code"]), class_="id")),
    )
    status = int(members["status"])
    return _page(str(members["title"]), body, [], status=status, headers=headers or {}, prefix=prefix)


def _page(
    title: str, body: Markup, head: Sequence[Markup], *, status: int, headers: dict[str, str], prefix: str
) -> Response:
    page = document(
        element(
            "head",
            element("meta", charset="utf-8"),
            element("title", title),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("link", rel="icon", href=f"{prefix}/static/icon.svg", type="image/svg+xml"),
            element("link", rel="stylesheet", href=f"{prefix}/static/job-page.css"),
            *head,
        ),
        element("body", body),
    )
    return HTMLResponse(page, status_code=status, headers=HEADERS | headers)


def _title(job: Job) -> str:
    percent = job.progress.percent if job.progress and not job.done else None
    return f"{GLYPHS[job.status]} {'' if percent is None else f'{percent:.0f} % '}{job.task}"


def _progress(job: Job, monitor: str, *, may_cancel: bool) -> Markup:
    """The element, and inside it what is shown where it is not defined."""
    progress = job.progress
    percent = 100.0 if job.status is JobStatus.SUCCEEDED else progress.percent if progress else None
    share = None if percent is None else f"{percent:g}"
    left = f", about {progress.eta_s:.0f} s left" if progress and progress.eta_s is not None and not job.done else ""
    said = f"{GLYPHS[job.status]} {job.status}" + (f", {share} %" if share else "") + left
    bar = None
    if share is not None or not job.done:
        bar = element("progress", f"{share or 0} %", max="100", value=share, aria_label=job.task)
    message = element("p", progress.message, class_="message") if progress and progress.message else None
    return element(
        "div",
        element("job-progress", element("p", said, class_="status"), bar, message, src=monitor, cancel=may_cancel),
        class_="card",
    )


def _end(job: Job) -> Markup:
    """The result, or why there is none."""
    title, text = "Result", ""
    if job.status is JobStatus.SUCCEEDED:
        text = job.result if isinstance(job.result, str) else json.dumps(job.result, indent=2, ensure_ascii=False)
        text = text if len(text) <= RESULT_SHOWN else f"{text[:RESULT_SHOWN]}…"
    elif job.status is JobStatus.CANCELLED:
        title, text = "Cancelled", "The job was cancelled: there is no result."
    elif job.error is not None:
        title, text = job.error.title, f"{job.error.detail}\n\n{job.error.code}"
    body = element("pre", text, data_body=True, tabindex="0", aria_label=title)
    return _section("result", element("h2", title), body, shown=job.done, status=job.status)


def _list(name: str, title: str, texts: Sequence[str]) -> Markup:
    heading = element("h2", f"{title} (", element("span", str(len(texts)), data_count=True), ")")
    listed = element("ul", *(element("li", text) for text in texts), data_body=True, tabindex="0", aria_label=title)
    return _section(name, heading, listed, shown=bool(texts))


def _output(chunks: Sequence[JobEvent]) -> Markup:
    pieces = [element("span", _piece(chunk.data)) for chunk in chunks[-LINES_SHOWN:]]
    body = element("pre", *pieces, data_body=True, tabindex="0", aria_label="Output")
    return _section("output", element("h2", "Output"), body, shown=bool(pieces))


def _log(logged: Sequence[JobEvent]) -> Markup:
    lines = [_line(event.data) for event in logged[-LINES_SHOWN:]]
    body = element("ol", *lines, data_body=True, tabindex="0", aria_label="Log")
    return _section("log", element("h2", "Log"), body, shown=bool(lines))


def _section(name: str, *children: Markup, shown: bool, status: str | None = None) -> Markup:
    return element("section", *children, id=name, hidden=not shown, data_status=status)


def _piece(data: bytes) -> str:
    value = msgspec.json.decode(data)
    return value if isinstance(value, str) else data.decode() + "\n"


def _line(data: bytes) -> Markup:
    said = msgspec.json.decode(data)
    return element("li", str(said["message"]), class_=str(said["level"]))


def _facts(job: Job) -> Markup:
    attempt = f"{job.attempt} of {job.max_attempts}" if job.attempt else "–"
    tags = [_fact("Tags", element("span", ", ".join(job.tags)))] if job.tags else []
    return element(
        "section",
        element("h2", "Details"),
        element(
            "dl",
            _fact("Created", _time("created_at", job.created_at)),
            _fact("Started", _time("started_at", job.started_at)),
            _fact("Finished", _time("finished_at", job.finished_at)),
            _fact("Attempt", element("span", attempt, data_fact="attempt")),
            _fact("Queue", element("span", job.queue)),
            _fact("Worker", element("span", job.worker or "–", data_fact="worker")),
            *tags,
        ),
    )


def _fact(name: str, value: Markup) -> Markup:
    return element("div", element("dt", name), element("dd", value))


def _time(name: str, value: datetime | None) -> Markup:
    text = "–" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return element("time", text, data_fact=name, datetime=None if value is None else value.isoformat())
