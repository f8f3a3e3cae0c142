"""`jobstream limits`, as an operator types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from arq.connections import ArqRedis

from jobstream.embedded import ChildRedis
from jobstream.limits import UNLIMITED_RATE, Rate, TenantLimits, get_limits


def limits(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(
        [sys.executable, "-m", "jobstream_cli", "limits", *words],
        env=os.environ | {"JOBSTREAM_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def url(redis_server: ChildRedis) -> str:
    return redis_server.url


async def test_what_is_set_stays_until_it_is_cleared(real_client: ArqRedis, url: str) -> None:
    assert limits(url, "set", "acme", "--rate", "100/m", "--weight", "3").returncode == 0
    assert limits(url, "set", "acme", "--running", "5").returncode == 0
    assert await get_limits(real_client, "acme") == TenantLimits(rate=Rate(100, 60), running=5, weight=3)
    assert limits(url, "set", "globex", "--rate", "0").returncode == 0
    assert await get_limits(real_client, "globex") == TenantLimits(rate=UNLIMITED_RATE)
    listed = limits(url, "list", "--json").stdout.splitlines()
    assert [json.loads(line) for line in listed] == [
        {"tenant": "acme", "rate": "100/60s", "running": 5, "weight": 3},
        {"tenant": "globex", "rate": "0", "running": None, "weight": None},
    ]
    assert limits(url, "list").stdout.splitlines()[1].split() == ["acme", "100/60s", "5", "3"]
    assert limits(url, "clear", "acme").returncode == 0
    assert await get_limits(real_client, "acme") == TenantLimits()


@pytest.mark.parametrize(
    "words",
    [
        ("set", "acme"),
        ("set", "acme", "--rate", "fast"),
        ("set", "acme", "--weight", "0"),
        ("set", "two words", "--weight", "1"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(url: str, words: tuple[str, ...]) -> None:
    done = limits(url, *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "rror: " in done.stderr


def test_nothing_to_clear_is_said(url: str) -> None:
    assert "nothing was set for initech" in limits(url, "clear", "initech").stderr
