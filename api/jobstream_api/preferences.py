"""The `Prefer` header (RFC 7240): what a client would like. What cannot be understood is ignored, as the RFC wants."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

WAIT_MAX_SECONDS = 55
"""The longest wait: below the 60 s after which many proxies give a silent connection up."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ELEMENT = re.compile(rf'(?:[^,"]|{_QUOTED})+')
_PREFERENCE = re.compile(rf"[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*({_TOKEN}|{_QUOTED}))?[ \t]*(?:;|\Z)")


@dataclass(frozen=True)
class Preferences:
    """What was preferred, of the two preferences that this service knows."""

    respond_async: bool = False
    wait: int | None = None
    """Seconds that the client is ready to wait, at most WAIT_MAX_SECONDS."""

    def applied(self, *, asynchronous: bool = False) -> dict[str, str]:
        """The header Preference-Applied, if anything was. `asynchronous`: the answer came before the work was done."""
        names = ["respond-async"] if asynchronous and self.respond_async else []
        if self.wait is not None:
            names.append(f"wait={self.wait}")
        return {"Preference-Applied": ", ".join(names)} if names else {}


def parse_preferences(headers: Iterable[str]) -> Preferences:
    """The preferences of all `Prefer` fields of a request. Of one that comes twice the first counts (section 2)."""
    found: dict[str, str] = {}
    for name, value in _preferences(headers):
        found.setdefault(name, value)
    wait = found.get("wait", "")
    return Preferences(
        respond_async="respond-async" in found,
        wait=min(int(wait[:12]), WAIT_MAX_SECONDS) if re.fullmatch(r"[0-9]+", wait) else None,
    )


def _preferences(headers: Iterable[str]) -> Iterator[tuple[str, str]]:
    for header in headers:
        for element in _ELEMENT.findall(header):
            match = _PREFERENCE.match(element)
            if match:
                value = match[2] or ""
                yield match[1].lower(), re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
