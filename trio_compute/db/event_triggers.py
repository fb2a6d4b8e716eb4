"""Event triggers that stand still before Postgres 17, which has no switch for them (contract 11 T-02).

Sessions of ours count as replication, in which only those fire that are set to fire always or for replicas. These are
put to sleep inside our own transaction and woken at its end, so nobody else ever sees them asleep; commands about event
triggers set off none themselves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

_WAKEFUL = """\
SELECT e.oid::int8, e.evtowner::int8, pg_catalog.format('ALTER EVENT TRIGGER %I DISABLE', e.evtname),
       pg_catalog.format('ALTER EVENT TRIGGER %I ENABLE %s', e.evtname,
                         CASE WHEN e.evtenabled OPERATOR(pg_catalog.=) 'A' THEN 'ALWAYS' ELSE 'REPLICA' END)
FROM pg_catalog.pg_event_trigger e WHERE e.evtenabled OPERATOR(pg_catalog.=) ANY ('{A,R}'::pg_catalog."char"[])"""
# Nobody can add or wake one while we hold this.
_LOCK = "LOCK TABLE pg_catalog.pg_event_trigger IN SHARE ROW EXCLUSIVE MODE"


_STILL_THERE = """\
SELECT 1 FROM pg_catalog.pg_event_trigger e
WHERE e.oid OPERATOR(pg_catalog.=) %s AND e.evtowner OPERATOR(pg_catalog.=) %s"""

Rows = Callable[..., Awaitable[list[tuple[Any, ...]]]]
Sleeper = tuple[int, int, str]


async def silence(rows: Rows) -> list[Sleeper]:
    """Put them to sleep in the transaction that is open, and return them; `rows` runs a statement."""
    await rows(_LOCK)
    found = await rows(_WAKEFUL)
    for _, _, asleep, _ in found:
        await rows(asleep)
    return [(oid, owner, awake) for oid, owner, _, awake in found]


async def wake(rows: Rows, sleepers: list[Sleeper]) -> None:
    """Wake those that are still there and changed hands no more than before."""
    for oid, owner, awake in sleepers:
        if await rows(_STILL_THERE, oid, owner):
            await rows(awake)
