"""An HTTP client that goes nowhere but where the egress policy lets it, whatever a URL or a redirect says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from functools import cache

import httpcore2
import httpx2

from jobstream.egress import EgressPolicy

CONNECT_SECONDS = 10.0
"""How long name resolution and all attempts to connect may take together."""

default_tls = cache(httpcore2.default_ssl_context)
"""Loading the certificates takes 20 ms: once per process."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses that the policy resolved. TLS and `Host` are above it and keep the name."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Try the host's addresses one after the other, each for its share of `timeout` (seconds)."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._policy.resolve(host, port)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{host} was not resolved in time") from error
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} was not resolved: {error.strerror or error}") from error
        share = timeout / len(addresses) if timeout else None
        *others, last = map(str, addresses)
        for address in others:
            try:
                return await self._backend.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._backend.connect_tcp(last, port, share, local_address, socket_options)


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """httpx2's transport on a pool whose every connection, a redirect's too, is made by `GuardedBackend`."""

    def __init__(self, policy: EgressPolicy, *, connections: int, ssl_context: ssl.SSLContext | None = None) -> None:
        # Not super().__init__(): it makes a pool that connects anywhere. Without it, a release of httpx2 that keeps
        # its pool under another name fails every request, instead of letting every request through.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context or default_tls(),
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=5.0,
            network_backend=GuardedBackend(policy),
        )


def guarded_client(
    policy: EgressPolicy, *, timeout: float, connections: int = 100, ssl_context: ssl.SSLContext | None = None
) -> httpx2.AsyncClient:
    """A client for URLs that clients gave: guarded, deaf to proxies in the environment, following no redirect itself.

    `timeout`: seconds without a byte. `connections`: how many requests may be under way; a further one waits.
    """
    return httpx2.AsyncClient(
        transport=GuardedTransport(policy, connections=max(1, connections), ssl_context=ssl_context),
        timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
        trust_env=False,
        follow_redirects=False,
    )
