"""Ports for servers that a test starts, when the number must be known before the server is."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _COUNT = 20_000, 12_000
"""Below the range that the system takes the ports of outgoing connections from, so none of those gets between."""

_numbers = itertools.count(os.getpid() * 97)
"""Runs beside this one begin somewhere else."""


def free_port() -> int:
    """A port of loopback that nobody listens on, and that this run has not given away before."""
    for number in itertools.islice(_numbers, _COUNT):
        port = _FIRST + number % _COUNT
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
