"""Coverage-guided fuzzing of what reads bytes from outside, by atheris: `make fuzz SECONDS=60`.

What it finds ends the program with the input that did it; else it ends by itself. Linux, Python 3.11 to 3.13.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")  # not everywhere, so no type checker can count on it

with atheris.instrument_imports(include=["jobstream", "jobstream_api", "python_multipart"]):
    from redis.asyncio import Redis
    from starlette.requests import HTTPConnection, Request
    from starlette.types import Message

    from jobstream import store
    from jobstream.errors import JobstreamError
    from jobstream.events import parse_event_id
    from jobstream_api.auth.tickets import Tickets
    from jobstream_api.body import _parts
    from jobstream_api.preferences import parse_preferences
    from jobstream_api.routes.results import idempotency_key

BOUNDARY = b"b"
TICKETS = Tickets(Redis(), "a secret that is long enough for it" * 2, lifetime=60)  # with a secret it asks no Redis


async def _read_multipart(body: bytes) -> None:
    sent = iter((body[: len(body) // 2], body[len(body) // 2 :]))

    async def receive() -> Message:
        piece = next(sent, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async for part in _parts(Request({"type": "http", "headers": []}, receive), BOUNDARY, at_most=20):
        async for _ in part.pieces:
            pass


def one_input(data: bytes) -> None:
    """The first byte chooses who reads the rest."""
    who, rest = data[:1], data[1:]
    text = rest.decode("latin-1")
    with contextlib.suppress(JobstreamError):
        match who[0] % 6 if who else 0:
            case 0:
                parse_preferences([text])
            case 1:
                parse_event_id(text)
            case 2:
                idempotency_key(Request({"type": "http", "headers": [(b"idempotency-key", rest)]}))
            case 3:
                store._decode_cursor(text)
            case 4:
                asyncio.run(TICKETS.caller(text, HTTPConnection({"type": "http", "path_params": {"job_id": "x"}})))
            case _:
                asyncio.run(_read_multipart(rest))


if __name__ == "__main__":
    logging.disable()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
