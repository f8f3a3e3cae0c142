"""What a request's headers say of the body that is still to come."""

from __future__ import annotations

from collections.abc import Iterable

LARGE_BYTES = 65_536
"""A smaller body is there with its headers, or nearly: to read it costs less than to end its connection."""


def declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Bytes of the body; None when only its end will tell. `headers`: as ASGI has them, names in lower case."""
    length: int | None = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length" and value.isdigit():
            length = int(value)
    return length


def is_large(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """True for a body that is worth a look before it is read: one that is long, or may be, or waits to be asked for."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"expect" and value.lower() == b"100-continue"):
            return True
        if name == b"content-length" and value.isdigit():
            length = int(value)
    return length > LARGE_BYTES
