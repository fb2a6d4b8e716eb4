"""The main job through the real command line, on real Postgres and the embedded storage."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.compute import Rig
from trio_compute.model.ids import Lsn

pytestmark = pytest.mark.postgres


async def end(child: Any, mode: str = "immediate") -> tuple[str | None, int]:
    answer = await child.terminate(mode)
    return answer["lsn"], await child.process.wait()


async def test_a_spec_becomes_a_running_postgres_and_terminate_answers_its_lsn(rig: Rig, sql: Any) -> None:
    async with rig.compute(rig.config(skip_pg_catalog_updates=False)) as child:
        status = await child.reach("running")
        assert (status["tenant"], status["error"]) == (rig.world.identity.tenant_id, None)
        assert await trio.to_thread.run_sync(sql, rig.connstr, "SHOW neon.compute_mode") == [("primary",)]
        rows = "SELECT datname::text FROM pg_database WHERE datname = 'neondb'"
        assert await trio.to_thread.run_sync(sql, rig.connstr, rows) == [("neondb",)]
        metrics = await child.metrics()
        assert len(metrics) == 13
        for name in ("sync_sk_check_ms", "basebackup_bytes", "basebackup_ms", "start_postgres_ms", "total_startup_ms"):
            assert metrics[name] > 0, name
        lsn, code = await end(child)
    assert code == 0
    assert lsn is not None
    assert Lsn.parse(lsn) > 0


async def test_data_survive_a_clean_restart(rig: Rig, sql: Any) -> None:
    async with rig.compute() as child:
        await child.reach("running")
        await trio.to_thread.run_sync(sql, rig.connstr, "CREATE TABLE kept AS SELECT 42 AS answer")
        lsn, _ = await end(child)
    assert await trio.to_thread.run_sync(rig.world.recover) == Lsn.parse(lsn or "")
    async with rig.compute() as child:
        await child.reach("running")
        assert await trio.to_thread.run_sync(sql, rig.connstr, "SELECT answer FROM kept") == [(42,)]
        # This time the safekeepers know the timeline: the fast path proves that they are in sync.
        assert (await child.metrics())["sync_safekeepers_ms"] == 0
        assert f"basebackup {rig.world.identity.tenant_id} {rig.world.identity.timeline_id} {lsn} --gzip" in (
            rig.world.pageserver.commands
        )
        await end(child)


async def test_a_pooled_compute_waits_empty_and_starts_on_configure(rig: Rig, sql: Any) -> None:
    config = rig.config()
    async with rig.compute({**config, "spec": None}, flags={"--lakebase-mode": "true"}) as child:
        assert (await child.reach("empty"))["tenant"] is None
        answer = await child.configure(config)
        assert (answer.status_code, answer.json()["status"]) == (200, "running")
        assert await trio.to_thread.run_sync(sql, rig.connstr, "SELECT 1") == [(1,)]
        assert (await child.metrics())["wait_for_spec_ms"] > 0
        assert (await end(child))[1] == 0


async def test_memory_of_a_pooled_compute_is_warmed_and_nothing_of_it_stays(rig: Rig) -> None:
    """D-46: the throw-away Postgres is reaped; vanilla Postgres lacks the neon library, which is only logged."""
    async with rig.compute({**rig.config(), "spec": None}) as child:
        await child.reach("empty")
        assert "warm_up: memory is not warmed" in rig.log()
        assert not rig.world.pgdata.with_name("pgdata.warmup").exists()
        assert (await end(child, "fast")) == (None, 0)


async def test_a_live_reconfiguration_is_visible_without_a_restart(rig: Rig, sql: Any) -> None:
    """Contract 04 §16: a new log_line_prefix after a reload, the same postmaster; odd values arrive unharmed (F-04)."""
    odd = "a'b\\c\nd"
    async with rig.compute() as child:
        await child.reach("running")
        pid = (rig.world.pgdata / "postmaster.pid").read_text().splitlines()[0]
        config = rig.config()
        config["spec"]["cluster"]["settings"] = [
            {"name": "log_line_prefix", "value": "%m new ", "vartype": "string"},
            {"name": "test.odd", "value": odd, "vartype": "string"},
        ]
        assert (await child.configure(config)).status_code == 200
        with trio.fail_after(10):
            while await trio.to_thread.run_sync(sql, rig.connstr, "SHOW log_line_prefix") != [("%m new ",)]:
                await trio.sleep(0.02)  # a reload has no completion to wait for
        assert await trio.to_thread.run_sync(sql, rig.connstr, "SHOW test.odd") == [(odd,)]
        assert (rig.world.pgdata / "postmaster.pid").read_text().splitlines()[0] == pid
        await end(child)


async def test_a_catalog_that_cannot_be_applied_is_said_and_can_be_mended(rig: Rig) -> None:
    """D-20, D-22: the text is real, the old spec stays, configure and terminate work from failed."""
    async with rig.compute() as child:
        await child.reach("running")
        bad, good = rig.config(skip_pg_catalog_updates=False), rig.config(skip_pg_catalog_updates=False)
        bad["spec"]["cluster"]["databases"] = [{"name": "shop", "owner": "nobody_at_all"}]
        answer = await child.configure(bad)
        assert answer.status_code == 500
        failure = answer.json()["failures"][0]
        assert failure["object"] == "database shop"
        assert (failure["sqlstate"], failure["phase"]) == ("42704", "CreateAndAlterDatabases")
        assert 'role "nobody_at_all" does not exist (SQLSTATE 42704)' in answer.json()["error"]
        assert (await child.status() or {})["status"] == "failed"
        assert (await child.configure(good)).json()["error"] is None
        assert (await end(child))[1] == 0


async def test_the_control_plane_can_bring_the_spec(rig: Rig) -> None:
    config = rig.config()
    rig.answers["dev-compute"] = {"status": "attached", **config}
    flags = {"--config": None, "--control-plane-uri": rig.addresses.control_plane + "/"}
    environ = {"NEON_CONTROL_PLANE_TOKEN": rig.world.control_plane_token}
    async with rig.compute(flags=flags, environ=environ) as child:
        await child.reach("running")
        await end(child)


async def test_sigterm_stops_in_order_and_exits_zero(rig: Rig) -> None:
    """Contract 02 §10.2: no final sync on this path."""
    async with rig.compute() as child:
        await child.reach("running")
        child.process.terminate()
        with trio.fail_after(10):
            assert await child.process.wait() == 0
    assert "database system is shut down" in rig.log()
    identity = rig.world.identity
    assert rig.world.safekeepers.members[0].lsn(f"{identity.tenant_id}/{identity.timeline_id}") is None


@pytest.mark.parametrize(("sig", "code"), [(signal.SIGINT, 0), (signal.SIGKILL, 1)])
async def test_postgres_that_ends_by_itself_ends_the_compute(rig: Rig, sig: signal.Signals, code: int) -> None:
    """Contract 02 §10.3."""
    async with rig.compute() as child:
        await child.reach("running")
        pid = int((rig.world.pgdata / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, sig)
        with trio.fail_after(10):
            assert await child.process.wait() == code
    assert "Postgres exited by itself" in rig.log()


async def test_a_fast_termination_keeps_answering(rig: Rig) -> None:
    """The linger keeps /status and /terminate (201) alive; SIGTERM ends it."""
    async with rig.compute() as child:
        await child.reach("running")
        first = await child.terminate("fast")
        assert (await child.status() or {})["status"] == "terminated"
        assert await child.terminate("fast") == first
        child.process.terminate()
        with trio.fail_after(5):
            assert await child.process.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start Postgres as another user")
async def test_root_runs_postgres_as_an_ordinary_user(rig: Rig) -> None:
    async with rig.compute() as child:
        await child.reach("running")
        uid, gid = rig.world.run_as.owner or (0, 0)
        pid = (rig.world.pgdata / "postmaster.pid").read_text().splitlines()[0]
        stat = Path(f"/proc/{pid}").stat()
        assert (stat.st_uid, stat.st_gid) == (uid, gid) != (0, 0)
        strangers = [path for path in rig.world.pgdata.rglob("*") if path.lstat().st_uid != uid]
        assert strangers == []
        assert rig.world.pgdata.stat().st_mode & 0o777 == 0o700
        await end(child)


async def test_no_secret_reaches_a_log_or_a_process_title(rig: Rig) -> None:
    """B-12, A-07: tokens and passwords of a whole life are looked for in the log, error bodies and process titles."""
    secret_password, secret_token = "0123456789abcdef0123456789abcdef", rig.world.storage_token()
    config = rig.config(skip_pg_catalog_updates=False)
    config["spec"]["cluster"]["roles"].append({"name": "keeper", "encrypted_password": secret_password})
    bodies = []
    environ = {"TRIO_COMPUTE_LOG": "debug"}
    async with rig.compute(config, environ=environ) as child:
        await child.reach("running")
        broken = {**config, "spec": {**config["spec"], "tenant_id": "zz", "storage_auth_token": secret_token}}
        bodies.append((await child.configure(broken)).text)
        bodies.append(str(await child.status()))
        titles = " ".join(rig.leftovers())
        await end(child)
    for secret in (secret_password, secret_token, rig.world.api_token(), config["spec"]["storage_auth_token"]):
        assert secret not in rig.log()
        assert secret not in titles
        assert all(secret not in body for body in bodies)
