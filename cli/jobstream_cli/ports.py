"""TCP ports on this machine: is one free, and what answers there."""

from __future__ import annotations

import http.client
import json
import socket

from pydantic import JsonValue

LAST_PORT = 65_535


def why_not(host: str, port: int) -> str | None:
    """Why nothing could listen there now; None when something could."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def next_free(host: str, port: int) -> int | None:
    """The first free port from `port` on, within a hundred; None when there is none."""
    candidates = range(port, min(port + 100, LAST_PORT + 1))
    return next((candidate for candidate in candidates if why_not(host, candidate) is None), None)


def reachable(host: str) -> str:
    """The address by which this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def base_url(host: str, port: int) -> str:
    """`http://127.0.0.1:8000`, for people and for clients on this machine."""
    name = reachable(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def answers(host: str, port: int, *, timeout: float = 1.0) -> bool:
    """Whether somebody listens there."""
    try:
        with socket.create_connection((reachable(host), port), timeout=timeout):
            return True
    except OSError:
        return False


def get_json(host: str, port: int, path: str, *, timeout: float = 1.0) -> JsonValue:
    """What `GET path` answers; None for no answer and for any that is not 200."""
    connection = http.client.HTTPConnection(reachable(host), port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body: JsonValue = json.loads(response.read())
        return body if response.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
