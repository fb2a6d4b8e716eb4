"""Dumps that belong to the life of a compute: they end when it does, whatever their readers do (contract 06 §6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_compute.errors import NotFound, PostgresError, TimedOut
from trio_compute.services.life import Life

if TYPE_CHECKING:
    from trio_compute.postgres.schema_dump import SchemaDump

UTF8 = "UTF8"  # as Postgres writes it
# Postgres converts nothing then.
AS_IT_IS = "SQL_ASCII"


async def begin_schema_dump(life: Life, database: str) -> SchemaDump:
    """Return a dump that has begun to write; whoever takes it must close it.

    It is in UTF-8, unless something in the catalog cannot be converted: then it comes as it is (T-06). What the
    database sets for its sessions is undone if pg_dump fails with it, which it sets most of itself (T-07).

    Raises NotFound, TimedOut and other PostgresErrors if pg_dump fails before it has written anything, Ended.
    """
    dump, has_text = await _begun(life, database, UTF8)
    if has_text:
        return dump
    encoding = await life.host.database_encoding(database)
    if encoding is None:
        raise NotFound("database does not exist")
    options = await life.host.undoing_options(database)
    if encoding != UTF8 or options:
        dump, has_text = await _begun(life, database, UTF8 if encoding == UTF8 else AS_IT_IS, options)
    if has_text:
        return dump
    raise PostgresError("failed to execute pg_dump") from dump.failure


async def _begun(life: Life, database: str, encoding: str, options: str = "") -> tuple[SchemaDump, bool]:
    """Return a dump, and whether it has text; raise what ended it if that was a limit, or no dump at all."""
    dump = life.host.schema_dump(database, encoding, options)
    life.errands.begin(dump.run)
    has_text = False
    try:
        has_text = await dump.begin()
    finally:
        if not has_text:
            await dump.aclose()
    if not has_text and isinstance(dump.failure, TimedOut):
        raise dump.failure
    return dump, has_text
