"""What Databricks settings put into PGDATA (contract 04 §2 step 6, §7)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trio_compute.errors import HostError
from trio_compute.host.run_as import RunAs
from trio_compute.model.spec import DatabricksSettings, PgComputeTlsSettings
from trio_compute.postgres.pgdata import complete_after_basebackup

ME = RunAs()
HBA = "host\tall\t\tall\t\tall\t\tmd5"


@pytest.fixture
def settings(tmp_path: Path) -> DatabricksSettings:
    for name in ("pg.crt", "pg.key"):
        (tmp_path / name).write_text(f"content of {name}")
        (tmp_path / name).chmod(0o644)
    return DatabricksSettings(
        pg_compute_tls_settings=PgComputeTlsSettings(
            cert_file=str(tmp_path / "pg.crt"), key_file=str(tmp_path / "pg.key"), ca_file="/nowhere/ca.pem"
        ),
        databricks_pg_hba="/etc/databricks/hba",
        databricks_pg_ident="/etc/databricks/ident",
        databricks_workspace_host="w.example",
    )


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    pgdata = tmp_path / "pgdata"
    pgdata.mkdir(mode=0o700)
    (pgdata / "PG_VERSION").write_text("17\n")
    (pgdata / "pg_hba.conf").write_bytes(b"# caf\xe9\nlocal all all trust\n")
    (pgdata / "pg_ident.conf").write_text("")
    return pgdata


def complete(pgdata: Path, settings: DatabricksSettings, run_as: RunAs = ME) -> None:
    complete_after_basebackup(pgdata, run_as, is_primary=True, databricks=settings)


def test_key_and_certificate_are_copied_under_their_names(backup: Path, settings: DatabricksSettings) -> None:
    """F-23."""
    complete(backup, settings)
    for name in ("pg.crt", "pg.key"):
        assert (backup / name).read_text() == f"content of {name}"
        assert (backup / name).stat().st_mode & 0o777 == 0o600


def test_what_is_there_already_stays_and_the_key_is_narrowed(backup: Path, settings: DatabricksSettings) -> None:
    (backup / "pg.key").write_text("older")
    (backup / "pg.key").chmod(0o644)
    complete(backup, settings)
    assert (backup / "pg.key").read_text() == "older"
    assert (backup / "pg.key").stat().st_mode & 0o777 == 0o600


def test_included_access_files_come_first_and_once(backup: Path, settings: DatabricksSettings) -> None:
    """F-17."""
    hba = b"# caf\xe9\ninclude_if_exists /etc/databricks/hba\nlocal all all trust\n\n" + HBA.encode()
    for _ in range(2):
        complete(backup, settings)
        assert (backup / "pg_hba.conf").read_bytes() == hba
        assert (backup / "pg_ident.conf").read_text() == "include_if_exists /etc/databricks/ident\n"
    assert (backup / "pg_hba.conf").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("version", "text"), [("15\n", "16 or newer, this is 15"), ("junk", "cannot tell")])
def test_an_older_postgres_is_refused_before_anything_is_written(
    backup: Path, settings: DatabricksSettings, version: str, text: str
) -> None:
    """F-17: Postgres 15 would not start with such a line."""
    (backup / "PG_VERSION").write_text(version)
    before = (backup / "pg_hba.conf").read_bytes()
    with pytest.raises(HostError, match=text):
        complete(backup, settings)
    assert (backup / "pg_hba.conf").read_bytes() == before
    assert not (backup / "pg.key").exists()


def test_any_version_is_welcome_without_these_settings(backup: Path) -> None:
    (backup / "PG_VERSION").write_text("15\n")
    complete_after_basebackup(backup, ME, is_primary=True)
    assert b"include" not in (backup / "pg_hba.conf").read_bytes()
    assert (backup / "pg_ident.conf").read_text() == ""


def test_a_file_that_is_missing_is_named(backup: Path, settings: DatabricksSettings, tmp_path: Path) -> None:
    (tmp_path / "pg.key").unlink()
    with pytest.raises(HostError, match=r"cannot read .*pg\.key"):
        complete(backup, settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_files_belong_to_the_user_of_postgres(backup: Path, settings: DatabricksSettings) -> None:
    complete(backup, settings, RunAs(1234, 2345, "/home"))
    for name in ("pg.crt", "pg.key", "pg_hba.conf", "pg_ident.conf"):
        assert ((backup / name).stat().st_uid, (backup / name).stat().st_gid) == (1234, 2345)
