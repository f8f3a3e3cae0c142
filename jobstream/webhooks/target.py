"""Target: a URL that a client gave for being called back, judged before it is stored."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

from jobstream.egress import AddressRefused, EgressPolicy
from jobstream.errors import FieldError, InvalidParameter

URL_LENGTH = 2048
RESOLVE_SECONDS = 5.0
FRESH_SECONDS = 30.0
HOSTS_REMEMBERED = 1_000


def wrong_target(url: str) -> str | None:
    """Why nothing can be sent to this URL, without a look at where it leads; None: nothing is wrong."""
    if len(url) > URL_LENGTH:
        return f"the URL is longer than {URL_LENGTH} characters"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"not a URL: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "not an http or https URL"
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "a URL is ASCII without spaces; write host names as in DNS (xn--…), and the rest in percent signs"
    if "@" in parts.netloc:
        return "a URL with a user or password is not taken: messages are signed instead"
    return None


class Targets:
    """Judges URLs; remembers for a while where hosts led. What it lets pass is judged again when it is called."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy
        self._known: dict[tuple[str, int], tuple[float, str | None]] = {}

    async def check(self, url: str, *, option: str) -> None:
        """Raises InvalidParameter, its one error at `/{option}`, for a URL that may not be called.

        A name that cannot be resolved for the moment passes: it may be by the time when it is needed.
        """
        why = wrong_target(url)
        if why is None:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
            why = await self._judge(host, port)
        if why is not None:
            raise InvalidParameter(f"{option}: {why}", errors=[FieldError(pointer=f"/{option}", detail=why)])

    async def _judge(self, host: str, port: int) -> str | None:
        now = time.monotonic()
        known = self._known.get((host, port))
        if known is not None and now - known[0] < FRESH_SECONDS:
            return known[1]
        why = None
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                await self._policy.resolve(host, port)
        except AddressRefused as error:
            why = error.detail
        except (OSError, TimeoutError):
            return None
        if len(self._known) >= HOSTS_REMEMBERED:
            self._known.clear()
        self._known[host, port] = now, why
        return why
