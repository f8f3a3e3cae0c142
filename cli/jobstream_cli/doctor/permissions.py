"""Whether the configured user may do all that the service does: every command is tried on scratch keys of our own."""

from __future__ import annotations

import secrets
from typing import Final, Literal

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from jobstream import keys
from jobstream_cli.doctor.findings import Finding, error, ok

LIFE_MS: Final = 60_000
FAR_MS: Final = 4_102_444_800_000
"""A time in the year 2100."""

Word = str | int
Denial = Literal["command", "key", "channel"] | None


def samples(scratch: str) -> list[tuple[Word, ...]]:
    """Every command that scripts and clients of jobstream send, with keys that begin with `scratch`."""
    text, number, hashed, zset, listed, members = (f"{scratch}{name}" for name in ("s", "n", "h", "z", "l", "m"))
    return [
        ("PING",),
        ("TIME",),
        ("SET", text, 1, "PX", LIFE_MS),
        ("GET", text),
        ("MGET", text),
        ("EXISTS", text),
        ("PERSIST", text),
        ("EXPIRE", text, 60),
        ("PEXPIRE", text, LIFE_MS),
        ("PTTL", text),
        ("INCR", number),
        ("DECR", number),
        ("HSET", hashed, "f", 1),
        ("HSETNX", hashed, "g", 1),
        ("HGET", hashed, "f"),
        ("HMGET", hashed, "f"),
        ("HGETALL", hashed),
        ("HEXISTS", hashed, "f"),
        ("HINCRBY", hashed, "f", 1),
        ("HDEL", hashed, "g"),
        ("ZADD", zset, 1, "a", 2, "b", 3, "c"),
        ("ZSCORE", zset, "a"),
        ("ZCARD", zset),
        ("ZCOUNT", zset, "-inf", "+inf"),
        ("ZLEXCOUNT", zset, "-", "+"),
        ("ZRANGE", zset, 0, 0),
        ("ZREVRANGE", zset, 0, 0),
        ("ZREVRANK", zset, "a"),
        ("ZRANGEBYSCORE", zset, 0, 1),
        ("ZREVRANGEBYSCORE", zset, 1, 0),
        ("ZRANGEBYLEX", zset, "-", "+"),
        ("ZREVRANGEBYLEX", zset, "+", "-"),
        ("ZREM", zset, "a"),
        ("ZPOPMIN", zset),
        ("ZREMRANGEBYSCORE", zset, 0, 1),
        ("ZREMRANGEBYRANK", zset, 5, 6),
        ("RPUSH", listed, 1, 2, 3),
        ("LLEN", listed),
        ("LRANGE", listed, 0, 0),
        ("LINDEX", listed, 0),
        ("LTRIM", listed, 0, 1),
        ("LREM", listed, 1, 9),
        ("LPOP", listed),
        ("SADD", members, 1),
        ("SREM", members, 2),
        ("SMEMBERS", members),
        ("SCARD", members),
        ("SRANDMEMBER", members, 1),
        ("PUBLISH", f"{scratch}c", ""),
        ("EVAL", "return 1", 0),
        ("EVALSHA", "0" * 40, 0),
        *(("PEXPIREAT", key, FAR_MS) for key in (number, hashed, zset, listed, members)),
        ("DEL", text, number, hashed, zset, listed, members),
    ]


async def examine(client: Redis, subscriber: Redis) -> list[Finding]:
    """Try everything. Nothing is left behind. Raises redis-py's errors, but for what is denied."""
    scratch = f"{keys.RECORD.partition(':')[0]}:doctor:{secrets.token_hex(6)}:"
    tried = {str(command[0]): await _denial(client, *command) for command in samples(scratch)}
    for name in ("MULTI", "EXEC"):
        tried[name] = await _denial_alone(client, name)
    commands = [name for name, denial in tried.items() if denial == "command"]
    prefixes = [
        f"{prefix}*" for prefix in ("arq:", "jobstream:") if await _denial(client, "GET", f"{prefix}-") == "key"
    ]
    unheard = await _denial_of_hearing(subscriber, f"{keys.EVENTS}-")
    if unheard == "command":
        commands.append("SUBSCRIBE")
    channels = unheard == "channel" or tried["PUBLISH"] == "channel"
    user = await _user(client)
    found: list[Finding] = []
    if commands:
        words = " ".join(f"+{name.lower()}" for name in commands)
        detail = f"the user {user!r} may not send {', '.join(commands)}"
        found.append(error("acl-commands", detail, f"ACL SETUSER {user} {words}"))
    if prefixes:
        advice = f"ACL SETUSER {user} {' '.join(f'~{prefix}' for prefix in prefixes)}"
        found.append(error("acl-keys", f"the user {user!r} may not touch the keys {' '.join(prefixes)}", advice))
    if channels:
        detail = f"the user {user!r} may not use the channels jobstream:*: nothing is live"
        found.append(error("acl-channels", detail, f"ACL SETUSER {user} &jobstream:*"))
    return found or [ok("acl", f"the user {user!r} may do all that the service does")]


async def _denial(client: Redis, *command: Word) -> Denial:
    try:
        await client.execute_command(*command)  # type: ignore[no-untyped-call]
    except ResponseError as refused:  # or EVALSHA of no script, or a key that an earlier denial left unmade
        return _kind(refused)
    return None


async def _denial_alone(client: Redis, name: str) -> Denial:
    """On a connection of its own, which is in the middle of a transaction afterwards, and closed."""
    connection = await client.connection_pool.get_connection()
    try:
        await connection.send_command(name)
        await connection.read_response()
    except ResponseError as refused:  # or EXEC without MULTI
        return _kind(refused)
    finally:
        await connection.disconnect()
        await client.connection_pool.release(connection)
    return None


async def _denial_of_hearing(subscriber: Redis, channel: str) -> Denial:
    async with subscriber.pubsub() as pubsub:
        try:
            await pubsub.subscribe(channel)
            await pubsub.get_message(timeout=2)
        except ResponseError as refused:
            return _kind(refused)
    return None


def _kind(refused: ResponseError) -> Denial:
    text = str(refused)
    if not isinstance(refused, NoPermissionError) and "NOPERM" not in text:  # EXEC is discarded because of that
        return None
    if "to run the" in text:
        return "command"
    return "channel" if "channel" in text else "key"


async def _user(client: Redis) -> str:
    try:
        return str((await client.execute_command("ACL WHOAMI")).decode())  # type: ignore[no-untyped-call]
    except (RedisError, AttributeError):
        options = client.connection_pool.connection_kwargs
        return str(options.get("username") or "default")
