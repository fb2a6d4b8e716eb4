"""Dry runs: `trio-compute plan` and `POST /configure?dry_run=true` tell everything and change nothing (05 K-34)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from tests.integration.compute import Rig
from trio_compute.embedded.compute_child import ComputeChild
from trio_compute.embedded.dev import connstr

pytestmark = pytest.mark.postgres

HASH = "0123456789abcdef0123456789abcdef"
STATE = """\
SELECT array(SELECT (a.*)::text FROM pg_authid a ORDER BY oid),
       array(SELECT (d.oid, datname, datdba, datacl)::text FROM pg_database d ORDER BY oid),
       array(SELECT nspname::text FROM pg_namespace ORDER BY oid),
       array(SELECT extname::text FROM pg_extension ORDER BY oid),
       array(SELECT (setdatabase, setrole, setconfig)::text FROM pg_db_role_setting ORDER BY 1)"""


def wanted(rig: Rig, **changes: Any) -> dict[str, Any]:
    """Return a configuration with a new role, a new database, a changed setting and one that needs a restart."""
    config = rig.config(skip_pg_catalog_updates=False, **changes)
    cluster = config["spec"]["cluster"]
    cluster["roles"].append({"name": "clerk", "encrypted_password": HASH})
    cluster["databases"].append({"name": "shop", "owner": "clerk"})
    cluster["settings"] = [
        {"name": "work_mem", "value": "5MB", "vartype": "string"},
        {"name": "max_connections", "value": "77", "vartype": "integer"},
    ]
    return config


def plan(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trio_compute", "plan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def files_of(pgdata: Path) -> dict[str, bytes]:
    names = ("postgresql.conf", "postgresql.auto.conf", "compute_ctl_temp_override.conf", "pg_hba.conf")
    return {name: (pgdata / name).read_bytes() for name in names if (pgdata / name).exists()}


async def at_rest(child: ComputeChild) -> None:
    """Wait until the start has changed all that it changes: its migrations run on behind the status `running`."""
    await child.reach("running")
    with trio.fail_after(30):
        while not any(span.name == "migrations" and span.duration_seconds for span in await child.spans()):
            await trio.sleep(0.02)


async def dry_run(child: ComputeChild, rig: Rig, config: dict[str, Any], text: str = "true") -> httpx.Response:
    headers = {"authorization": f"Bearer {rig.world.api_token()}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=30) as client:
        return await client.post(f"{child.external_url}/configure", params={"dry_run": text}, json=config)


async def test_a_dry_run_tells_all_and_changes_nothing(rig: Rig, sql: Any) -> None:
    async with rig.compute(rig.config(skip_pg_catalog_updates=False)) as child:
        await at_rest(child)
        url = connstr(child.ports, "postgres")
        config = wanted(rig)
        before, files, spans = sql(url, STATE), files_of(rig.world.pgdata), len(await child.spans())
        answer = await dry_run(child, rig, config)
        assert answer.status_code == 200, answer.text
        preview = answer.json()
        done = {op["operation"] for phase in preview["phases"] for op in phase["operations"]}
        assert {"create role clerk", "create database shop"} <= done
        assert {"name": "work_mem", "old": None, "new": "5MB"} in preview["settings"]
        assert "max_connections" in preview["restart_required"]
        assert "+work_mem = '5MB'" in preview["configuration_diff"]
        assert HASH not in answer.text
        assert rig.world.storage_token() not in answer.text
        assert (await child.status() or {})["status"] == "running"
        assert sql(url, STATE) == before
        assert files_of(rig.world.pgdata) == files
        assert not [span for span in (await child.spans())[spans:] if span.name in {"reconfigure", "apply_spec_sql"}]

        applied = await child.configure(config)
        assert applied.status_code == 200
        assert applied.json()["pending_restart"] == ["max_connections"]
        again = (await dry_run(child, rig, config)).json()
        assert again["phases"] == []
        assert again["settings"] == []


async def test_the_command_shows_what_a_running_compute_would_do(rig: Rig, tmp_path: Path, sql: Any) -> None:
    async with rig.compute(rig.config(skip_pg_catalog_updates=False)) as child:
        await at_rest(child)
        url, file = connstr(child.ports, "postgres"), tmp_path / "wanted.json"
        file.write_bytes(msgspec.json.encode(wanted(rig)))
        before = sql(url, STATE)
        result = plan(file, "--connstr", url, "--pgdata", rig.world.pgdata)
        assert result.returncode == 0, result.stderr
        assert 'CREATE DATABASE "shop" OWNER "clerk"' in result.stdout
        assert "waits for a restart: max_connections" in result.stdout
        assert HASH not in result.stdout + result.stderr
        assert sql(url, STATE) == before
        preview = msgspec.json.decode(plan(file, "--connstr", url, "--pgdata", rig.world.pgdata, "--json").stdout)
        assert preview["restart_required"] == ["max_connections"]


async def test_what_cannot_be_planned_is_refused_as_configure_would(rig: Rig) -> None:
    async with rig.compute(rig.config(skip_pg_catalog_updates=False)) as child:
        await at_rest(child)
        assert (await dry_run(child, rig, wanted(rig, tenant_id="0" * 32))).status_code == 400
        assert (await dry_run(child, rig, wanted(rig), text="perhaps")).status_code == 400
        bad = wanted(rig)
        bad["spec"]["cluster"]["roles"].append({"name": "x", "encrypted_password": "SCRAM-SHA-256$plain"})
        answer = await dry_run(child, rig, bad)
        assert (answer.status_code, "SCRAM" in answer.text, "plain" in answer.text) == (400, True, False)


def test_without_a_server_the_plan_is_for_a_new_cluster() -> None:
    result = plan("tests/data/config_large.json")
    assert result.returncode == 0, result.stderr
    assert 'CREATE ROLE "orders_owner" INHERIT' in result.stdout
    assert "pg_stat_statements" in result.stdout
    assert "0f343b0931126a20f133d67c2b018a3b" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["tests/data/nothing.json"], 1, "cannot read tests/data/nothing.json"),
        (["tests/data/invalid-many-errors.json"], 1, "`trio-compute validate` tells all"),
        (["tests/data/config_pooled.json"], 1, "holds no spec"),
        (["tests/data/config_small.json", "--connstr", "nonsense"], 1, "neither a postgres:// URL nor keyword=value"),
        (["tests/data/config_small.json", "--connstr", "postgresql://u:hush@127.0.0.1:1/d"], 1, "refused"),
        (["tests/data/config_small.json", "--pgdata", "/nonexistent"], 1, "cannot read postgresql.conf"),
        ([], 2, "FILE"),
    ],
)
def test_errors_of_the_command_name_what_is_wrong(arguments: list[str], code: int, reason: str) -> None:
    result = plan(*arguments)
    assert result.returncode == code
    assert reason in result.stderr
    assert "hush" not in result.stderr
    assert "Traceback" not in result.stderr
