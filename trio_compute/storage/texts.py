"""Texts of other programs, cut to a length that fits into a log line or an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_compute.errors import StorageError
from trio_compute.telemetry.redaction import redact

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

MAX_CHARACTERS = 2000


def brief(text: object) -> str:
    """Return a text of a peer on one line, of bounded length and without secrets; peers may send megabytes."""
    given = str(text)
    # Secrets go before the cut: half of one would not be recognized any more by whoever redacts the result.
    whole = " ".join(redact(given[: MAX_CHARACTERS * 4]).split())
    if len(given) > MAX_CHARACTERS * 4:
        return whole[:-MAX_CHARACTERS][:MAX_CHARACTERS] + " […]"
    return whole if len(whole) <= MAX_CHARACTERS else whole[:MAX_CHARACTERS] + " […]"


def text_rows(result: PGresult | None, *, peer: str) -> list[list[str | None]]:
    """Return the rows of an answer as the peer wrote them; raise StorageError if it is something else than rows.

    psycopg's cursors would convert them to whatever types the peer names, with as many kinds of errors.
    """
    if result is None or not result.nfields:
        raise StorageError(f"{peer} answered with something else than rows")
    columns = range(result.nfields)
    return [[_text(result.get_value(row, column)) for column in columns] for row in range(result.ntuples)]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
