"""Where the service is, and who asks."""

from __future__ import annotations

import os
from dataclasses import dataclass

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Service:
    """What `--url` and `--token` say."""

    url: str
    token: str | None = None

    @property
    def command(self) -> str:
        """How a command that speaks to this service begins, for people to copy."""
        if self.url == (os.environ.get("JOBSTREAM_URL") or DEFAULT_URL):
            return "jobstream"
        return f"jobstream --url {self.url}"
