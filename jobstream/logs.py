"""Logs: one format for every line of a process, ours, uvicorn's, arq's and those of tasks, with what it is about.

A line that is said while a job runs carries `job_id`, `task`, `attempt` and, when it is traced, `trace_id`: from a
coroutine, a thread or a child process, by the standard library's `logging` or by structlog.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobstream.errors import ConfigurationError

if TYPE_CHECKING:  # a child process that says nothing starts without it
    from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["auto", "json", "console"]

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class LogSettings(BaseSettings):
    """What is logged, and how it looks."""

    model_config = SettingsConfigDict(env_prefix="JOBSTREAM_", env_file=".env", extra="ignore", env_ignore_empty=True)

    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: LogFormat = Field(
        "auto", description="json: a JSON object per line. console: for people. auto: console in a terminal, else json."
    )

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value.upper() not in _LEVELS:
            raise ConfigurationError(f"JOBSTREAM_LOG_LEVEL is one of {', '.join(_LEVELS)}")
        return value


class JobLine:
    """What the lines of an attempt are about. One for each attempt; `task` is filled in when it is known."""

    __slots__ = ("attempt", "job_id", "task", "trace_id")

    def __init__(self, job_id: str, attempt: int, task: str | None = None, trace_id: str | None = None) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.task = task
        self.trace_id = trace_id


job_line: ContextVar[JobLine | None] = ContextVar("jobstream_job_line", default=None)
"""The attempt that runs in this context."""

_alone: JobLine | None = None
_in_force = ""


def run_alone(line: JobLine | None) -> None:
    """This process runs one attempt at a time: the lines of all its threads are about that."""
    global _alone
    _alone = line


def in_force() -> str:
    """What `configure` was told, as a child process takes it: `json:INFO`; empty when it was not called."""
    return _in_force


def configure(format: LogFormat, level: str, *, more: Callable[[], Mapping[str, str]] = dict) -> None:
    """Let every line of this process go to standard error, in one format. `more`: what else lines are about."""
    global _in_force
    import structlog

    chosen = format if format != "auto" else "console" if sys.stderr.isatty() else "json"
    _in_force = f"{chosen}:{level.upper()}"

    def say_what_about(event: EventDict) -> None:
        for name, value in more().items():
            event.setdefault(name, value)
        line = job_line.get() or _alone
        if line is not None:
            event["job_id"], event["task"], event["attempt"] = line.job_id, line.task, line.attempt
            if line.trace_id is not None:
                event["trace_id"] = line.trace_id

    def about(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        say_what_about(event)
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        about,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _plain,
            *_ending(chosen),
            cast("Processor", _scrubbed),  # its type knows no processor behind the one that makes the text
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(_Quick(formatter, say_what_about) if chosen == "json" else formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)  # noqa: FBT003 (the standard library's name for it)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def configure_child(told: str) -> None:
    """The same in a child process, as its worker's `in_force` says; when something is said, not before."""
    if not told:
        return
    format, _, level = told.partition(":")

    class Late(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logging.getLogger().removeHandler(self)
            _configure_as(format, level)
            logging.getLogger().handle(record)

    logging.getLogger().addHandler(Late())
    logging.getLogger().setLevel(level)


def configure_for_structlog(told: str) -> None:
    """In a child process, once the task's module is imported: has it structlog, then that is set up now."""
    if told and "structlog" in sys.modules and not _in_force:
        format, _, level = told.partition(":")
        _configure_as(format, level)


def _configure_as(format: str, level: str) -> None:
    configure("console" if format == "console" else "json", level)


_PLAIN = len(vars(logging.LogRecord("", 0, "", 0, "", (), None)))
"""Attributes of a record without `extra`."""


class _Quick(logging.Formatter):
    """JSON for plain lines, as structlog would have it, in half the time: a job that ends says one. Others are its."""

    def __init__(self, other: logging.Formatter, say_what_about: Callable[[EventDict], None]) -> None:
        super().__init__()
        self._other = other
        self._say_what_about = say_what_about

    def format(self, record: logging.LogRecord) -> str:
        from structlog.contextvars import get_contextvars

        plain = isinstance(record.msg, str) and len(vars(record)) == _PLAIN
        if not plain or record.exc_info or record.exc_text or record.stack_info:
            return self._other.format(record)
        event: EventDict = {
            "timestamp": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **get_contextvars(),
        }
        self._say_what_about(event)
        return scrubbed(msgspec.json.encode(event, enc_hook=str).decode())


def _ending(format: str) -> list[Any]:
    import structlog

    if format == "console":
        colours = sys.stderr.isatty()
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain, pad_event_to=0)]

    def dumps(event: EventDict, **options: Any) -> str:
        return msgspec.json.encode(event, enc_hook=str).decode()

    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(serializer=dumps),
    ]


def _plain(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn's second version of its message, for terminals
    return event


_SECRETS = re.compile(
    r"(?P<ticket>[?&]ticket=)[^&\s\"'\\]+"
    r"|(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/@\"'\\]*@"
    r"|(?P<bearer>\bBearer )[^\s\"'\\,]+"
    r"|(?P<key>\b(?:whsec_|jsk_))[A-Za-z0-9_.+/=-]+"
)
_SIGNS = ("://", "ticket=", "Bearer ", "whsec_", "jsk_")


def scrubbed(text: str) -> str:
    """The text without what is secret by its form: tickets, passwords in URLs, bearer tokens, API keys, secrets."""
    if not any(sign in text for sign in _SIGNS):  # a fifth of a microsecond; the expression takes fifteen
        return text
    return _SECRETS.sub(lambda found: f"{found[found.lastgroup or 0]}***{'@' if found['scheme'] else ''}", text)


def _scrubbed(logger: WrappedLogger, method: str, text: str) -> str:
    return scrubbed(text)
