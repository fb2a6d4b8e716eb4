"""The stand-in's basebackups have the form of a pageserver's (E-04, E-06, E-07)."""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.fakes.specs import TENANT, TIMELINE
from tests.integration.pageservers import SNAPSHOT_LSN, Storage
from tests.integration.rust_client import RustClient, fields, rust_client
from trio_compute.embedded.archive import END, file_entry, signal_text, with_signal
from trio_compute.embedded.services import open_services
from trio_compute.embedded.world import World
from trio_compute.model.ids import Lsn

pytestmark = pytest.mark.postgres

BLOCK = 512
GZIP_NAME = 0x08


@pytest.fixture
async def client(world: World) -> AsyncIterator[RustClient]:
    async with open_services(world) as addresses, rust_client(addresses.pageserver, world.storage_token()) as client:
        yield client


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def entries(archive: bytes) -> list[tuple[str, bytes, bytes]]:
    """Return name, header and data of each entry; what follows the last one must be two zero blocks."""
    found, at = [], 0
    while any(archive[at : at + BLOCK]):
        header = archive[at : at + BLOCK]
        size = int(header[124:135], 8)
        found.append((header[:100].rstrip(b"\0").decode(), header, archive[at + BLOCK : at + BLOCK + size]))
        at += BLOCK + -(-size // BLOCK) * BLOCK
    assert archive[at:] == bytes(2 * BLOCK)
    return found


def plain(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(31)
    data = unpacker.decompress(packed)
    assert unpacker.eof
    assert unpacker.unused_data == b""
    return data


async def fetch(client: RustClient, world: World, *words: str) -> list[bytes]:
    """Return the pieces of a basebackup."""
    identity = world.identity
    query = " ".join(("basebackup", identity.tenant_id, world.timeline_id, *words))
    answer = await client.query(query)
    assert answer[-2] == (b"C", b"SELECT 1\0"), answer[0]
    return [body for kind, body in answer if kind == b"d"]


def add_snapshot(world: World) -> Lsn:
    """Let a single-user server write to the world's last state, and capture that; return its LSN."""
    assert world.snapshots.newest() is not None
    world.timeline.pgdatas = []
    data = world.directory / "scratch"
    data.mkdir(mode=0o700)
    world.run_as.own(data)
    unpacked = plain(b"".join(world.snapshots.serve(None, gzip=True)))
    for name, header, content in entries(unpacked):
        path = data / name
        if header[156:157] == b"5":
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o600)
        world.run_as.own(path)
    for directory in (data / "pg_wal", data / "base"):
        world.run_as.own(directory)
    (data / "postgresql.conf").touch()
    world.run_as.own(data / "postgresql.conf")
    command = [str(world.real_bin / "postgres"), "--single", "-D", str(data), "postgres"]
    options = world.run_as.process_options()
    subprocess.run(command, input=b"CREATE TABLE t (i int)\n", check=True, capture_output=True, cwd="/", **options)
    world.timeline.pgdatas = [data]
    lsn = world.timeline.recover()
    assert lsn is not None
    return lsn


async def test_the_archive_is_one_that_a_pageserver_makes(world: World, client: RustClient, major: int) -> None:
    """E-06: no name in gzip, NUL for files, no owners, no slashes, two zero blocks, the last two entries."""
    packed = b"".join(await fetch(client, world, "--gzip"))
    assert packed[3] & GZIP_NAME == 0
    found = entries(plain(packed))
    for name, header, _ in found:
        assert header[156:157] in {b"\0", b"5"}, name
        assert header[108:124] == bytes(16), f"{name} has an owner"
        assert not name.endswith("/")
        assert header[257:265] == b"ustar  \0"
        assert int(header[148:155], 8) == sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    names = [name for name, *_ in found]
    assert names[0] == "global"
    assert names[-2] == "global/pg_control"
    assert names[-1].startswith("pg_wal/0000")
    assert len(found[-1][2]) == 16 * 1024 * 1024
    assert len(set(names)) == len(names)
    assert ("pg_wal/summaries" in names) is (major >= 17)
    contents = {name: data for name, _, data in found}
    assert contents["postgresql.auto.conf"] == b""
    assert contents["neon.signal"] == contents["zenith.signal"] == b"PREV LSN: none"


async def test_the_copy_comes_in_small_pieces(world: World, client: RustClient) -> None:
    """E-06: 40 bytes to 8 KiB, but for what is left at an end."""
    lengths = [len(piece) for piece in await fetch(client, world, "--gzip")]
    assert max(lengths) == 8192
    assert lengths.count(40) > 10
    assert len(lengths) > 100


async def test_a_plain_basebackup_is_the_same_without_gzip(world: World, client: RustClient) -> None:
    """E-07."""
    packed, bare = b"".join(await fetch(client, world, "--gzip")), b"".join(await fetch(client, world))
    assert bare == plain(packed)
    identity = world.identity
    full = await client.query(f"fullbackup {identity.tenant_id} {world.timeline_id}")
    assert b"".join(body for kind, body in full if kind == b"d") == bare


async def test_the_signal_tells_the_record_before_only_at_the_end_of_the_log(world: World, client: RustClient) -> None:
    """E-06: `none`, a value that pg_waldump confirms, `invalid` for an LSN left behind, `none` for a branch."""
    first = world.snapshots.newest()
    lsn = await trio.to_thread.run_sync(add_snapshot, world)

    async def signal(*words: str) -> bytes:
        found = entries(plain(b"".join(await fetch(client, world, *words, "--gzip"))))
        (said,) = {data for name, _, data in found if name.endswith(".signal")}
        return said

    wal = world.timeline.wal.directory
    dump = [str(world.real_bin / "pg_waldump"), "-p", str(wal), "-s", str(lsn), "-n", "1"]
    shown = (await trio.run_process(dump, capture_stdout=True)).stdout.decode()
    prev = Lsn.parse(shown.partition("prev ")[2].partition(",")[0])
    assert await signal() == await signal(str(lsn)) == signal_text(prev)
    assert await signal(str(first)) == b"PREV LSN: invalid"
    await trio.to_thread.run_sync(world.make_branch, "trial")
    timeline_id = world.identity.timeline_of("trial")
    branch = world.timelines[world.identity.tenant_id, timeline_id].snapshots
    (said,) = {
        data for name, _, data in entries(plain(b"".join(branch.serve(None, gzip=True)))) if name.endswith(".signal")
    }
    assert said == b"PREV LSN: none"


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1500, 10**6])
def test_a_signal_is_replaced_however_the_archive_is_cut(size: int) -> None:
    """E-06: 6 ways to cut, 4 entries, among them one whose data look like a header."""
    trap = file_entry("neon.signal", b"not me")

    def archive(text: bytes) -> bytes:
        parts = (file_entry("a", b""), file_entry("b", trap), file_entry("neon.signal", text))
        return b"".join((*parts, file_entry("zenith.signal", text), file_entry("c", b"x" * 700), END))

    whole = archive(b"PREV LSN: 0/12345678")
    pieces = (whole[at : at + size] for at in range(0, len(whole), size))
    assert b"".join(with_signal(pieces, b"PREV LSN: invalid")) == archive(b"PREV LSN: invalid")


async def test_an_lsn_in_the_future_is_waited_for(storage: Storage) -> None:
    """E-04: until it comes, else an error that names it; the limit is 300 seconds unless told otherwise."""
    assert storage.libpq.wait_lsn_seconds == 300
    later = Lsn(SNAPSHOT_LSN + 0x10000)
    reached = SNAPSHOT_LSN
    storage.snapshots._log_end = lambda: reached
    async with storage.open_libpq() as url, rust_client(url, storage.token()) as client:
        storage.libpq.wait_lsn_seconds = 0.05
        (_, error), ready = await client.query(f"basebackup {TENANT} {TIMELINE} {later} --gzip")
        assert fields(error)["M"].startswith(
            f"Timed out while waiting for WAL record at LSN {later} to arrive, last_record_lsn {SNAPSHOT_LSN} "
        )
        assert ready == (b"Z", b"I")
        storage.libpq.wait_lsn_seconds = 60
        async with trio.open_nursery() as nursery:

            async def grow() -> None:
                nonlocal reached
                while len(storage.libpq.commands) < 2:
                    await trio.lowlevel.checkpoint()
                reached = later

            nursery.start_soon(grow)
            with trio.fail_after(5):
                answer = await client.query(f"basebackup {TENANT} {TIMELINE} {later} --gzip")
        assert [kind for kind, _ in answer if kind != b"d"] == [b"H", b"c", b"C", b"Z"]


async def test_an_lsn_that_was_left_behind_is_an_error(storage: Storage) -> None:
    """E-04: by both protocols, and the session stays."""
    early = Lsn(SNAPSHOT_LSN - 1)
    async with storage.open_libpq() as url, rust_client(url, storage.token()) as client:
        (_, error), ready = await client.query(f"basebackup {TENANT} {TIMELINE} {early} --gzip")
        assert fields(error)["M"] == (
            f"invalid basebackup lsn: LSN {early} is earlier than latest GC cutoff {SNAPSHOT_LSN} "
            "(we might've already garbage collected needed data)"
        )
        assert ready == (b"Z", b"I")
        await client.prepare(f"basebackup {TENANT} {TIMELINE} {early} --gzip")
        assert fields((await client.execute())[1][1])["M"] == "invalid basebackup lsn"
