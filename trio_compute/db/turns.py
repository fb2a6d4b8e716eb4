"""What keeps two of our own requests from colliding: nothing in it can be held by a tenant (T-14)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

import psycopg
import trio

from trio_compute.db.target import Target

PAUSES_SECONDS = (0.02, 0.1)
_SERIALIZATION = frozenset({"40001", "40P01"})
# `tuple concurrently updated` has no code of its own.
_INTERNAL = "XX000"
_UNIQUE = "23505"

T = TypeVar("T")

_locks: WeakValueDictionary[tuple[str, ...], trio.Lock] = WeakValueDictionary()


@asynccontextmanager
async def in_turn(*subject: str) -> AsyncIterator[None]:
    """Let one request at a time work on a subject; the wait has no limit of its own."""
    lock = _locks.setdefault(subject, trio.Lock())
    async with lock:
        yield


def changing(target: Target) -> AbstractAsyncContextManager[None]:
    """Let one of us at a time change the catalog of a server: an apply, the migrations, an update of ours (K-14)."""
    return in_turn(target.host, str(target.port))


async def repeated(work: Callable[[], Awaitable[T]]) -> T:
    """Do what must be a whole transaction; where somebody else changed the same, do it again, three times in all."""
    for pause in PAUSES_SECONDS:
        try:
            return await work()
        except psycopg.Error as error:
            if not is_collision(error):
                raise
        await trio.sleep(pause)
    return await work()


def is_collision(error: psycopg.Error) -> bool:
    """Tell whether a statement failed only because another changed the same at the same moment."""
    if error.sqlstate == _UNIQUE:
        return error.diag.schema_name == "pg_catalog"
    return error.sqlstate in _SERIALIZATION or error.sqlstate == _INTERNAL
