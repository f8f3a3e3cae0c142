"""Tickets do not belong into logs: an access log shows that there was one, not which."""

from __future__ import annotations

import logging
import re

ACCESS_LOG = "uvicorn.access"

_TICKET = re.compile(r"(?<=[?&]ticket=)[^&\s\"']+")


class Redaction(logging.Filter):
    """Takes tickets out of a record's message and arguments."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redacted(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(map(redacted, record.args))
        return True


def redacted(value: object) -> object:
    """Text without tickets; anything else as it is."""
    return _TICKET.sub("***", value) if isinstance(value, str) else value


_redaction = Redaction()


def redact_access_log() -> None:
    """For those who serve the app with an uvicorn of their own. To be called any number of times."""
    logging.getLogger(ACCESS_LOG).addFilter(_redaction)
