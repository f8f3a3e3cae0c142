"""API keys: what is stored of them, for how long they are valid, and the command that looks after them."""

from __future__ import annotations

import json
import re

import pytest
from arq.connections import ArqRedis
from click.testing import CliRunner, Result

from jobstream import keys
from jobstream.apikeys import (
    EXPIRED_KEPT_SECONDS,
    create_key,
    id_of,
    list_keys,
    note_use,
    read_key,
    revoke_key,
    rotate_key,
)
from jobstream.caller import Caller, Scope
from jobstream.errors import InvalidParameter, Unauthorized
from jobstream.redis import UrlSource
from jobstream_api.auth import keybook
from jobstream_api.auth.keybook import FRESH_SECONDS, KeyBook
from jobstream_cli.exits import Exit
from jobstream_cli.keys import seconds
from jobstream_cli.main import cli

READ = frozenset({Scope.READ})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_redis_never_holds_the_secret(client: ArqRedis) -> None:
    key, text = await create_key(client, tenant="acme", scopes=READ)
    assert re.fullmatch(r"jsk_[0-9a-f]{16}_[\w-]{43}", text)  # 43 letters of base64: 256 bits
    await rotate_key(client, key.id, overlap=60)
    secret = text.removeprefix(key.prefix + "_").encode()
    for name in await client.keys("*"):
        dumped = await client.dump(name)
        assert secret not in dumped


async def test_a_key_knows_its_own_text_only(client: ArqRedis) -> None:
    key, text = await create_key(client, tenant="acme", scopes=READ, name="ci")
    other, other_text = await create_key(client, tenant="acme", scopes=READ)
    assert key.matches(text)
    assert not key.matches(other_text)
    assert not key.matches(text + "x")
    assert not key.matches(f"{key.prefix}_{other_text.partition(other.prefix + '_')[2]}")
    assert id_of(text) == key.id
    assert (key.tenant, key.scopes, key.name, key.expires_at) == ("acme", READ, "ci", None)
    assert key.caller == Caller("acme", READ, key_id=key.id)


@pytest.mark.parametrize(
    "text", ["", "jsk_", "x", "jsk_0123456789abcde_" + "x" * 43, "JSK_0123456789abcdef_" + "x" * 43]
)
def test_what_cannot_be_a_key_has_no_id(text: str) -> None:
    assert id_of(text) is None


async def test_a_key_expires_by_redis_clock_and_is_listed_for_a_while(client: ArqRedis) -> None:
    key, text = await create_key(client, tenant="acme", scopes=READ, lifetime=0)
    assert key.expired
    assert [each.expired for each in await list_keys(client)] == [True]
    assert 0 < await client.ttl(keys.api_key(key.id)) <= EXPIRED_KEPT_SECONDS
    with pytest.raises(Unauthorized, match="expired"):
        await KeyBook(client).caller(text)
    await client.delete(keys.api_key(key.id))  # its time is over
    assert await list_keys(client) == []
    assert await client.zcard(keys.API_KEYS) == 0


@pytest.mark.parametrize(
    ("tenant", "scopes", "name"),
    [("a b", READ, ""), ("", READ, ""), ("acme", frozenset(), ""), ("acme", READ, "x\n"), ("acme", READ, "x" * 101)],
)
async def test_a_key_that_makes_no_sense_is_not_made(
    client: ArqRedis, tenant: str, scopes: frozenset[Scope], name: str
) -> None:
    with pytest.raises(InvalidParameter):
        await create_key(client, tenant=tenant, scopes=scopes, name=name)
    assert await list_keys(client) == []


async def test_while_a_key_is_rotated_two_secrets_are_valid(client: ArqRedis) -> None:
    key, first = await create_key(client, tenant="acme", scopes=READ)
    for overlap, valid in ((60.0, 2), (0.0, 1)):
        rotated = await rotate_key(client, key.id, overlap=overlap)
        assert rotated is not None
        _, second = rotated
        book, good = KeyBook(client), 0
        for text in (first, second):
            try:
                good += (await book.caller(text)).tenant == "acme"
            except Unauthorized:
                assert text == first
        assert good == valid
        first = second
    assert await rotate_key(client, "0" * 16, overlap=60) is None


async def test_a_revoked_key_is_refused_within_seconds(client: ArqRedis) -> None:
    clock = Clock()
    key, text = await create_key(client, tenant="acme", scopes=READ)
    book = KeyBook(client, clock)
    await book.caller(text)
    assert await revoke_key(client, key.id)
    assert not await revoke_key(client, key.id)
    clock.now += FRESH_SECONDS
    with pytest.raises(Unauthorized, match="not valid"):
        await book.caller(text)
    assert await client.keys("jobstream:key*") == []


async def test_a_key_that_is_used_all_the_time_is_read_and_written_seldom(
    client: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[object] = []
    execute = client.execute_command

    async def counted(*words: object, **options: object) -> object:
        commands.append(words)
        return await execute(*words, **options)  # type: ignore[no-untyped-call]

    _, text = await create_key(client, tenant="acme", scopes=READ)
    clock = Clock()
    book = KeyBook(client, clock)
    monkeypatch.setattr(client, "execute_command", counted)
    await book.caller(text)
    assert len(commands) <= 2  # the note of its use; the read is a pipeline
    for _ in range(100):
        clock.now += FRESH_SECONDS / 10
        await book.caller(text)
    assert len(commands) <= 2
    [key] = await list_keys(client)
    assert key.used_at is not None


async def test_a_use_brings_no_revoked_key_back(client: ArqRedis) -> None:
    key, _ = await create_key(client, tenant="acme", scopes=READ)
    await revoke_key(client, key.id)
    await note_use(client, key)
    assert await read_key(client, key.id) is None
    assert await client.keys("jobstream:key*") == []


async def test_the_book_of_keys_is_bounded(client: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keybook, "KEYS_KEPT", 2)
    book = KeyBook(client)
    for _ in range(5):
        _, text = await create_key(client, tenant="acme", scopes=READ)
        await book.caller(text)
    assert len(book._read) == 2


class TestTheCommand:
    @pytest.fixture
    def run(self, real_source: UrlSource, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
        monkeypatch.setenv("JOBSTREAM_REDIS_URL", real_source._url)
        return CliRunner()

    def invoke(self, run: CliRunner, line: str, code: Exit = Exit.OK) -> Result:
        result = run.invoke(cli, ["keys", *line.split()])
        assert result.exit_code == code, result.output
        return result

    def test_a_key_is_made_listed_rotated_and_revoked(self, run: CliRunner) -> None:
        made = self.invoke(run, "create --tenant acme --scope submit --scope read --name ci --expires 90d")
        text = made.stdout.strip()
        key_id = id_of(text)
        assert key_id
        listed = self.invoke(run, "list").stdout
        for word in (f"jsk_{key_id}", "acme", "read,submit", "ci", "never"):
            assert word in listed
        assert text not in listed
        member = json.loads(self.invoke(run, "list --json").stdout)
        assert member["id"] == f"jsk_{key_id}"
        assert member["expires_at"].endswith("Z")
        rotated = self.invoke(run, f"rotate jsk_{key_id} --overlap 1h")
        assert id_of(rotated.stdout.strip()) == key_id
        assert rotated.stdout.strip() != text
        assert "valid until" in rotated.stderr
        again = json.loads(self.invoke(run, f"rotate {key_id} --overlap 0s --json").stdout)
        assert id_of(again["key"]) == key_id
        assert again["old_secret_until"] is None
        assert "revoked" in self.invoke(run, f"revoke {text}").stdout
        assert json.loads(self.invoke(run, "list --json").stdout or "null") is None

    @pytest.mark.parametrize(
        ("line", "code"),
        [
            ("rotate jsk_0000000000000000", Exit.NOT_FOUND),
            ("revoke nothing", Exit.NOT_FOUND),
            ("create --tenant acme", Exit.USAGE),
            ("create --tenant acme --scope everything", Exit.USAGE),
            ("create --tenant acme --scope read --expires soon", Exit.USAGE),
            ("create --tenant é --scope read", Exit.USAGE),
        ],
    )
    def test_what_makes_no_sense_is_said(self, run: CliRunner, line: str, code: Exit) -> None:
        result = self.invoke(run, line, code)
        assert result.stdout == ""
        assert result.stderr

    def test_redis_away_is_one_sentence(self, run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JOBSTREAM_REDIS_URL", "redis://127.0.0.1:1/0")
        result = self.invoke(run, "list", Exit.UNREACHABLE)
        assert result.stderr.startswith("error: external Redis at redis://127.0.0.1:1/0")


def test_durations() -> None:
    assert [seconds(text) for text in ("90d", "12h", "30m", "1.5s")] == [7_776_000, 43_200, 1800, 1.5]
