"""Dumps that belong to the life of a compute: they end when it does, whatever their readers do (contract 06 §6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_compute.errors import NotFound, PostgresError
from trio_compute.services.life import Life

if TYPE_CHECKING:
    from trio_compute.postgres.schema_dump import SchemaDump


async def begin_schema_dump(life: Life, database: str) -> SchemaDump:
    """Return a dump that has begun to write; whoever takes it must close it.

    Raises NotFound, PostgresError if pg_dump fails before it has written anything, Ended.
    """
    dump = life.host.schema_dump(database)
    life.errands.begin(dump.run)
    has_text = False
    try:
        has_text = await dump.begin()
    finally:
        if not has_text:
            await dump.aclose()
    if has_text:
        return dump
    if not await life.host.database_exists(database):
        raise NotFound("database does not exist")
    raise PostgresError("failed to execute pg_dump") from dump.failure
