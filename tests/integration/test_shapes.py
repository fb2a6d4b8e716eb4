"""Specs in the shapes that operators write, on a compute of its own (contract 11 C-01 to C-04)."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.integration.compute import Rig, connstr
from trio_compute.plan.catalog.passwords import matches

pytestmark = pytest.mark.postgres

PLAIN = "plain s3cret of the spec"


async def test_a_compute_starts_with_what_an_operator_writes(rig: Rig) -> None:
    """C-01 to C-04: URLs of safekeepers, a pageserver by keywords, plain passwords, which are not in the log."""
    config = rig.config(skip_pg_catalog_updates=False)
    spec: dict[str, Any] = config["spec"]
    pageserver = urlsplit(rig.addresses.pageserver)
    del spec["pageserver_connection_info"]
    spec["pageserver_connstring"] = f"host={pageserver.hostname} port={pageserver.port} keepalives_idle=60"
    spec["safekeeper_connstrings"] = [f"postgresql://postgres:@{place}" for place in spec["safekeeper_connstrings"]]
    spec["cluster"]["roles"] = [{"name": name, "encrypted_password": PLAIN} for name in ("cloud_admin", "clerk")]
    async with rig.compute(config) as child:
        await child.reach("running")
        with psycopg.connect(connstr(child.ports, "postgres")) as session:
            query = "SELECT rolname::text, rolpassword FROM pg_authid WHERE rolname IN ('cloud_admin', 'clerk')"
            stored = dict(session.execute(query).fetchall())
            shown = session.execute("SHOW neon.pageserver_connstring").fetchone()
        assert stored.keys() == {"clerk", "cloud_admin"}
        assert all(matches(verifier, PLAIN) for verifier in stored.values())
        assert shown == (spec["pageserver_connstring"],)
        await child.terminate("immediate")
    log = rig.log()
    assert "s3cret" not in log
    assert log.count("safekeepers are given as URLs") == 1
    assert log.count("is plain text in the spec") == 2
