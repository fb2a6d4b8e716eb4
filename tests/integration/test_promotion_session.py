"""What a promotion asks of a server before it promotes it (contract 08 §6.2)."""

from __future__ import annotations

import pytest

from tests.integration.bare_postgres import QUICK, BarePostgres
from trio_compute.db.promotion import open_promotion_session
from trio_compute.errors import PostgresError

pytestmark = pytest.mark.postgres


async def test_a_reload_is_over_once_the_setting_has_its_value(server: BarePostgres) -> None:
    """P-07."""
    async with open_promotion_session(server.url(), QUICK) as session:
        await session.override("cursor_tuple_fraction", "0.25")
        try:
            await session.reload("cursor_tuple_fraction", "0.25")
            assert server.sql("SHOW cursor_tuple_fraction") == [("0.25",)]
        finally:
            server.sql("ALTER SYSTEM RESET cursor_tuple_fraction")
            server.sql("SELECT pg_reload_conf()")


@pytest.mark.slow
async def test_a_reload_that_changes_nothing_is_an_error(server: BarePostgres) -> None:
    """P-07: nothing checked that it took effect before `pg_promote`."""
    async with open_promotion_session(server.url(), QUICK) as session:
        with pytest.raises(PostgresError, match="cursor_tuple_fraction did not take effect within 5 s"):
            await session.reload("cursor_tuple_fraction", "0.75")
