"""What is in force on a running compute after it was started and reconfigured (contract 04 §6, §11, §16)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.compute import Rig
from trio_compute.embedded.compute_child import ComputeChild

pytestmark = pytest.mark.postgres

SWITCH = "SHOW neon.disable_logical_replication_subscribers"
LIFTED = "SHOW neon.max_cluster_size"


def managed(config: dict[str, Any], **settings: str) -> dict[str, Any]:
    """Return a configuration with managed settings of other names or values."""
    options = [
        {"name": name.replace("__", "."), "value": value, "vartype": "string"} for name, value in settings.items()
    ]
    cluster = {**config["spec"]["cluster"], "settings": options}
    return {**config, "spec": {**config["spec"], "cluster": cluster}}


async def shows(sql: Callable[[str, str], Any], rig: Rig, statement: str, value: str) -> None:
    """Wait until a setting has a value: a reload is not awaited everywhere, and Postgres tells nobody."""
    with trio.fail_after(10):
        while (found := await trio.to_thread.run_sync(sql, rig.connstr, statement)) != [(value,)]:
            assert found
            await trio.sleep(0.02)


async def settled(child: ComputeChild) -> None:
    """Wait until the start is done with the override: its migrations run on behind the status `running`."""
    await child.reach("running")
    with trio.fail_after(30):
        while not any(span.name == "migrations" and span.duration_seconds for span in await child.spans()):
            await trio.sleep(0.02)


async def test_a_catalog_that_fails_during_a_reconfiguration_puts_the_size_quota_back(rig: Rig, sql: Any) -> None:
    """F-11, F-12: the spec's value is in force again, and the override is empty; the failure names the object."""
    config = managed(rig.config(skip_pg_catalog_updates=False), neon__max_cluster_size="7")
    async with rig.compute(config) as child:
        await settled(child)
        await shows(sql, rig, LIFTED, "7")
        broken = managed(config, neon__max_cluster_size="8")
        broken["spec"]["cluster"]["databases"] = [{"name": "orphan", "owner": "nobody_at_all"}]
        answer = await child.configure(broken)
        assert answer.status_code == 500
        (failure,) = answer.json()["failures"]
        assert (failure["object"], failure["sqlstate"]) == ("database orphan", "42704")
        assert failure["statement"] == 'CREATE DATABASE "orphan" OWNER "nobody_at_all"'
        assert "could not create database orphan" in answer.json()["error"]
        await shows(sql, rig, LIFTED, "8")
        assert (rig.world.pgdata / "compute_ctl_temp_override.conf").read_bytes() == b""
        assert (await child.configure(config)).status_code == 200
        await shows(sql, rig, LIFTED, "7")


async def test_subscribers_run_after_a_start_and_after_a_reconfiguration_with_the_same_flag(rig: Rig, sql: Any) -> None:
    """F-09: every pass ends with an effective false."""
    config = rig.config(skip_pg_catalog_updates=False, drop_subscriptions_before_start=True)
    async with rig.compute(config) as child:
        await settled(child)
        text = (rig.world.pgdata / "postgresql.conf").read_text()
        assert "neon.disable_logical_replication_subscribers=true" in text
        await shows(sql, rig, SWITCH, "false")
        marker = "SELECT timeline_id FROM neon.drop_subscriptions_done"
        assert await trio.to_thread.run_sync(sql, rig.connstr, marker) == [(rig.world.identity.timeline_id,)]
        assert (await child.configure(config)).status_code == 200
        await shows(sql, rig, SWITCH, "false")


async def test_an_audit_level_that_is_raised_while_it_runs_waits_for_a_restart(rig: Rig, sql: Any) -> None:
    """F-20, K-27: it is told, the extension is left out, and nothing fails."""
    config = rig.config(skip_pg_catalog_updates=False)
    async with rig.compute(config) as child:
        await settled(child)
        raised = {**config, "spec": {**config["spec"], "audit_log_level": "Base"}}
        answer = await child.configure(raised)
        assert answer.status_code == 200, answer.text
        assert "audit_log_level" in answer.json()["restart_required"]
        assert answer.json()["pending_restart"] == ["shared_preload_libraries"]
        found = "SELECT count(*)::int FROM pg_extension WHERE extname LIKE 'pgaudit%'"
        assert await trio.to_thread.run_sync(sql, rig.connstr, found) == [(0,)]
        assert "audit level Base waits for a restart: library pgaudit is not loaded" in rig.log()


async def test_another_name_of_the_privileged_role_is_shown_by_postgres(rig: Rig, sql: Any) -> None:
    """§16, test_neon_superuser."""
    async with rig.compute(flags={"--privileged-role-name": "my_superuser"}) as child:
        await child.reach("running")
        shown = await trio.to_thread.run_sync(sql, rig.connstr, "SHOW neon.privileged_role_name")
        assert shown == [("my_superuser",)]


async def test_under_autoscaling_postgres_is_started_into_its_control_group(rig: Rig, public_tmp: Path) -> None:
    """§9, §16, D-42: the variable may be empty; a stand-in notes how it is called and runs the rest."""
    notes, program = public_tmp / "notes", public_tmp / "cgexec"
    notes.touch()
    notes.chmod(0o666)
    program.write_text(f'#!/bin/sh\necho "$1 $2 ${{3##*/}} $4" >> {notes}\nshift 2\nexec "$@"\n')
    program.chmod(0o755)
    environ = {"AUTOSCALING": "", "PATH": f"{public_tmp}:{os.environ['PATH']}"}
    async with rig.compute(environ=environ, flags={"--cgroup": "their-postgres"}) as child:
        await child.reach("running")
    lines = notes.read_text().splitlines()
    assert "-g memory:their-postgres postgres -D" in lines
    assert all(line.startswith("-g memory:their-postgres postgres") for line in lines)
