"""The API's entry point: `python -m jobstream_api.main`, `jobstream api`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from types import FrameType

import uvicorn

from jobstream import collector, logs, telemetry
from jobstream.errors import ConfigurationError
from jobstream.redis import RedisSource, UrlSource
from jobstream_api.app import create_app
from jobstream_api.auth.settings import check_exposure
from jobstream_api.edges import about_request
from jobstream_api.head import limited_protocol
from jobstream_api.live.edge import Edge
from jobstream_api.live.websocket import MESSAGE_BYTES
from jobstream_api.service import GRACE_SECONDS, Service
from jobstream_api.settings import ApiSettings

LINGER_SECONDS = 0.5
"""At SIGTERM, time for clients to hear with an answer that their connection ends. One that is kept alive, and closed as
it is used again, costs a request."""

UNREAD_MS = 30_000
"""How long a client may leave data unacknowledged, or its window shut, until the system cuts it (RFC 5482)."""


class Server(uvicorn.Server):
    """uvicorn, but on a signal it first closes the event streams, which would hold the shutdown up."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._terminated = False

    async def _serve(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's; after it the signal is raised again, which ends the process."""
        await super()._serve(sockets)
        await asyncio.to_thread(telemetry.finish)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT. It may interrupt anything, so the streams are closed in the loop's next turn."""
        with contextlib.suppress(RuntimeError):  # no loop runs: it has not begun, or has ended
            asyncio.get_running_loop().call_soon_threadsafe(self._service.drain)
        self._terminated = self._terminated or sig == signal.SIGTERM
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let go of the connections, close what is left, and end."""
        if self._terminated:
            self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while self.server_state.connections and not self.force_exit:  # noqa: ASYNC110 - uvicorn's set
                        await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def create_server(settings: ApiSettings, source: RedisSource) -> Server:
    """A server for the app, not yet started: `await server.serve()`. Raises ConfigurationError."""
    check_exposure(settings, settings.host)
    app = create_app(settings, source)
    config = uvicorn.Config(
        Edge(app),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        log_config=None,  # its lines go where all others go
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        http=limited_protocol(settings.max_head_bytes),
        ws="websockets-sansio",
        ws_max_size=MESSAGE_BYTES,
        ws_per_message_deflate=False,  # it would double what a socket costs
        ws_ping_interval=settings.heartbeat_seconds,
        ws_ping_timeout=max(20.0, settings.heartbeat_seconds),
    )
    # uvicorn tells of every WebSocket, with its query: a ticket is a secret.
    logging.getLogger("uvicorn.error").addFilter(_is_no_handshake)
    return Server(config, app.state.service)


def _is_no_handshake(record: logging.LogRecord) -> bool:
    return '"WebSocket %s"' not in str(record.msg)


def main(settings: ApiSettings | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigurationError, also for an address that cannot be listened on."""
    settings = settings or ApiSettings()
    logs.configure(settings.log_format, settings.log_level, more=about_request)
    telemetry.configure(settings.traces, service="jobstream-api")
    _raise_file_limit()
    server = create_server(settings, UrlSource.from_settings(settings))
    collector.settle()
    server.run(sockets=[_listen(settings.host, settings.port)])


def _raise_file_limit() -> None:
    """As many open files as the system allows: each event stream is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket with its protocol named: asyncio turns off Nagle's delay only then."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


if __name__ == "__main__":
    main()
