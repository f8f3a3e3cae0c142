"""Caller: who asks, for which tenant, and what they may do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

TENANT = re.compile(r"[!-~]{1,128}\Z")
"""A tenant's name: visible ASCII without spaces."""


class Scope(StrEnum):
    """What a caller may do; `docs/security.md` says what each of them opens."""

    SUBMIT = "submit"
    READ = "read"
    CANCEL = "cancel"
    WEBHOOKS = "webhooks"
    """Say who is told of the ends of all the tenant's jobs."""
    METRICS = "metrics"
    """Read `/metrics`: numbers of all tenants together."""
    ADMIN = "admin"
    """All of the others, for the jobs of every tenant."""


@dataclass(frozen=True)
class Caller:
    """Who asks. Raises ValueError for one that would see the jobs of every tenant and is no admin."""

    tenant: str | None
    """The owner of what is submitted; None: of nobody."""
    scopes: frozenset[Scope]
    key_id: str | None = None
    """Which API key it was."""
    ticket: bool = False
    """Came with a ticket, which the route has compared with what is asked for."""

    def __post_init__(self) -> None:
        if self.tenant is not None and not TENANT.match(self.tenant):
            raise ValueError("a tenant's name is 1 to 128 visible ASCII characters, without spaces")
        if self.tenant is None and not self.ticket and Scope.ADMIN not in self.scopes:
            raise ValueError("a caller without a tenant sees the jobs of all of them, so it must be an admin")

    def may(self, scope: Scope) -> bool:
        """True when it has the scope, or is an admin."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def sees(self) -> str | None:
        """The owner whose jobs it sees and touches, as the queue's functions take it. None: the jobs of all."""
        return None if Scope.ADMIN in self.scopes else self.tenant


ANYBODY = Caller(tenant=None, scopes=frozenset({Scope.ADMIN}))
"""The caller of a service that asks nobody who they are."""
