"""Quota: what a tenant may still submit, as it is told."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple


class Quota(NamedTuple):
    """A rate and what is left of it. Times in seconds."""

    jobs: int
    window: int
    left: int
    reset: int
    """Until all of it is there again."""

    @classmethod
    def of(cls, jobs: int, window_ms: int, left: int, reset_ms: int) -> Quota:
        """As the scripts say it."""
        return cls(jobs, ceil(window_ms / 1000), max(0, left), ceil(reset_ms / 1000))

    def headers(self) -> dict[str, str]:
        """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10)."""
        return {
            "RateLimit-Policy": f'"submit";q={self.jobs};w={self.window}',
            "RateLimit": f'"submit";r={self.left};t={self.reset}',
        }
