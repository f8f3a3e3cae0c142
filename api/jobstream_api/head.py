"""The head of a request may hold so much: httptools by itself would gather lines for as long as a client sends them."""

from __future__ import annotations

import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CODE = "head-too-large"


def limited_protocol(most: int) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, for requests whose request line and headers (or trailers) have `most` bytes, about.

    A larger one is answered with 431 (RFC 6585, section 5), and the connection closed.
    """
    return type("LimitedProtocol", (_LimitedProtocol,), {"most": most})


class _LimitedProtocol(HttpToolsProtocol):
    most: int
    _silent = 0
    """Bytes since the parser has last come to the end of a head, to a piece of a body or to the end of a request."""
    _moved = False

    def data_received(self, data: bytes) -> None:
        self._moved = False
        super().data_received(data)
        self._silent = 0 if self._moved else self._silent + len(data)
        if self._silent > self.most and not self.transport.is_closing():
            self.transport.write(_refusal(self.most))
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._moved = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._moved = True
        super().on_message_complete()


def _refusal(most: int) -> bytes:
    title = "The request's headers are too large"
    members: dict[str, Any] = {
        "type": "about:blank",
        "title": title,
        "status": 431,
        "detail": f"A request line and headers may hold {most} bytes together",
        "code": CODE,
    }
    body = json.dumps(members).encode()
    return (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
        b"content-type: application/problem+json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
