"""`dev`'s sharded tenants, its pageservers over gRPC and its faults, through real computes (issue of part 2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.fakes.specs import parsed
from tests.integration.dev_process import run_dev
from tests.integration.fleet import Fleet
from tests.integration.test_storage import fetch
from trio_compute.embedded.dev_faults import pageserver_faults, parse_fault
from trio_compute.embedded.endpoints import static_mode
from trio_compute.embedded.services import open_services
from trio_compute.embedded.world import World
from trio_compute.errors import StorageError

pytestmark = pytest.mark.postgres

Start = Callable[..., CompletedProcess[str]]


@pytest.fixture
def start(world: World, major: int) -> Start:
    """Return a function that starts and ends `dev` in a world that has a cluster already."""

    def start(*arguments: str) -> CompletedProcess[str]:
        return run_dev(world.directory, "--exit-when-ready", *arguments)

    return start


@pytest.mark.parametrize("protocol", ["libpq", "grpc"])
async def test_shard_zero_has_the_backup_and_each_shard_grants_a_lease(protocol: str, world: World) -> None:
    async with open_services(world, shards=3, protocol=protocol) as addresses:
        fleet = Fleet(world, addresses)
        async with world.open_receiver(fleet.ports["primary"].postgres), fleet.compute() as primary:
            await primary.sql("CREATE TABLE early AS SELECT 1 AS number")
            lsn = await primary.lsn()
            async with fleet.compute(world.endpoint("static", static_mode(lsn))) as reader:
                assert await reader.sql("SHOW neon.stripe_size") == [("2048",)]
                if protocol == "libpq":
                    shown = await reader.sql("SHOW neon.pageserver_connstring")
                    assert shown == [(",".join(addresses.pageservers.values()),)]
                await reader.end()
            await primary.end()
        tenant = world.identity.tenant_id
        assert {held[0] for held in world.pageserver.leases.held()} == {
            f"{tenant}-{n}" for n in ("0003", "0103", "0203")
        }
        if protocol == "libpq":
            assert sum(command.startswith("basebackup") for command in world.pageserver.commands) == 2


def test_a_delay_and_refused_connections_only_cost_time(start: Start, world: World) -> None:
    result = start("--fault", "delay=0.5", "--fault", "refuse=2")
    assert result.returncode == 0, result.stderr
    said = (world.directory / "compute.log").read_text()
    assert said.count("WARNING prepare: basebackup failed") == 2


def test_two_shards_over_grpc_and_one_refusal(start: Start) -> None:
    result = start("--shards", "2", "--pageserver-protocol", "grpc", "--fault", "refuse=1")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("protocol", ["libpq", "grpc"])
@pytest.mark.parametrize("fault", ["corrupt=900000", "cut=900000"])
async def test_a_backup_that_does_not_come_whole_is_an_error(
    fault: str, protocol: str, world: World, public_tmp: Path
) -> None:
    world.pageserver.faults = pageserver_faults([parse_fault(fault)])
    async with open_services(world, protocol=protocol) as addresses:
        spec = parsed(
            tenant_id=world.identity.tenant_id,
            timeline_id=world.identity.timeline_id,
            pageserver_connection_info=addresses.connection_info(),
            storage_auth_token=world.storage_token(),
        )
        with pytest.raises(StorageError, match=r"basebackup|pageserver"):
            await fetch(spec, public_tmp / "pgdata")


def test_a_wrong_token_is_an_error_that_says_so(start: Start) -> None:
    result = start("--fault", "wrong-token")
    assert result.returncode == 1
    assert "JWT authentication error" in result.stderr
    assert "eyJ" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--fault", "flood=1"], "unknown fault 'flood'; there are delay, refuse, corrupt, cut, wrong-token"),
        (["--fault", "delay"], "delay needs SECONDS"),
        (["--fault", "delay=nan"], "delay needs SECONDS"),
        (["--fault", "refuse=-1"], "refuse needs N"),
        (["--fault", "cut=1.5"], "cut needs BYTE"),
        (["--fault", "wrong-token=1"], "unknown fault"),
        (["--shards", "0"], "a tenant has 1 to 255 shards"),
        (["--shards", "256"], "a tenant has 1 to 255 shards"),
        (["--pageserver-protocol", "http"], "invalid choice"),
    ],
)
def test_bad_flags_are_named(arguments: list[str], reason: str, public_tmp: Path) -> None:
    result = run_dev(public_tmp / "nothing", *arguments)
    assert result.returncode == 2
    assert reason in result.stderr.replace("wrong-token=1'", "")
    assert not (public_tmp / "nothing").exists()
