"""Our edge of HTTP/1.1: how large a head may be, and how a connection ends whose request was refused unread.

httptools by itself would gather header lines for as long as a client sends them. uvicorn reads on when it has answered,
for as long as a body comes, or closes at once; then what the client still sends meets a closed socket, which throws
away the answer that it has not read yet (RFC 9112, section 9.6). So an answer that overtakes a large body says
`Connection: close`, and the connection is closed in two steps: no more is sent, and what comes is read and forgotten.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from jobstream_api.coming import is_large

CODE = "head-too-large"

LINGER_SECONDS = 5.0
LINGER_BYTES = 64 << 20
"""How long, and how much, a client may go on sending a body that was refused."""


def limited_protocol(most: int) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, for requests whose request line and headers (or trailers) have `most` bytes, about.

    A larger one is answered with 431 (RFC 6585, section 5), and the connection closed.
    """
    return type("LimitedProtocol", (_LimitedProtocol,), {"most": most, "__slots__": ()})


class _LimitedProtocol(HttpToolsProtocol):
    # Not in the instance's dict: CPython shares the keys of up to 30 attributes among instances, and uvicorn has nearly
    # as many. With these each connection would hold 1.3 KB more.
    __slots__ = ("_forgotten", "_held", "_moved", "_silent")
    most: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._silent = 0
        """Bytes since the parser last came to the end of a head, to a piece of a body or to the end of a request."""
        self._moved = False
        self._held: RequestResponseCycle | None = None
        """The request whose body has not all come. An answer before it has is the last one of the connection."""
        self._forgotten = -1
        """Bytes that came since then; -1: no such answer was given."""

    def data_received(self, data: bytes) -> None:
        if self._forgotten >= 0:
            self._forgotten += len(data)
            if self._forgotten > LINGER_BYTES:
                self.transport.close()
            return
        self._moved = False
        super().data_received(data)
        self._silent = 0 if self._moved else self._silent + len(data)
        if self._silent > self.most and not self.transport.is_closing():
            self.transport.write(_refusal(self.most))
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._moved = True
        before = self.cycle
        super().on_headers_complete()
        cycle = self.cycle
        if cycle is not before and cycle.keep_alive and is_large(self.headers):
            cycle.keep_alive = False
            cycle.transport = _Parting(self)
            self._held = cycle

    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._moved = True
        if (cycle := self._held) is not None:
            self._held = None
            if not cycle.response_started:
                cycle.keep_alive = True
        super().on_message_complete()

    def part(self) -> None:
        """All has been answered: close, but hear the client out if it is still sending."""
        if self._held is None:
            self.transport.close()
            return
        self._forgotten = 0
        if self.transport.can_write_eof():  # with TLS it cannot
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def on_response_complete(self) -> None:
        if self._forgotten < 0:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()


class _Parting(asyncio.Transport):
    """The transport of a request with a large body: as the connection's own, but for how it is closed."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: _LimitedProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.part()


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
