"""Redis behind Sentinels: a URL that names them, and pools whose connections lead to whichever server is the primary.

Each new connection asks the Sentinels (Redis's "Guidelines for Redis clients with support for Redis Sentinel"). A
connection to a server that is a replica by then ends with the first write, and the next one asks again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from redis import sentinel as sync_sentinel
from redis.asyncio import sentinel as aio_sentinel
from redis.asyncio.connection import BlockingConnectionPool

from jobstream.errors import ConfigurationError

SCHEMES = ("redis+sentinel", "rediss+sentinel")
_DEFAULT_PORT = 26379
_FORM = "redis+sentinel://user:password@host:26379,host:26379/primary's name/database"


@dataclass(frozen=True)
class SentinelUrl:
    """What such a URL says. User and password are those of Redis; the Sentinels' own are in the query, as redis-py's
    options of TLS are (`ssl_ca_certs=…`), which count for both."""

    nodes: tuple[tuple[str, int], ...]
    primary: str
    database: int
    tls: dict[str, Any]
    """Options of redis-py; none without TLS."""
    username: str | None
    password: str | None
    sentinel_username: str | None
    sentinel_password: str | None

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Raises ConfigurationError; the message does not quote the URL, which has passwords."""
        scheme, _, rest = url.partition("://")  # urlsplit refuses several hosts when one is an address of IPv6
        rest, _, query = rest.partition("?")
        netloc, slash, path_text = rest.partition("/")
        login, _, hosts = netloc.rpartition("@")
        username, _, password = login.partition(":")
        path = re.fullmatch(r"/([^/]+)(?:/(\d+))?", slash + path_text)
        options = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
        secure = scheme.startswith("rediss")
        tls = {name: unquote(value) for name, value in options.items() if secure and name.startswith("ssl_")}
        if not hosts or path is None or options.keys() - tls.keys() - {"sentinel_username", "sentinel_password"}:
            raise ConfigurationError(f"JOBSTREAM_REDIS_URL cannot be understood; with Sentinels it is {_FORM}")
        return cls(
            nodes=tuple(_node(host) for host in hosts.split(",")),
            primary=unquote(path[1]),
            database=int(path[2] or 0),
            tls={"ssl": True, "ssl_check_hostname": True} | tls if secure else {},
            username=unquote(username) or None,
            password=unquote(password) or None,
            sentinel_username=unquote(options.get("sentinel_username", "")) or None,
            sentinel_password=unquote(options.get("sentinel_password", "")) or None,
        )

    def pool(self, **options: Any) -> BlockingConnectionPool:
        """asyncio connections to the primary. `options`: as of redis-py's connections and pools."""
        manager = aio_sentinel.Sentinel(  # type: ignore[no-untyped-call]
            self.nodes, sentinel_kwargs=self._to_sentinels(options)
        )
        return _Pool(self.primary, manager, **self._to_redis(options))  # type: ignore[no-untyped-call]

    def sync_pool(self, **options: Any) -> sync_sentinel.SentinelConnectionPool:
        """The same for a thread."""
        manager = sync_sentinel.Sentinel(  # type: ignore[no-untyped-call]
            self.nodes, sentinel_kwargs=self._to_sentinels(options)
        )
        return sync_sentinel.SentinelConnectionPool(  # type: ignore[no-untyped-call]
            self.primary, manager, **self._to_redis(options)
        )

    def _to_redis(self, options: dict[str, Any]) -> dict[str, Any]:
        login = {"username": self.username, "password": self.password, "db": self.database}
        return options | login | self.tls

    def _to_sentinels(self, options: dict[str, Any]) -> dict[str, Any]:
        wait = options["socket_connect_timeout"]  # one that does not answer is one of several
        found = {"socket_timeout": wait, "socket_connect_timeout": wait}
        login = {"username": self.sentinel_username, "password": self.sentinel_password}
        return found | login | self.tls


class _Pool(aio_sentinel.SentinelConnectionPool, BlockingConnectionPool):
    """Waits for a connection where redis-py's own pool of this kind would refuse one; leaves none to Sentinels open."""

    async def get_master_address(self) -> Any:
        try:
            return await super().get_master_address()  # type: ignore[no-untyped-call]
        finally:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


def _node(host: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[^]]+\]|[^:]+)(?::(\d+))?", host)
    if found is None:
        raise ConfigurationError(f"JOBSTREAM_REDIS_URL cannot be understood; with Sentinels it is {_FORM}")
    return found[1].strip("[]"), int(found[2] or _DEFAULT_PORT)
