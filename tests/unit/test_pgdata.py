"""The data directory: emptied at every start, completed after the basebackup (contract 04 §2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_compute.errors import HostError
from trio_compute.host.run_as import RunAs
from trio_compute.plan.postgres_conf import OVERRIDE_TEXT
from trio_compute.postgres.pgdata import OVERRIDE_FILE, complete_after_basebackup, empty, recreate

ME = RunAs()
HBA = "host\tall\t\tall\t\tall\t\tmd5"


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    return tmp_path / "pgdata"


@pytest.fixture
def backup(pgdata: Path) -> Path:
    """Make a directory such as a basebackup leaves."""
    pgdata.mkdir(mode=0o700)
    (pgdata / "pg_dynshmem").mkdir()
    (pgdata / "pg_hba.conf").write_text("local all all trust\n")
    (pgdata / "neon.signal").write_text("PREV LSN: none")
    (pgdata / "zenith.signal").write_text("PREV LSN: none")
    return pgdata


@pytest.fixture(params=[0o000, 0o022])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_missing_directory_is_created_for_its_owner_only(pgdata: Path) -> None:
    """F-18: never wider, not even for an instant."""
    recreate(pgdata, ME)
    assert pgdata.stat().st_mode & 0o7777 == 0o700
    assert names_in(pgdata) == []


def test_an_existing_directory_is_emptied_in_place_since_it_may_be_a_mount_point(pgdata: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    pgdata.mkdir(mode=0o755)
    (pgdata / "base" / "1").mkdir(parents=True)
    (pgdata / "base" / "1" / "file").touch()
    (pgdata / ".hidden").touch()
    (pgdata / "read_only").mkdir()
    (pgdata / "link_out").symlink_to(outside)
    (pgdata / "dangling").symlink_to("/nowhere")
    os.mkfifo(pgdata / "pipe")
    inode = pgdata.stat().st_ino
    recreate(pgdata, ME)
    assert names_in(pgdata) == []
    assert pgdata.stat().st_ino == inode
    assert pgdata.stat().st_mode & 0o7777 == 0o700
    assert (outside / "precious").exists()


def test_a_file_in_its_place_is_replaced(pgdata: Path) -> None:
    pgdata.write_text("not a directory")
    recreate(pgdata, ME)
    assert pgdata.is_dir()


def test_a_link_to_a_directory_is_followed_and_a_dangling_one_replaced(pgdata: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    pgdata.symlink_to(target)
    recreate(pgdata, ME)
    assert pgdata.is_symlink()
    assert names_in(target) == []
    target.rmdir()
    recreate(pgdata, ME)
    assert pgdata.is_dir()


def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    """F-18."""
    with pytest.raises(HostError, match=str(tmp_path / "missing" / "pgdata")):
        recreate(tmp_path / "missing" / "pgdata", ME)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_directory_is_given_to_the_user_of_postgres(pgdata: Path) -> None:
    recreate(pgdata, RunAs(1234, 2345, "/home"))
    assert (pgdata.stat().st_uid, pgdata.stat().st_gid) == (1234, 2345)


def test_cleaning_between_attempts_keeps_what_was_written_before(backup: Path) -> None:
    """D-45, S-06."""
    (backup / "postgresql.conf").write_text("port=1")
    empty(backup, keep=("postgresql.conf", "server.key"))
    assert names_in(backup) == ["postgresql.conf"]


@pytest.mark.parametrize("is_primary", [True, False])
def test_a_basebackup_is_completed(backup: Path, is_primary: bool) -> None:
    complete_after_basebackup(backup, ME, is_primary=is_primary)
    assert (backup / "pg_hba.conf").read_text() == f"local all all trust\n\n{HBA}"
    assert (backup / "pg_dynshmem").is_symlink()
    assert str((backup / "pg_dynshmem").readlink()) == "/dev/shm"
    standby = backup / "standby.signal"
    assert standby.exists() is not is_primary
    if not is_primary:
        assert standby.read_bytes() == b""
        assert standby.stat().st_mode & 0o777 == 0o600


def test_completing_twice_changes_nothing(backup: Path) -> None:
    complete_after_basebackup(backup, ME, is_primary=False)
    before = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(backup)}
    complete_after_basebackup(backup, ME, is_primary=False)
    assert {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(backup)} == before


def test_pg_dynshmem_may_be_absent(backup: Path) -> None:
    """F-24."""
    (backup / "pg_dynshmem").rmdir()
    complete_after_basebackup(backup, ME, is_primary=True)
    assert (backup / "pg_dynshmem").is_symlink()


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "full directory"])
def test_pg_dynshmem_of_any_kind_is_replaced(backup: Path, tmp_path: Path, kind: str) -> None:
    """F-24."""
    path, outside = backup / "pg_dynshmem", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    path.rmdir()
    match kind:
        case "file":
            path.touch()
        case "link":
            path.symlink_to(outside)
        case "dangling link":
            path.symlink_to("/nowhere")
        case _:
            path.mkdir()
            (path / "segment").touch()
    complete_after_basebackup(backup, ME, is_primary=True)
    assert str(path.readlink()) == "/dev/shm"
    assert (outside / "precious").exists()


def test_an_old_signal_file_is_copied_to_the_new_name_and_both_stay(backup: Path) -> None:
    (backup / "neon.signal").unlink()
    (backup / "zenith.signal").write_text("PREV LSN: 0/1696628")
    complete_after_basebackup(backup, ME, is_primary=True)
    assert (backup / "neon.signal").read_text() == "PREV LSN: 0/1696628"
    assert (backup / "zenith.signal").exists()


def test_a_new_signal_file_is_left_alone(backup: Path) -> None:
    (backup / "zenith.signal").write_text("PREV LSN: other")
    complete_after_basebackup(backup, ME, is_primary=True)
    assert (backup / "neon.signal").read_text() == "PREV LSN: none"


def test_no_signal_file_is_no_error(backup: Path) -> None:
    (backup / "neon.signal").unlink()
    (backup / "zenith.signal").unlink()
    complete_after_basebackup(backup, ME, is_primary=True)
    assert not (backup / "neon.signal").exists()


def test_a_missing_pg_hba_is_created_for_its_owner_only(backup: Path) -> None:
    (backup / "pg_hba.conf").unlink()
    complete_after_basebackup(backup, ME, is_primary=True)
    assert (backup / "pg_hba.conf").read_text() == HBA
    assert (backup / "pg_hba.conf").stat().st_mode & 0o777 == 0o600


def test_a_standby_signal_from_the_backup_is_kept(backup: Path) -> None:
    (backup / "standby.signal").write_text("kept")
    complete_after_basebackup(backup, ME, is_primary=False)
    assert (backup / "standby.signal").read_text() == "kept"


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=str(tmp_path / "gone")):
        complete_after_basebackup(tmp_path / "gone", ME, is_primary=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_is_added_belongs_to_the_user_of_postgres(backup: Path) -> None:
    (backup / "neon.signal").unlink()
    complete_after_basebackup(backup, RunAs(1234, 2345, "/home"), is_primary=False)
    for name in ("neon.signal", "pg_hba.conf", "pg_dynshmem", "standby.signal"):
        status = (backup / name).lstat()
        assert (status.st_uid, status.st_gid) == (1234, 2345)


def test_the_override_is_gone_when_postgres_starts(backup: Path) -> None:
    """F-12: a process that died while the quota was lifted leaves it filled; a start removes or empties it."""
    override = backup / OVERRIDE_FILE
    override.write_text(OVERRIDE_TEXT)
    complete_after_basebackup(backup, ME, is_primary=True)
    assert override.read_bytes() == b""
    assert override.stat().st_mode & 0o777 == 0o600
    override.write_text(OVERRIDE_TEXT)
    recreate(backup, ME)
    assert not override.exists()
