"""Install one extension at one version, or bring it there (contract 06 §8, R-14; T-02, T-14, T-18)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial

import psycopg
import trio
from msgspec import Struct

from trio_compute.db.carried_text import escaped
from trio_compute.db.maintenance import Connection
from trio_compute.db.request_session import open_request_session
from trio_compute.db.turns import in_turn, repeated
from trio_compute.db.verdict import verdict
from trio_compute.deadlines import Deadlines
from trio_compute.errors import Conflicting, NotFound, SqlFailed
from trio_compute.plan import extension_script as plan
from trio_compute.telemetry.logging import get_logger

POLL_SECONDS = 0.02
# A file that an extension that is available needs, its library for instance, is missing.
_FILE_MISSING = "58P01"

log = get_logger("extensions")


async def install_extension(connstr: str, database: str, name: str, version: str, deadlines: Deadlines) -> bool:
    """Bring an extension of a database to a version; return whether anything had to be done.

    Raises NotFound for an unknown database and an extension that is not available, Conflicting for all else that is
    not ours to mend, and other PostgresErrors.
    """
    try:
        turn = in_turn(connstr, database, "extension", name)
        async with open_request_session(
            connstr, "install_extension", deadlines, database=database, turn=turn
        ) as connection:
            is_done = await repeated(partial(_install, connection, name, version, deadlines))
    except SqlFailed as error:
        if error.sqlstate == _FILE_MISSING:
            raise NotFound(str(error)) from None
        raise verdict(error) from None
    if is_done:
        log.info("extension installed", extension=name, version=version, database=database)
    return is_done


class _Task(Struct, frozen=True):
    """Hold what is the same in all ways: who is installed, what it requires, how long to wait for others."""

    name: str
    required: tuple[str, ...]
    patience_seconds: float


async def _install(connection: Connection, name: str, version: str, deadlines: Deadlines) -> bool:
    async with connection.changes():
        [found] = await connection.rows(plan.FACTS, name, version)
        facts = plan.Facts(*found)
        if facts.version == version:
            return False
        if facts.version is None and not facts.is_available:
            raise NotFound(f"extension {name!r} is not available")
        task = _Task(name, tuple(await _required(connection, name, facts)), deadlines.extension_writers)
        schemas = [schema for (schema,) in await connection.rows(plan.SCHEMAS_OF, list(task.required))]
        workshop = plan.WORKSHOP_PREFIX + secrets.token_hex(12)
        *others, last = plan.ways_to(name, version, facts, workshop, schemas)
        for way in others:
            if await _is_supported(connection, task, way):
                return True
        await _go(connection, task, last)
    return True


async def _required(connection: Connection, name: str, facts: plan.Facts) -> list[str]:
    required = [each for (each,) in await connection.rows(plan.REQUIRED, name)]
    if facts.will_be_relocatable is not None or not facts.is_available:
        return required
    # Postgres does not list the version, because it is yet to be downloaded.
    [(control_file,)] = await connection.rows(plan.CONTROL_FILE, name)
    if control_file is not None:
        return [*required, *plan.required_by(control_file)]
    return [each for (each,) in await connection.rows(plan.INSTALLED)]


async def _is_supported(connection: Connection, task: _Task, way: plan.Way) -> bool:
    """Go one way and return True, or undo it and return False if Postgres says that it does not support it."""
    try:
        async with connection.transaction():
            await _go(connection, task, way)
    except psycopg.errors.FeatureNotSupported:
        return False
    return True


async def _go(connection: Connection, task: _Task, way: plan.Way) -> None:
    for statement in way.before:
        await connection.rows(statement)
    if way.shared:
        await connection.rows(plan.LOCK_MAKERS)
        await _wait_for_writers(connection, way.shared, task.patience_seconds)
    await _require_nothing_foreign(connection, task, way)
    for statement in (way.script, *way.after):
        await connection.rows(statement)


async def _require_nothing_foreign(connection: Connection, task: _Task, way: plan.Way) -> None:
    """Raise Conflicting if the script would find, or set off, what a tenant has made."""
    found = await connection.rows(plan.FOREIGN_OBJECTS, list(way.watched))
    found += await connection.rows(plan.FOREIGN_MEMBERS, [task.name, *task.required])
    names = list(dict.fromkeys(escaped(text) for (text,) in found))
    if names:
        more = ", …" if len(names) > plan.MOST_NAMED else ""
        raise Conflicting(
            f"the script of extension {task.name!r} would run as superuser and find what is not a superuser's: "
            f"{', '.join(names[: plan.MOST_NAMED])}{more}; move it to another schema, or drop it"
        )


async def _wait_for_writers(connection: Connection, schemas: Sequence[str], patience_seconds: float) -> None:
    """Wait until nobody can commit any more what he made before we locked; raise Conflicting if that takes long."""
    first = dict(await connection.rows(plan.OPEN_WRITERS))
    remaining = first
    with trio.move_on_after(patience_seconds):
        while remaining:
            await trio.sleep(POLL_SECONDS)
            await connection.rows(plan.LOOK_ANEW)
            now = dict(await connection.rows(plan.OPEN_WRITERS))
            remaining = {xid: who for xid, who in first.items() if xid in now}
    if remaining:
        places, who = ", ".join(map(escaped, schemas)), "; ".join(escaped(text) for text in remaining.values())
        raise Conflicting(f"who may be making something in schema {places} has not committed yet: {who}")
