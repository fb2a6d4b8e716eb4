"""What came of a reload, as Postgres itself tells it (contract 04 F-13)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.integration.bare_postgres import QUICK, BarePostgres
from trio_compute.db.reload import ReloadReport, reload_and_check

pytestmark = pytest.mark.postgres


@pytest.fixture(autouse=True)
def _as_before(server: BarePostgres) -> Iterator[None]:
    path = server.data / "postgresql.conf"
    text = path.read_text()
    yield
    path.write_text(text)
    hang_up(server)


def hang_up(server: BarePostgres) -> None:
    os.kill(int((server.data / "postmaster.pid").read_text().split()[0]), signal.SIGHUP)


async def reloaded_with(server: BarePostgres, line: str) -> ReloadReport:
    with (server.data / "postgresql.conf").open("a") as file:
        file.write(f"{line}\n")
    return await reload_and_check(server.url(), QUICK, lambda: hang_up(server))


async def test_a_sound_change_is_in_force_when_the_report_comes(server: BarePostgres) -> None:
    """F-13: a reload is only a signal; here it is waited for."""
    assert await reloaded_with(server, "work_mem = '7MB'") == ReloadReport()
    assert server.sql("SHOW work_mem") == [("7MB",)]


async def test_a_setting_that_only_a_start_takes_over_is_named(server: BarePostgres) -> None:
    """F-13, F-27."""
    assert await reloaded_with(server, "max_connections = 41") == ReloadReport(pending_restart=("max_connections",))


@pytest.mark.parametrize("line", ["work_mem = 'much'", "this is no setting", "nonsense = 1"])
async def test_what_postgres_cannot_read_is_told(line: str, server: BarePostgres) -> None:
    """F-13: a value, a line, a name."""
    report = await reloaded_with(server, line)
    assert len(report.errors) == 1
    assert report.pending_restart == ()
