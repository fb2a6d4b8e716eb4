"""Text for a terminal: colours where somebody sees them, and nothing that could upset it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TextIO

RED, GREEN, YELLOW, DIM, BOLD = 31, 32, 33, 2, 1


def printable(text: str) -> str:
    """Return one line that cannot upset a terminal or the encoding of standard output."""
    plain = text.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


def say(text: str) -> None:
    """Write a line to standard output at once, whatever its encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


class Paint:
    """Colour text, or leave it as it is: colours are for terminals, and for nobody who set NO_COLOR."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self.is_on = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"

    def __call__(self, text: str, *styles: int) -> str:
        """Return the text in some styles."""
        if not self.is_on or not styles:
            return text
        return f"\x1b[{';'.join(map(str, styles))}m{text}\x1b[0m"
