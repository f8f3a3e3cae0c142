"""fakeredis, made fit: the commands that arq and redis-py miss, exact expiry, and connections that let go.

It leans on private modules of fakeredis, which is therefore pinned to one version and held to a real server by tests.
Nothing of fakeredis itself is changed: others who use it in the same process see it as it is.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, ClassVar

import redis as sync_redis
import redis.asyncio as aio_redis
from fakeredis import FakeServer
from fakeredis._clients._sync import FakeRedisConnection
from fakeredis._commands import Signature
from fakeredis._socket import AsyncFakeSocket, FakeSocket
from fakeredis.aioredis import FakeAsyncRedisConnection, FakeReader, FakeWriter

if find_spec("lupa") is None:  # fakeredis does without it, and then knows no scripts
    raise ImportError("No module named 'lupa'")

VERSION = (7, 0)
"""The Redis whose behaviour is asked of fakeredis."""

CONFIG = {
    "appendfsync": "everysec",
    "appendonly": "no",
    "databases": "16",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "notify-keyspace-events": "",
    "port": "0",
    "save": "",
    "timeout": "0",
}
"""What CONFIG GET answers until CONFIG SET says otherwise."""

Section = dict[str, str | int]


class Engine:
    """One fake server and the pools of its clients."""

    def __init__(self) -> None:
        self._server = _Server(version=VERSION)

    def async_pool(self) -> aio_redis.ConnectionPool:
        """A pool for an asyncio client."""
        return aio_redis.ConnectionPool(connection_class=_AsyncConnection, server=self._server, version=VERSION)

    def sync_pool(self) -> sync_redis.ConnectionPool:
        """A pool for a blocking client."""
        return sync_redis.ConnectionPool(connection_class=_Connection, server=self._server, version=VERSION)


class _Server(FakeServer):
    """A server that can say how it is."""

    def __init__(self, version: tuple[int, ...]) -> None:
        super().__init__(version=version)
        self.run_id = secrets.token_hex(20)
        self.started = time.time()

    def info(self) -> dict[str, Section]:
        """The sections of INFO, as far as clients look at them. Memory is the whole process's affair: 0, no limit."""
        return {
            "server": {
                "redis_version": ".".join(map(str, (*VERSION, 0))),
                "redis_mode": "standalone",
                "process_id": os.getpid(),
                "run_id": self.run_id,
                "tcp_port": 0,
                "uptime_in_seconds": int(time.time() - self.started),
            },
            "clients": {
                "connected_clients": len(self.sockets),
                "blocked_clients": sum(socket._blocked for socket in self.sockets),
            },
            "memory": {
                "used_memory": 0,
                "used_memory_human": "0B",
                "maxmemory": 0,
                "maxmemory_human": "0B",
                "maxmemory_policy": "noeviction",
            },
            "persistence": {"loading": 0, "aof_enabled": 0, "aof_last_write_status": "ok"},
            "replication": {
                "role": "master",
                "connected_slaves": 0,
                "master_replid": self.run_id,
                "master_replid2": "0" * 40,
                "master_repl_offset": 0,
                "second_repl_offset": -1,
            },
            "keyspace": {
                f"db{number}": f"keys={len(db)},expires={sum(db[key].expireat is not None for key in db)},avg_ttl=0"
                for number, db in self.dbs.items()
                if len(db)
            },
        }


class _Commands(FakeSocket):
    """What fakeredis lacks, or does otherwise than Redis."""

    _server: _Server
    _added: ClassVar[dict[str, Signature]] = {
        "info": Signature("info", "info", fixed=(), repeat=(bytes,)),  # type: ignore[arg-type]
        "config get": Signature("config get", "config_get", fixed=(bytes,), repeat=(bytes,)),
    }

    def _name_to_func(self, cmd_name: str) -> tuple[Callable[..., Any] | None, Signature]:
        added = self._added.get(cmd_name)
        return (getattr(self, added.func_name), added) if added else super()._name_to_func(cmd_name)

    def info(self, *names: bytes) -> bytes:
        wanted = {name.decode().lower() for name in names}
        everything = not wanted or not wanted.isdisjoint(("default", "all", "everything"))
        sections = self._server.info()
        return "\r\n".join(
            "\r\n".join([f"# {name.capitalize()}", *(f"{key}:{value}" for key, value in section.items()), ""])
            for name, section in sections.items()
            if everything or name in wanted
        ).encode()

    def config_get(self, *patterns: bytes) -> list[bytes]:
        wanted = [pattern.decode().lower() for pattern in patterns]
        config = CONFIG | {name.decode(): value.decode() for name, value in self._server.config.items()}
        return [
            word.encode()
            for name, value in config.items()
            if any(fnmatchcase(name, pattern) for pattern in wanted)
            for word in (name, value)
        ]

    def psetex(self, key: Any, ms: int, value: bytes) -> Any:
        answer = super().psetex(key, ms, value)
        key.expireat = self._db.time + ms / 1000  # fakeredis cuts it to whole seconds: 50 ms would be over at once
        return answer

    def setex(self, key: Any, seconds: int, value: bytes) -> Any:
        answer = super().setex(key, seconds, value)
        key.expireat = self._db.time + seconds
        return answer


class _Socket(_Commands):
    """For blocking clients."""


class _AsyncSocket(_Commands, AsyncFakeSocket):
    """For asyncio clients."""


class _Connection(FakeRedisConnection):
    _server: _Server

    def _connect(self) -> _Socket:
        return _Socket(
            self._server,
            client_class=self._client_class,
            db=self.db,
            lua_modules=self._lua_modules,
            client_info=self._client_info,
        )


class _AsyncConnection(FakeAsyncRedisConnection):
    _server: _Server

    async def _connect(self) -> None:
        self._sock = _AsyncSocket(
            self._server,
            self.db,
            client_class=self._client_class,
            lua_modules=self._lua_modules,
            client_info=self._client_info,
        )
        self._reader = FakeReader(self._sock)
        self._writer = FakeWriter(self._sock)

    async def disconnect(self, nowait: bool = False, **options: Any) -> None:
        """Leave the server too: fakeredis would keep the socket, its subscriptions and all that is published there."""
        if self._sock is not None:
            with self._server.lock:
                if self._sock._blocked:
                    self._sock._unblock_reason = b"timeout"
                    self._sock._db.wake_all()
                self._sock.kill()
        await super().disconnect(nowait, **options)
