"""Bytes for arq's keys: msgpack with an envelope for exceptions. Never pickle: data in Redis must not be code.

The layouts are arq 0.28's (jobs.py): a job is `{t, f, a, k, et}`, a result adds `{s, r, st, ft, q, id}`. Give
`serialize` and `deserialize` to a stock arq client or worker as `job_serializer` and `job_deserializer`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

_EXCEPTION = "__exception__"
_BIG_INT = 1
"""msgpack extension type: an integer beyond 64 bits, as hexadecimal text."""


class TaskFailure(Exception):
    """An exception that was stored as data: the type's name and the message."""


def serialize(value: dict[str, Any]) -> bytes:
    """arq's `job_serializer`."""
    try:
        return msgspec.msgpack.encode(value, enc_hook=_encode)
    except OverflowError:  # msgpack's integers end at 64 bits, Python's and JSON's do not
        return msgspec.msgpack.encode(_widen(value), enc_hook=_encode)


def deserialize(data: bytes) -> dict[str, Any]:
    """arq's `job_deserializer`. Raises ValueError for bytes that are not of this format."""
    try:
        value = msgspec.msgpack.decode(data, ext_hook=_extension)
    except msgspec.DecodeError as error:
        raise ValueError(f"not msgpack: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("not a job: the payload is not a map")  # noqa: TRY004 (the bytes are wrong, not a type)
    result = value.get("r")
    if isinstance(result, dict) and _EXCEPTION in result:
        value["r"] = _exception(result)
    return value


def _encode(value: object) -> object:
    if isinstance(value, BaseException):
        return {_EXCEPTION: type(value).__name__, "message": str(value)}
    if isinstance(value, set | frozenset):
        return list(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be stored as JSON-like data")


def _widen(value: object) -> object:
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return msgspec.msgpack.Ext(_BIG_INT, f"{value:x}".encode())
    if isinstance(value, dict):
        return {key: _widen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_widen(item) for item in value]
    return value


def _extension(code: int, data: memoryview) -> object:
    if code != _BIG_INT:
        raise msgspec.DecodeError(f"unknown extension type {code}")
    return int(bytes(data), 16)


def _exception(stored: dict[str, Any]) -> BaseException:
    name, message = str(stored[_EXCEPTION]), str(stored.get("message", ""))
    # arq's Job.abort waits for exactly this type.
    return asyncio.CancelledError(message) if name == "CancelledError" else TaskFailure(f"{name}: {message}")
