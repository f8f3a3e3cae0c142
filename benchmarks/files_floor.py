"""The least that an upload costs: an ASGI app that writes the body to a file. Nothing is parsed, hashed or kept."""

from __future__ import annotations

import tempfile
from typing import Any


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer one request."""
    if scope["type"] != "http":
        return
    with tempfile.TemporaryFile(dir=".", buffering=0) as target:
        more = True
        while more:
            message = await receive()
            target.write(message.get("body", b""))
            more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})
