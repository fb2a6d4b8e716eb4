"""pg_hba.conf and pg_ident.conf: where a line that includes another file must stand (contract 04 §7, F-17)."""

from __future__ import annotations

import re
from collections.abc import Iterator

FIRST_MAJOR_WITH_INCLUDES = 16

_PLAIN_PATH = re.compile(r"\A[A-Za-z0-9_./:+=-]+\Z")


def include_line(path: str) -> str:
    """Return the line that includes a file if it exists; a path that is not plain gets double quotes."""
    quoted = path if _PLAIN_PATH.match(path) else '"' + path.replace('"', '""') + '"'
    return f"include_if_exists {quoted}"


def with_line_first(text: str, line: str) -> str | None:
    """Return the text with a line before its first record, since the first match wins; None if the line is there."""
    if line in (existing.removesuffix("\r") for existing in text.split("\n")):
        return None
    before = 0
    for record in _logical_lines(text):
        if record.strip() and not record.lstrip().startswith("#"):
            break
        before += len(record)
    head = text[:before]
    separator = "" if not head or head.endswith("\n") else "\n"
    return f"{head}{separator}{line}\n{text[before:]}"


def _logical_lines(text: str) -> Iterator[str]:
    """Yield lines with what continues them: Postgres joins lines at a backslash, even those of a comment."""
    gathered = ""
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        gathered += line
        if not line.rstrip("\r\n").endswith("\\"):
            yield gathered
            gathered = ""
    if gathered:
        yield gathered
