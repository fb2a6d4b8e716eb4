"""Pageserver and safekeepers over real sockets: what they can do wrong, and what we make of it (contract 07)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes.specs import TENANT, TIMELINE, parsed
from trio_compute.deadlines import Deadlines
from trio_compute.embedded.endpoints import Addresses
from trio_compute.embedded.pageserver import Faults
from trio_compute.embedded.services import open_services
from trio_compute.embedded.world import World
from trio_compute.errors import ComputeError, StorageError
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import INVALID_LSN, Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.storage.pageserver import Received, basebackup_command, fetch_basebackup
from trio_compute.storage.safekeepers import check_safekeepers_synced
from trio_compute.telemetry.spans import Recorder

pytestmark = pytest.mark.postgres


@pytest.fixture
async def addresses(world: World) -> AsyncIterator[Addresses]:
    async with open_services(world) as addresses:
        yield addresses


@pytest.fixture
def spec(world: World, addresses: Addresses) -> ParsedSpec:
    return parsed(**primary(world, addresses))


def primary(world: World, addresses: Addresses, **changes: Any) -> dict[str, Any]:
    return {
        "tenant_id": world.identity.tenant_id,
        "timeline_id": world.identity.timeline_id,
        "pageserver_connstring": addresses.pageserver,
        "safekeeper_connstrings": addresses.safekeepers,
        "storage_auth_token": world.storage_token(),
        **changes,
    }


async def fetch(spec: ParsedSpec, target: Path, lsn: Lsn = INVALID_LSN, *, idle_seconds: float = 30) -> Received:
    target.mkdir(exist_ok=True)
    deadlines = Deadlines(pageserver_idle=idle_seconds, pageserver_connect=2)
    return await fetch_basebackup(spec, target, lsn, run_as=RunAs(), spans=Recorder(), deadlines=deadlines)


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.mark.parametrize(
    ("lsn", "mode", "command"),
    [
        ("0/0", "Primary", f"basebackup {TENANT} {TIMELINE} --gzip"),
        ("0/16ABCDE", "Primary", f"basebackup {TENANT} {TIMELINE} 0/16ABCDE --gzip"),
        ("0/0", "Replica", f"basebackup {TENANT} {TIMELINE} --gzip --replica"),
        ("1/A", {"Static": "1/A"}, f"basebackup {TENANT} {TIMELINE} 1/A --gzip --replica"),
    ],
)
def test_the_command_has_one_of_four_forms(lsn: str, mode: Any, command: str) -> None:
    assert basebackup_command(parsed(mode=mode), Lsn.parse(lsn)) == command


async def test_a_basebackup_arrives_whole(spec: ParsedSpec, world: World, public_tmp: Path) -> None:
    target = public_tmp / "pgdata"
    received = await fetch(spec, target)
    newest = world.snapshots.newest()
    assert newest is not None
    assert received.compressed_bytes == world.snapshots.path(newest).stat().st_size
    assert (target / "global" / "pg_control").is_file()
    assert (target / "neon.signal").read_text() == "PREV LSN: none"


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        (Faults(fail_commands=1, error_text="LSN wait timed out"), "LSN wait timed out"),
        (Faults(error_at_byte=1_000_000), "stand-in fault"),
        (Faults(cut_at_byte=1_000_000), "pageserver: "),
        (Faults(corrupt_at_byte=1_000_000), ""),
        (Faults(error_before_copy_done=True), "stand-in fault"),
        (Faults(error_after_copy_done=True), "stand-in fault"),
        (Faults(fail_connections=1), "cannot connect to pageserver"),
        (Faults(fail_commands=1, error_text="x" * 500_000), " […]"),
    ],
    ids=["refused", "error mid-copy", "cut", "corrupt", "before CopyDone", "after CopyDone", "connect", "long text"],
)
async def test_every_fault_of_a_pageserver_is_an_error(
    faults: Faults, text: str, spec: ParsedSpec, world: World, public_tmp: Path
) -> None:
    """S-07, S-08: an error after a complete archive counts; so do cuts and flipped bits. Nothing stays open."""
    world.pageserver.faults = copy(faults)
    before = open_files()
    with pytest.raises(StorageError) as raised:
        await fetch(spec, public_tmp / "pgdata")
    assert text in str(raised.value)
    assert len(str(raised.value)) < 3000
    with trio.fail_after(5):
        while open_files() > before:
            await trio.sleep(0.01)  # the embedded server closes its end on its own time


async def test_a_silent_pageserver_is_given_up(spec: ParsedSpec, world: World, public_tmp: Path) -> None:
    """S-10: an idle limit, long enough in production for the 300 s wait for an LSN."""
    world.pageserver.faults = Faults(stall_at_byte=1_000_000)
    with trio.fail_after(10), pytest.raises(StorageError, match="pageserver sent nothing for"):
        await fetch(spec, public_tmp / "pgdata", idle_seconds=0.3)


async def test_a_pageserver_that_never_answers_the_connection_is_given_up(spec: ParsedSpec, public_tmp: Path) -> None:
    """S-10: connect timeout."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    silent = parsed(pageserver_connstring=f"postgresql://u@127.0.0.1:{port}")
    with trio.fail_after(10), pytest.raises(StorageError, match="cannot connect to pageserver"):
        await fetch(silent, public_tmp / "pgdata")
    await listeners[0].aclose()


async def test_a_cancelled_transfer_ends_at_once_and_leaves_nothing(
    spec: ParsedSpec, world: World, public_tmp: Path
) -> None:
    """S-09: cancellable in the middle of the copy, thread and socket included."""
    world.pageserver.faults = Faults(stall_at_byte=1_000_000)
    before = open_files()
    began = trio.current_time()
    with trio.move_on_after(0.3) as scope:
        await fetch(spec, public_tmp / "pgdata")
    assert scope.cancelled_caught
    assert trio.current_time() - began < 2
    with trio.fail_after(5):
        while open_files() > before:
            await trio.sleep(0.01)


@pytest.mark.parametrize("token", [None, "wrong", "eyJhbGciOiJub25lIn0.e30."])
async def test_a_rejected_token_is_said_and_never_shown(
    token: str | None, world: World, addresses: Addresses, public_tmp: Path
) -> None:
    spec = parsed(**primary(world, addresses, storage_auth_token=token))
    with pytest.raises(StorageError) as raised:
        await fetch(spec, public_tmp / "pgdata")
    assert "cannot connect to pageserver" in str(raised.value)
    assert token is None or token not in str(raised.value)


async def test_a_file_in_the_way_is_an_error_of_ours(spec: ParsedSpec, public_tmp: Path) -> None:
    target = public_tmp / "pgdata"
    (target / "base" / "1" / "PG_VERSION").mkdir(parents=True)
    with pytest.raises(ComputeError, match="PG_VERSION"):
        await fetch(spec, target)


async def test_an_unknown_timeline_is_not_found(world: World, addresses: Addresses, public_tmp: Path) -> None:
    spec = parsed(**primary(world, addresses, timeline_id="f" * 32))
    with pytest.raises(StorageError, match="not found"):
        await fetch(spec, public_tmp / "pgdata")


# ----------------------------------------------------------------------------------------------------- safekeepers

LSN = Lsn.parse("0/2000000")


async def check(world: World, addresses: list[str], timeout_seconds: float = 1.0) -> Lsn | None:
    spec = parsed(
        tenant_id=world.identity.tenant_id,
        timeline_id=world.identity.timeline_id,
        safekeeper_connstrings=addresses,
        storage_auth_token=world.storage_token(),
    )
    return await check_safekeepers_synced(spec, timeout_seconds=timeout_seconds)


def advance(world: World, *lsns: Lsn | None) -> None:
    key = f"{world.identity.tenant_id}/{world.identity.timeline_id}"
    for member, lsn in zip(world.safekeepers.members, lsns, strict=False):
        if lsn is not None:
            member.advance(key, lsn)


async def test_agreeing_safekeepers_prove_their_lsn(world: World, addresses: Addresses) -> None:
    advance(world, LSN, LSN, LSN)
    assert await check(world, addresses.safekeepers) == LSN


async def test_an_unknown_timeline_proves_nothing(world: World, addresses: Addresses) -> None:
    assert await check(world, addresses.safekeepers) is None


async def test_two_that_disagree_prove_nothing(world: World, addresses: Addresses) -> None:
    advance(world, LSN, Lsn(LSN + 8))
    assert await check(world, addresses.safekeepers[:2]) is None


async def test_a_majority_is_enough_when_one_hangs_and_it_is_not_waited_for(world: World, addresses: Addresses) -> None:
    advance(world, LSN, LSN)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    silent = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    began = trio.current_time()
    assert await check(world, [silent, *addresses.safekeepers[:2]], timeout_seconds=5) == LSN
    assert trio.current_time() - began < 3
    await listeners[0].aclose()


async def test_a_majority_that_hangs_is_given_up_after_the_limit(world: World, addresses: Addresses) -> None:
    advance(world, LSN)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    silent = [f"127.0.0.1:{port}", f"localhost:{port}"]
    with trio.fail_after(5):
        assert await check(world, [*silent, addresses.safekeepers[0]], timeout_seconds=0.2) is None
    await listeners[0].aclose()


async def test_refused_connections_and_wrong_tokens_prove_nothing(world: World, addresses: Addresses) -> None:
    assert await check(world, ["127.0.0.1:1", "127.0.0.1:2", addresses.safekeepers[0]]) is None
    spec = parsed(safekeeper_connstrings=addresses.safekeepers, storage_auth_token="wrong")
    assert await check_safekeepers_synced(spec, timeout_seconds=1.0) is None
