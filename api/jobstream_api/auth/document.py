"""What the OpenAPI document says of authentication: the schemes, and which of them an operation takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import BaseRoute

from jobstream.caller import Scope
from jobstream_api.auth.gate import Rule, rule_of
from jobstream_api.auth.tickets import PARAMETER

SCHEMES: dict[str, Any] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`jsk_…`), or a token of the identity provider where one is configured",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key, for who prefers it"},
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": PARAMETER,
        "description": "A short-lived ticket for one job or one filter, for what cannot send headers",
    },
}


def security(scope: Scope | None, *, ticket: bool = False) -> list[dict[str, list[str]]]:
    """The security requirement of an operation: any one of these, with that scope."""
    roles = [] if scope is None else [scope.value]
    tickets: list[dict[str, list[str]]] = [{"ticket": []}] if ticket else []
    return [{"bearer": roles}, {"apiKey": roles}, *tickets]


def add_security(document: dict[str, Any], routes: Iterable[BaseRoute], *, tasks: Iterable[str]) -> None:
    """Describe the rules of the routes, and of the operations of these tasks."""
    document.setdefault("components", {})["securitySchemes"] = SCHEMES
    for context in iter_route_contexts(list(routes)):
        route = context.original_route
        if not isinstance(route, APIRoute) or context.path_format is None:
            continue
        operations = document["paths"].get(context.path_format, {})
        for rule in rules_of(route):
            for method in route.methods or ():
                if rule is not None and (operation := operations.get(method.lower())) is not None:
                    operation["security"] = security(rule.scope, ticket=rule.ticket)
    for task in tasks:
        document["paths"][f"/{task}"]["post"]["security"] = security(Scope.SUBMIT)
        result = document["paths"][f"/{task}/{{job_id}}"]
        result["get"]["security"] = security(Scope.READ)
        result["delete"]["security"] = security(Scope.CANCEL)


def rules_of(route: Any) -> list[Rule | None]:
    """The rules that a route declares: one, if all is well. None is that of a public route."""
    found = []
    for dependency in _dependencies(route.dependant):
        try:
            found.append(rule_of(dependency))
        except LookupError:
            continue
    return found


def _dependencies(dependant: Any) -> list[object]:
    return [call for each in dependant.dependencies for call in (each.call, *_dependencies(each))]
