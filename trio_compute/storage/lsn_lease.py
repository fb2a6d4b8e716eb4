"""Ask pageservers not to collect an LSN for a while, over either transport (contract 07 §8)."""

from __future__ import annotations

import re

import trio

from trio_compute.db.target import Target
from trio_compute.errors import StorageError
from trio_compute.model.spec import PageserverProtocol
from trio_compute.plan.lease import LeaseTarget, LeaseTerms, earliest_expiry, lease_command, lease_targets
from trio_compute.storage.texts import brief, text_rows

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0

_MILLISECONDS = re.compile(r"\A[0-9]{1,18}\Z")


async def request_lease(
    terms: LeaseTerms, *, connect_seconds: float = CONNECT_SECONDS, answer_seconds: float = ANSWER_SECONDS
) -> float | None:
    """Ask every pageserver of every shard, one after another; return the earliest end, None if one of them refuses.

    The time is in Unix seconds. Raises SpecError if the terms cannot work, StorageError if a pageserver fails.
    """
    if terms.pageservers.prefer_protocol is PageserverProtocol.GRPC:
        from trio_compute.storage.grpc_pageserver import lease_over_grpc as lease
    else:
        lease = lease_over_libpq
    answers = [
        await lease(terms, target, connect_seconds=connect_seconds, answer_seconds=answer_seconds)
        for target in lease_targets(terms)
    ]
    return earliest_expiry(answers)


async def lease_over_libpq(
    terms: LeaseTerms, target: LeaseTarget, *, connect_seconds: float, answer_seconds: float
) -> float | None:
    """Ask one pageserver; return the lease's end in Unix seconds, None if refused; raise SpecError, StorageError."""
    import psycopg

    from trio_compute.db.connection import ConnectFailed, open_connection

    address = Target.parse(target.url)
    if terms.token is not None:
        address = address.replace(password=terms.token)
    rows: list[list[str | None]] = []
    try:
        async with open_connection(address, connect_timeout_seconds=connect_seconds) as connection:
            connection.cancel_seconds = 0.0  # a lease that is not waited for harms nobody
            with trio.fail_after(answer_seconds):
                cursor = await connection.execute(lease_command(terms, target).encode())
            rows = text_rows(cursor.pgresult, peer="pageserver")
    except ConnectFailed as error:
        raise StorageError(f"cannot connect to pageserver: {brief(error)}") from None
    except psycopg.Error as error:
        raise StorageError(f"pageserver: {brief(error)}") from None
    except trio.TooSlowError:
        raise StorageError(f"pageserver did not answer within {answer_seconds:g} s") from None
    return _expiry(rows)


def _expiry(rows: list[list[str | None]]) -> float | None:
    """Return what the one row says: Unix milliseconds as text, or NULL for a refusal."""
    if len(rows) != 1 or len(rows[0]) != 1:
        raise StorageError(f"pageserver answered a lease request with {len(rows)} rows")
    value = rows[0][0]
    if value is None:
        return None
    if _MILLISECONDS.match(value) is None:
        raise StorageError(f"pageserver answered a lease request with {brief(value)[:80]!r}")
    return int(value) / 1000
