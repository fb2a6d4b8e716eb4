"""From a snapshot and the WAL after it to a data directory at rest: Postgres' own crash recovery, elsewhere."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trio_compute.embedded.own_wal import OwnWal
from trio_compute.embedded.snapshots import Snapshots, read_control
from trio_compute.embedded.wal import WalStore, copy_wal, histories_in, segments_in
from trio_compute.errors import HostError
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import Lsn
from trio_compute.postgres.unpack import Unpacker

STATE_OFFSET = 16
IN_PRODUCTION = 6
LARGEST_CONTROL_BYTES = 512
READ_BYTES = 1024 * 1024
COMPLAINT_CHARACTERS = 2000
# Replay must have room for what the primary had; pg_control knows these settings by names of its own.
SETTINGS = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}
WORDS = {"wal_level setting": "wal_level", "track_commit_timestamp setting": "track_commit_timestamp"}


@contextmanager
def replayed(
    snapshots: Snapshots,
    wal: WalStore,
    base: Lsn,
    *,
    scratch: Path,
    bin_directory: Path,
    run_as: RunAs,
    until: Lsn | None = None,
    last_pgdata: Path | None = None,
    own: OwnWal | None = None,
) -> Iterator[Path]:
    """Give a data directory that holds a snapshot plus the stored WAL, up to `until` if given; blocking.

    It is made at `scratch`, stopped cleanly, and gone after the block. `last_pgdata` is what a crash left of the
    primary's, if anything: only its settings are looked at. `own` is the WAL that the primary wrote, with which it
    goes on. Raises HostError with Postgres' words when recovery fails.
    """
    _make_scratch(scratch, run_as)
    try:
        _unpack(snapshots.path(base), scratch, run_as)
        _put_wal(wal, own, scratch, base, run_as, until)
        _recover(bin_directory, scratch, run_as, _settings(bin_directory, scratch, last_pgdata))
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_scratch(scratch: Path, run_as: RunAs) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    for above in (scratch.parent, scratch.parent.parent):
        above.chmod(0o755)
    scratch.mkdir(mode=0o700)
    run_as.own(scratch)


def _unpack(archive: Path, target: Path, run_as: RunAs) -> None:
    try:
        with archive.open("rb") as file, Unpacker(target, owner=run_as.owner) as unpacker:
            while data := file.read(READ_BYTES):
                unpacker.feed(data)
            unpacker.finish()
    except OSError as error:
        raise HostError(f"cannot read {archive}: {error.strerror}") from error


def _put_wal(wal: WalStore, own: OwnWal | None, pgdata: Path, base: Lsn, run_as: RunAs, until: Lsn | None) -> None:
    (line,) = {segment.line for segment in segments_in(pgdata / "pg_wal")}
    copy_wal(wal, pgdata / "pg_wal", base, run_as, until=until)
    further = [] if own is None else [own.path(segment) for segment in own.after(wal, base)]
    histories = [*histories_in(wal.directory), *(own.histories() if own is not None and further else ())]
    promotions = [path for path in histories if int(path.stem, 16) > line]
    for source in (*further, *promotions):
        target = pgdata / "pg_wal" / source.name
        shutil.copyfile(source, target)
        run_as.own(target)
    if promotions:
        # Only recovery from an archive follows a promotion; the archive is empty, so pg_wal is looked at.
        signal = pgdata / "recovery.signal"
        signal.touch(mode=0o600)
        run_as.own(signal)
    mark_in_production(pgdata / "global" / "pg_control")


def mark_in_production(path: Path) -> None:
    """Make a pg_control look as if the server had been killed, so that it replays what follows the checkpoint."""
    content = bytearray(path.read_bytes())
    at = checksum_offset(content)
    struct.pack_into("<i", content, STATE_OFFSET, IN_PRODUCTION)
    struct.pack_into("<I", content, at, crc32c(content[:at]))
    path.write_bytes(content)


def checksum_offset(content: bytes | bytearray) -> int:
    """Return where a pg_control keeps the checksum of what precedes it, which differs between versions."""
    register = 0xFFFFFFFF
    for at in range(0, LARGEST_CONTROL_BYTES, 4):
        if at > STATE_OFFSET and struct.unpack_from("<I", content, at)[0] == register ^ 0xFFFFFFFF:
            return at
        register = _crc32c_register(content[at : at + 4], register)
    raise HostError("a pg_control has no valid checksum")


def crc32c(data: bytes | bytearray) -> int:
    """Return the Castagnoli checksum that Postgres uses."""
    return _crc32c_register(data, 0xFFFFFFFF) ^ 0xFFFFFFFF


def _crc32c_register(data: bytes | bytearray, register: int) -> int:
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 & -(register & 1))
    return register


def _settings(bin_directory: Path, scratch: Path, last_pgdata: Path | None) -> dict[str, str]:
    controls: list[Mapping[str, str]] = [read_control(bin_directory, scratch)]
    if last_pgdata is not None and (last_pgdata / "global" / "pg_control").is_file():
        controls.append(read_control(bin_directory, last_pgdata))
    numbers = {name: max(int(control[key]) for control in controls) for key, name in SETTINGS.items()}
    words = {name: controls[-1][key] for key, name in WORDS.items()}
    return {**{name: str(number) for name, number in numbers.items()}, **words}


def _recover(bin_directory: Path, pgdata: Path, run_as: RunAs, settings: Mapping[str, str]) -> None:
    """Let a single-user Postgres recover and shut down, as pg_rewind does; it listens nowhere."""
    lines = {**settings, "fsync": "off", "hot_standby": "off", "restore_command": "'false'"}
    conf = pgdata / "postgresql.conf"
    conf.write_text("".join(f"{name} = {value}\n" for name, value in lines.items()), encoding="ascii")
    run_as.own(conf)
    result = subprocess.run(
        [str(bin_directory / "postgres"), "--single", "-D", str(pgdata), "template1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd="/",
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "")},
        **run_as.process_options(),
    )
    state = read_control(bin_directory, pgdata).get("Database cluster state")
    if result.returncode != 0 or state != "shut down":
        raise HostError(f"cannot replay the WAL of the last run: {result.stderr.strip()[-COMPLAINT_CHARACTERS:]}")
