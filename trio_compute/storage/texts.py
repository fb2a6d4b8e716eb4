"""Texts of other programs, cut to a length that fits into a log line or an answer."""

from __future__ import annotations

MAX_CHARACTERS = 2000


def brief(text: object) -> str:
    """Return a text of a peer on one line and of bounded length; peers may send megabytes."""
    whole = " ".join(str(text)[: MAX_CHARACTERS * 4].split())
    return whole if len(whole) <= MAX_CHARACTERS else whole[:MAX_CHARACTERS] + " […]"
