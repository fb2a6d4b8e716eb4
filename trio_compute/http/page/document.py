"""The status page as one document, and the headers that keep it from doing anything else (issue 5).

A browser runs the one script and applies the one style whose hashes the policy names, asks nobody but this server, and
takes no text for markup (trusted types). The document holds no data: it fetches them with the caller's token.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from msgspec import Struct

from trio_compute.http.page.drawing import svg

HERE = Path(__file__).parent
# One script in the end, in this order.
SCRIPTS = ("text.js", "panels.js", "waterfall.js", "page.js")


class Document(Struct, frozen=True):
    """Hold the bytes of the page and its content security policy."""

    body: bytes
    policy: str


@cache
def document() -> Document:
    """Return the page, put together at the first call."""
    script = "\n".join(map(_read, SCRIPTS))
    return combine(_read("index.html"), style=_read("style.css"), script=script, diagram=svg())


def combine(html: str, *, style: str, script: str, diagram: str) -> Document:
    """Put style, script and diagram into their places; raise ValueError when one of them would end too early."""
    for text, end in ((style, "</style"), (script, "</script"), (script, "<!--")):
        if end in text.lower() or "\r" in text:
            raise ValueError(f"a part of the page holds {end} or a carriage return")
    for place, text in (("{{diagram}}", diagram), ("{{style}}", style), ("{{script}}", script)):
        if html.count(place) != 1:
            raise ValueError(f"the page has not one place for {place}")
        html = html.replace(place, text)
    return Document(html.encode(), policy(style, script))


def policy(style: str, script: str) -> str:
    """Return the content security policy of a page with one inline style and one inline script."""
    rules = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "connect-src": "'self'",
        # The icon is written out in the page.
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _read(name: str) -> str:
    return (HERE / name).read_text("utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
