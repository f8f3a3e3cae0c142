"""Redis scripts: one verb in one `.lua` file, prefixed with what it needs of the prelude; names of `keys.py` become its
strings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, cast

from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from jobstream import keys

Argument = str | bytes | int | float

_NAMES = {name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
_NAME = re.compile(rf"\b(?:{'|'.join(_NAMES)})\b")
_DEFINED = re.compile(r"^local (?:function )?([\w, ]+)", re.MULTILINE)
_WORD = re.compile(r"\w+")


class Script:
    """A loaded script. Call it with a client; it is sent whole only when Redis does not know it (EVALSHA → EVAL).

    `uses`: other scripts, which it, and those after them, can call as functions of
    their names; they see the same KEYS and ARGV.
    """

    def __init__(self, name: str, *, uses: Sequence[str] = ()) -> None:
        self.name = name
        used = "".join(f"local function {other}(...)\n{_source(other)}end\n" for other in uses)
        self.text = _with_prelude(used + _source(name))
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(
        self,
        client: Redis,
        *,
        key_names: Sequence[str] = (),
        args: Sequence[Argument] = (),
        hurry: bool = False,
        patience: float = 0.0,
    ) -> Any:
        """Run it. Raises redis-py's errors; a restart or SCRIPT FLUSH of Redis is not one.

        `hurry`: on a `PipelinedRedis`, do not wait for other commands to travel with. `patience`: seconds that it may
        take there, if more than others.
        """
        options: dict[str, bool | float] = ({"hurry": True} if hurry else {}) | (
            {"patience": patience} if patience else {}
        )
        rest = (len(key_names), *key_names, *args)
        try:
            return await client.execute_command("EVALSHA", self.sha, *rest, **options)  # type: ignore[no-untyped-call]
        except NoScriptError:
            return await client.execute_command("EVAL", self.text, *rest, **options)  # type: ignore[no-untyped-call]

    def call_sync(self, client: BlockingRedis, *, args: Sequence[Argument] = ()) -> Any:
        """The same for a thread's own client."""
        values = cast("list[str]", list(args))
        try:
            return client.evalsha(self.sha, 0, *values)
        except NoScriptError:
            return client.eval(self.text, 0, *values)


def _with_prelude(text: str) -> str:
    """Redis runs a script from its top, and makes each function of it, every time: those that nobody calls stay out."""
    for block in reversed(_source("prelude").split("\n\n")):  # a block calls those above it only
        names = [name for defined in _DEFINED.findall(block) for name in _WORD.findall(defined)]
        if any(re.search(rf"\b{name}\b", text) for name in names):
            text = f"{block}\n\n{text}"
    return text


def _source(name: str) -> str:
    text = resources.files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    # Not `local RECORD = …`: every function of the prelude would catch its names anew each time that a script runs.
    return _NAME.sub(lambda match: f"'{_NAMES[match[0]]}'", text)
