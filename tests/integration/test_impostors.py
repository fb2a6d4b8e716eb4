"""Who calls himself walproposer and says that he has stored everything (T-19)."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import psycopg
import pytest
import trio

from tests.integration.compute import Rig
from tests.integration.dev_process import descendants, kill_tree, running_dev
from tests.integration.fleet import POLL_SECONDS, Fleet, Member
from tests.integration.impostor import Attack, Impostor, lying
from trio_compute.embedded.world import base_settings

pytestmark = pytest.mark.postgres

TENANT = "SET synchronous_commit = local; CREATE ROLE tenant LOGIN REPLICATION CREATEROLE CREATEDB IN ROLE pg_monitor"


def a_physical_receiver(port: int, stack: ExitStack) -> Impostor:
    impostor = Impostor(stack, port, "tenant", "walproposer")
    impostor.receive_physical()
    return impostor


def one_in_capital_letters(port: int, stack: ExitStack) -> Impostor:
    impostor = Impostor(stack, port, "tenant", "WalProposer")
    impostor.receive_physical()
    return impostor


def a_physical_receiver_with_a_database(port: int, stack: ExitStack) -> Impostor:
    impostor = Impostor(stack, port, "tenant", "walproposer", database="postgres")
    impostor.receive_physical()
    return impostor


def a_logical_receiver_that_changes_its_name(port: int, stack: ExitStack) -> Impostor:
    impostor = Impostor(stack, port, "tenant", "innocent", database="postgres")
    impostor.query("SET application_name = 'walproposer'")
    impostor.receive_logical("innocent")
    return impostor


def a_receiver_named_by_its_role(port: int, stack: ExitStack) -> Impostor:
    setting = "ALTER ROLE tenant SET application_name = 'walproposer'"
    Impostor(stack, port, "tenant", database="postgres").query(f"SET synchronous_commit = local; {setting}")
    impostor = Impostor(stack, port, "tenant", database="postgres")
    impostor.receive_physical()
    return impostor


def an_honest_receiver(port: int, stack: ExitStack) -> Impostor:
    honest = Impostor(stack, port, "tenant", "pg_receivewal")
    honest.receive_physical()
    return honest


ATTACKS: dict[str, list[Attack]] = {
    "physical": [a_physical_receiver],
    "capital letters": [one_in_capital_letters],
    "with a database": [a_physical_receiver_with_a_database],
    "logical": [a_logical_receiver_that_changes_its_name],
    "named by its role": [a_receiver_named_by_its_role],
    "several": [a_physical_receiver] * 4,
}


@pytest.fixture
def fleet(rig: Rig) -> Fleet:
    return Fleet(rig.world, rig.addresses)


@asynccontextmanager
async def unheard_primary(fleet: Fleet) -> AsyncIterator[Member]:
    """Run a primary that makes commits wait for a receiver; whether there is one is the test's business."""
    port = fleet.ports["primary"].postgres
    config = fleet.world.config(fleet.addresses, base_settings(port), durable=True)
    config["spec"]["skip_pg_catalog_updates"] = True
    async with fleet.compute_with(config) as primary:
        await primary.sql(TENANT)
        yield primary


@pytest.mark.parametrize("name", list(ATTACKS))
async def test_what_an_impostor_acknowledged_before_we_came_survives_a_kill(name: str, fleet: Fleet) -> None:
    """T-19: nobody but the impostor has received anything; 1 acknowledged row of 1 is there after kill −9."""
    port = fleet.ports["primary"].postgres
    async with unheard_primary(fleet) as primary:
        with lying(port, *ATTACKS[name]):
            with trio.fail_after(20):
                await primary.sql("CREATE TABLE kept AS SELECT 1 AS number")
            await primary.kill()
    async with fleet.world.open_receiver(port), fleet.compute() as primary:
        assert await primary.sql("SELECT number FROM kept") == [(1,)]
        await primary.end()


async def test_an_impostor_is_ended_at_once_and_told(fleet: Fleet) -> None:
    """T-19: in each of the 6 disguises it is hung up on within 5 seconds, and a line names its role."""
    port, said = fleet.ports["primary"].postgres, list[str]()
    async with unheard_primary(fleet) as primary, fleet.world.open_receiver(port, say=said.append) as receiver:
        with trio.fail_after(20):
            await receiver.connected.wait()
        for number, attacks in enumerate(ATTACKS.values(), 1):
            with lying(port, *attacks) as lies, trio.fail_after(5):
                await trio.to_thread.run_sync(lies.ended.wait, abandon_on_cancel=True)
            assert "57P01" in lies.words[0] or "reset" in lies.words[0] or "hung up" in lies.words[0]
            with trio.fail_after(5):
                while len(said) < number:
                    await trio.sleep(POLL_SECONDS)
        assert all("ended a receiver of role 'tenant'" in line for line in said)
        await primary.sql("CREATE TABLE kept AS SELECT 1 AS number")
        await primary.end()


async def test_a_lie_beside_our_receiver_counts_for_nothing(fleet: Fleet) -> None:
    """T-19: after 5 lies about far-away WAL a commit still waits for us, and for nobody else."""
    port = fleet.ports["primary"].postgres
    async with unheard_primary(fleet) as primary:
        async with fleet.world.open_receiver(port) as receiver:
            await receiver.connected.wait()
            await primary.sql("CREATE TABLE kept (number int)")
            with lying(port, *ATTACKS["several"], a_logical_receiver_that_changes_its_name) as lies, trio.fail_after(5):
                while len(lies.words) < 5:
                    await trio.sleep(POLL_SECONDS)
        acknowledged = trio.Event()

        async def commit() -> None:
            await primary.sql("INSERT INTO kept VALUES (1)")
            acknowledged.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            with trio.fail_after(10):
                while await primary.sql(waiting) == [(0,)]:
                    await trio.sleep(POLL_SECONDS)
            assert not acknowledged.is_set()
            async with fleet.world.open_receiver(port):
                with trio.fail_after(10):
                    await acknowledged.wait()
                await primary.end()


async def test_a_receiver_of_another_name_and_a_replica_are_left_alone(fleet: Fleet) -> None:
    """T-19: 2 receivers that claim nothing stream on while an impostor is ended beside them."""
    ports = [fleet.ports[name].postgres for name in ("primary", "replica")]
    async with fleet.world.open_receiver(*ports) as receiver, fleet.compute() as primary:
        await receiver.connected.wait()
        await primary.sql(TENANT)
        async with fleet.compute(fleet.world.endpoint("replica", "Replica")) as replica:
            with lying(ports[0], an_honest_receiver) as unmolested:
                with lying(ports[0], a_physical_receiver) as lies, trio.fail_after(5):
                    await trio.to_thread.run_sync(lies.ended.wait, abandon_on_cancel=True)
                await primary.sql("CREATE TABLE kept AS SELECT 1 AS number")
                await replica.replayed(await primary.lsn())
            assert unmolested.words == []
            await replica.end()
        await primary.end()


async def test_nobody_keeps_our_receiver_out(fleet: Fleet) -> None:
    """T-19: its slot taken, or all 10 places of walsenders, it gets in within 10 seconds, and commits return."""
    port, said = fleet.ports["primary"].postgres, list[str]()
    async with unheard_primary(fleet) as primary:
        stack = ExitStack()
        squatter = Impostor(stack, port, "tenant", "innocent")
        squatter.query("CREATE_REPLICATION_SLOT wal_proposer_slot PHYSICAL RESERVE_WAL")
        squatter.receive_physical("wal_proposer_slot")
        for number in range(9):
            Impostor(stack, port, "tenant", f"innocent {number}")
        async with fleet.world.open_receiver(port, say=said.append) as receiver:
            with trio.fail_after(10):
                await receiver.connected.wait()
            await primary.sql("CREATE TABLE kept AS SELECT 1 AS number")
            await primary.end()
        stack.close()
    assert len(said) == 10, said


async def test_no_tenant_can_end_our_receiver_or_drop_its_slot(fleet: Fleet) -> None:
    """T-19: with pg_signal_backend, and with REPLICATION, both are refused."""
    port = fleet.ports["primary"].postgres
    async with fleet.world.open_receiver(port) as receiver, fleet.compute() as primary:
        await receiver.connected.wait()
        await primary.sql(f"{TENANT}; GRANT pg_signal_backend TO tenant")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await primary.sql("SET ROLE tenant; SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        with pytest.raises(psycopg.errors.ObjectInUse):
            await primary.sql("SET ROLE tenant; SELECT pg_drop_replication_slot('wal_proposer_slot')")
        with pytest.raises(psycopg.errors.CantChangeRuntimeParam):
            await primary.sql("SET ROLE tenant; ALTER ROLE tenant SET synchronous_standby_names = ''")
        await primary.end()


async def test_a_replica_that_was_promoted_keeps_what_an_impostor_acknowledged(fleet: Fleet) -> None:
    """T-19: nobody receives from the new primary but the impostor; 2 rows of 2 are there after kill −9."""
    primary_port, replica_port = (fleet.ports[name].postgres for name in ("primary", "replica"))
    async with fleet.world.open_receiver(primary_port) as receiver, fleet.compute() as primary:
        await receiver.connected.wait()
        await primary.sql(TENANT)
        await primary.sql("CREATE TABLE handed AS SELECT 1 AS number")
        async with fleet.compute(fleet.world.endpoint("replica", "Replica")) as replica:
            end = await primary.end()
            assert end is not None
            await replica.replayed(end)
            await replica.sql("ALTER SYSTEM SET synchronous_standby_names = walproposer")
            await replica.sql("SELECT pg_reload_conf()")
            assert await replica.sql("SELECT pg_promote()") == [(True,)]
            with lying(replica_port, a_physical_receiver):
                with trio.fail_after(20):
                    await replica.sql("INSERT INTO handed VALUES (2)")
                await replica.kill()
    async with fleet.world.open_receiver(primary_port), fleet.compute() as primary:
        assert await primary.sql("SELECT number FROM handed ORDER BY 1") == [(1,), (2,)]
        await primary.end()


@pytest.mark.parametrize("pgdata_is_lost", [False, True])
def test_what_was_acknowledged_after_dev_died_alone_is_there(
    public_tmp: Path, major: int, pgdata_is_lost: bool
) -> None:
    """T-19: dev is killed, its Postgres goes on with an impostor; 1 row of 1 is there, data directory or not."""
    data = public_tmp / "world"
    with running_dev(data, "--postgres", str(major)) as dev:
        with psycopg.connect(dev.connstr(), autocommit=True) as connection:
            connection.execute("SET synchronous_commit = local")
            connection.execute("CREATE ROLE tenant LOGIN REPLICATION")
        pids = descendants(dev.process.pid)
        os.kill(dev.process.pid, signal.SIGKILL)
        dev.process.wait(timeout=20)
        with lying(dev.port, a_physical_receiver):
            with psycopg.connect(dev.connstr(), autocommit=True) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS number")
            for pid in pids:
                kill_tree(pid)
    if pgdata_is_lost:
        shutil.rmtree(data / "pgdata")
    with running_dev(data) as dev:
        with psycopg.connect(dev.connstr(), autocommit=True) as connection:
            assert connection.execute("SELECT number FROM kept").fetchall() == [(1,)]
        assert dev.interrupt() == 0
