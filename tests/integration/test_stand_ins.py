"""The wrapper around vanilla Postgres and the stand-in of the neon extension (E-09, contract 06 §13)."""

from __future__ import annotations

import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bare_postgres import BarePostgres, fresh
from tests.integration.compute import Rig
from tests.unit.builders import setting

pytestmark = pytest.mark.postgres

TENANT, TIMELINE = "a" * 32, "b" * 32
PSQL = '#!/bin/sh\necho "$PGOPTIONS $3:$5"\n'

FUNCTIONS = [
    "pg_cluster_size()",
    "backpressure_lsns()",
    "backpressure_throttling_time()",
    "local_cache_pages()",
    "neon_get_lfc_stats()",
    "approximate_working_set_size(boolean)",
    "approximate_working_set_size_seconds(integer)",
    "get_backend_perf_counters()",
    "get_perf_counters()",
    "get_prewarm_info()",
    "get_local_cache_state(integer)",
    "prewarm_local_cache(bytea,integer)",
]
VIEWS = {
    "local_cache": 7,
    "neon_lfc_stats": 2,
    "neon_stat_file_cache": 5,
    "neon_backend_perf_counters": 5,
    "neon_perf_counters": 3,
}


@pytest.mark.parametrize(
    "text",
    [
        "neon.safekeepers='h:1'\nneon.tenant_id='{tenant}'\nneon.timeline_id='{timeline}'\n",
        "neon.safekeepers = 'h:1'\nneon.tenant_id = '{tenant}'\nneon.timeline_id = '{timeline}'\n",
        "  neon.safekeepers  =\t'g#7:h:1' # c\n\tneon.tenant_id\t'{tenant}'\nneon.timeline_id {timeline} # d\n",
        "neon.safekeepers = 'old:9'\nneon.tenant_id={tenant}\nneon.safekeepers = 'h:1'\nneon.timeline_id={timeline}\n",
    ],
    ids=["no blanks", "blanks", "generation and comments", "the last one counts"],
)
def test_the_wrapper_reads_settings_however_they_are_written(text: str, tmp_path: Path) -> None:
    """E-09: 4 ways to write 3 settings."""
    (tmp_path / "psql").write_text(PSQL)
    (tmp_path / "psql").chmod(0o755)
    (tmp_path / "postgresql.conf").write_text(text.format(tenant=TENANT, timeline=TIMELINE))
    script = resources.files("trio_compute.embedded").joinpath("wrapper.sh").read_text()
    wrapper = tmp_path / "postgres"
    wrapper.write_text(script.replace("@REAL_BIN@", f"'{tmp_path}'"))
    asked = subprocess.run(
        ["sh", str(wrapper), "--sync-safekeepers"],
        env={"PGDATA": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert asked.stdout == f"-c timeline_id={TIMELINE} tenant_id={TENANT} h:1\n", asked.stderr


async def test_a_spec_of_settings_only_starts_and_ends_with_a_sync(rig: Rig) -> None:
    """E-09: ids, pageserver and safekeepers are in cluster.settings alone."""
    config = rig.config()
    spec: dict[str, Any] = config["spec"]
    names = ("tenant_id", "timeline_id", "safekeeper_connstrings", "pageserver_connection_info")
    tenant, timeline, safekeepers, _ = (spec.pop(name) for name in names)
    spec["cluster"]["settings"] = [
        setting("neon.tenant_id", tenant),
        setting("neon.timeline_id", timeline),
        setting("neon.safekeepers", ",".join(safekeepers)),
        setting("neon.pageserver_connstring", rig.addresses.pageserver),
    ]
    async with rig.compute(config) as child:
        await child.reach("running")
        answer = await child.terminate("immediate")
        assert await child.process.wait() == 0
    key = f"{tenant}/{timeline}"
    assert [str(member.lsn(key)) for member in rig.world.safekeepers.members] == [answer["lsn"]] * 3


def test_the_extension_has_every_object_of_the_real_one(server: BarePostgres) -> None:
    """E-09: 12 functions and 5 views, in a schema that it is moved to; away and there again by down- and upgrades."""
    name = fresh("stand_in")
    server.do("CREATE DATABASE {}", name)
    server.sql(
        "CREATE EXTENSION neon; CREATE SCHEMA elsewhere; ALTER EXTENSION neon SET SCHEMA elsewhere", database=name
    )
    for step in (None, "1.5", "1.1", "1.0", "1.6"):
        if step is not None:
            server.sql(f"ALTER EXTENSION neon UPDATE TO '{step}'", database=name)
    for function in FUNCTIONS:
        assert server.sql("SELECT to_regprocedure(%s) IS NOT NULL", f"elsewhere.{function}", database=name) == [(True,)]
    for view, columns in VIEWS.items():
        found = server.sql(f"SELECT * FROM (VALUES (1)) v LEFT JOIN elsewhere.{view} ON true", database=name)
        assert {len(row) - 1 for row in found} == {columns}, view
    server.do("DROP DATABASE {}", name)


def test_who_monitors_may_read_what_is_open_to_him(server: BarePostgres) -> None:
    """E-09: pg_monitor has 3 grants; the counters are granted by us, in lakebase mode."""
    name, role = fresh("stand_in"), fresh("monitor")
    server.do("CREATE DATABASE {}", name)
    server.do("CREATE ROLE {} LOGIN IN ROLE pg_monitor", role)
    server.sql("CREATE EXTENSION neon", database=name)
    may = "SELECT has_table_privilege(%s, 'neon_stat_file_cache', 'SELECT'), "
    may += "has_function_privilege(%s, 'approximate_working_set_size(boolean)', 'EXECUTE'), "
    may += "has_function_privilege(%s, 'approximate_working_set_size_seconds(integer)', 'EXECUTE'), "
    may += "has_table_privilege(%s, 'neon_perf_counters', 'SELECT'), "
    may += "has_function_privilege(%s, 'get_perf_counters()', 'EXECUTE')"
    assert server.sql(may, *[role] * 5, database=name) == [(True, True, True, False, False)]
    server.do("DROP DATABASE {}", name)
    server.do("DROP ROLE {}", role)
