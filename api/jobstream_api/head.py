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
    return type("LimitedProtocol", (_LimitedProtocol,), {"most": most, "__slots__": ()})


class _LimitedProtocol(HttpToolsProtocol):
    # Not in the instance's dict: CPython shares the keys of up to 30 attributes among instances, and uvicorn has nearly
    # as many. With these two each connection would hold 1.3 KB more.
    __slots__ = ("_moved", "_silent")
    most: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._silent = 0
        """Bytes since the parser last came to the end of a head, to a piece of a body or to the end of a request."""
        self._moved = False

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
