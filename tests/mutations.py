"""`python -m tests.mutations`: break fences, leases and claims line by line; the tests must notice each time.

Works on a copy of the project, with the interpreter that it is started with. Not part of the suite: each mistake takes
a run of a few tests. Arguments pick mistakes by a part of their name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
ROOMS = ("", "api", "workers", "cli")
COPIED = ("jobstream", "api", "workers", "cli", "tests", "pyproject.toml")
PATIENCE = 300.0


class Mistake(NamedTuple):
    """A line of a script, and what somebody makes of it."""

    name: str
    script: str
    line: str
    wrong: str
    tests: str = "endings claims queue"
    """The modules of tests/integration that are to notice."""


MISTAKES = (
    Mistake(
        "another holder is let in",
        "prelude",
        "if holder then return holder == token end",
        "if holder then return true end",
    ),
    Mistake(
        "a lease that ran out is anybody's",
        "prelude",
        "return redis.call('HGET', RECORD .. id, 'token') == token and",
        "return",
    ),
    Mistake(
        "a job that has ended is held", "prelude", "== token and redis.call('EXISTS', ARQ_JOB .. id) == 1", "== token"
    ),
    Mistake("ends are not fenced", "finish", "if ended[id] or not holds(id, token, holder) then", "if ended[id] then"),
    Mistake("an end said twice in a call counts twice", "finish", "ended[id] = true", ""),
    Mistake("words are not fenced", "emit", "if not holds(id, ARGV[2]) then return 0 end", ""),
    Mistake(
        "next tries are not fenced", "retry", "if not holds(id, ARGV[2]) then return 0 end", "", "endings retries queue"
    ),
    Mistake("releases are not fenced", "release", "if not holds(ARGV[1], ARGV[2]) then return 0 end", ""),
    Mistake(
        "who has lost its job renews",
        "renew",
        "if not holds(id, ARGV[at + 1]) then",
        "if false then",
        "claims recovery",
    ),
    Mistake(
        "nothing is renewed",
        "renew",
        "redis.call('SET', ARQ_IN_PROGRESS .. id, ARGV[at + 1], 'PX', lease)",
        "redis.call('PTTL', id)",
        "claims queue recovery",
    ),
    Mistake("a late claim takes jobs", "claim", "if number <= tonumber(last) then", "if false then"),
    Mistake("what a lost answer took stays taken", "claim", "if tonumber(last) > heard then", "if false then"),
    Mistake(
        "leases end while Redis is away",
        "claim",
        "if taken_over and grace then return false end",
        "",
        "claims recovery",
    ),
    Mistake("a job that runs is taken", "claim", "if arq[at] or not take(", "if not take(", "claims queue compat"),
    Mistake("a job that runs stays due", "claim", "gather('ZADD', queue, start.lease_ends, id)", ""),
    Mistake(
        "a lease never ends",
        "claim",
        "redis.call('SET', ARQ_IN_PROGRESS .. id, start.token, 'PX', ARGV[4])",
        "redis.call('SET', ARQ_IN_PROGRESS .. id, start.token)",
        "claims queue recovery",
    ),
    Mistake("crashes are not counted", "claim", "+ (taken_over and 1 or 0)", "+ 0", "claims retries recovery"),
    Mistake(
        "what was before is not looked at", "claim", "(attempts or was ~= 'queued') and", "false and", "claims retries"
    ),
    Mistake("attempts are not counted", "claim", "as_number(attempts) + 1", "1", "queue retries"),
    Mistake(
        "arq's keys outlive the job",
        "prelude",
        "redis.call('DEL', ARQ_JOB .. id, ARQ_IN_PROGRESS .. id, ARQ_RETRY .. id)\n  gather",
        "gather",
    ),
    Mistake("what has ended is still queued", "prelude", "gather('ZREM', queue, id)", ""),
    Mistake(
        "an old error stays", "prelude", "if old[8] ~= '1' then redis.call('HDEL', record, 'error') end", "", "retries"
    ),
    Mistake(
        "an old time stays",
        "prelude",
        "then redis.call('HDEL', record, 'run_at') end -- a claim",
        "then end --",
        "queue",
    ),
    Mistake(
        "what is given back counts",
        "prelude",
        "local attempt = redis.call('DECR', ARQ_RETRY .. id)",
        "local attempt = redis.call('GET', ARQ_RETRY .. id)",
        "claims retries queue",
    ),
    Mistake(
        "a cancelled job is tried again",
        "retry",
        "if old[3] == 'cancelling' or redis.call('ZSCORE', ARQ_ABORT, id) then return 0 end",
        "",
        "retries",
    ),
)


def main(names: Sequence[str]) -> int:
    """Make the mistakes one by one; the exit code is 1 when one was not noticed."""
    unseen = []
    with tempfile.TemporaryDirectory(prefix="jobstream-mutations-") as directory:
        copy = Path(directory)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy / name)
        for mistake in MISTAKES:
            if names and not any(name in mistake.name for name in names):
                continue
            noticed = _noticed(mistake, copy)
            print(f"{'noticed' if noticed else 'NOT NOTICED':12} {mistake.script}.lua: {mistake.name}", flush=True)
            if not noticed:
                unseen.append(mistake)
    return 1 if unseen else 0


def _noticed(mistake: Mistake, copy: Path) -> bool:
    script = copy / "jobstream" / "scripts" / f"{mistake.script}.lua"
    right = script.read_text(encoding="utf-8")
    if right.count(mistake.line) != 1:
        raise SystemExit(f"{script.name} does not have once: {mistake.line}")
    script.write_text(right.replace(mistake.line, mistake.wrong), encoding="utf-8")
    modules = [f"tests/integration/test_{name}.py" for name in mistake.tests.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "not fakeredis", *modules]
    try:
        ran = subprocess.run(
            command,
            cwd=copy,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(str(copy / room) for room in ROOMS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:  # a job that never ends is noticed by whoever waits for it
        return True
    finally:
        script.write_text(right, encoding="utf-8")
    if ran.returncode not in (0, 1):
        raise SystemExit(f"{mistake.name}: the tests did not run\n{ran.stdout.decode(errors='replace')[-2000:]}")
    return ran.returncode == 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
