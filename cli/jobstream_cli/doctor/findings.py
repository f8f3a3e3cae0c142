"""Finding: what a check has seen, how bad it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """`check`: a word that stays the same, `docs/operations.md` lists them."""

    check: str
    level: Level
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", detail)


def note(check: str, detail: str, advice: str = "") -> Finding:
    """Something could not be looked at, or is worth knowing."""
    return Finding(check, "note", detail, advice)


def warning(check: str, detail: str, advice: str) -> Finding:
    """It works, and will hurt some day."""
    return Finding(check, "warning", detail, advice)


def error(check: str, detail: str, advice: str) -> Finding:
    """Jobs are lost or stand still, now or at the next restart."""
    return Finding(check, "error", detail, advice)
