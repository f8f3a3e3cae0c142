"""HTML in which nothing goes unescaped: text becomes markup in one place."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is HTML already. Made by `element` alone."""

    __slots__ = ()


VOID = frozenset({"link", "meta"})


def element(name: str, /, *children: str | None, **attributes: str | bool | None) -> Markup:
    """`<name attributes>children</name>`. Children and values are escaped, unless they are Markup; None is left out.

    Attributes are written as Python can say them: `class_`, `data_body`, `http_equiv`. True is an attribute without a
    value.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    # Browsers drop a line feed behind <pre>: this one, not the text's.
    inside = "".join(escaped(child) for child in children if child is not None)
    return Markup(f"<{name}{written}>{chr(10) if name == 'pre' else ''}{inside}</{name}>")


def document(*children: Markup) -> str:
    """A whole page."""
    return "<!doctype html>\n" + element("html", *children, lang="en")


def escaped(text: str) -> str:
    """As HTML; text that UTF-8 cannot say is made sayable."""
    return text if isinstance(text, Markup) else html.escape(text.encode(errors="replace").decode())


def _attribute(key: str, value: str | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(value)}"'
