"""Postgres' programs, found from --pgbin (contract 01 §1.2, B-02, 04 F-25)."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_compute.errors import HostError
from trio_compute.postgres.binaries import resolve_pgbin, sibling


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_bare_name_is_looked_up_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-02, F-25: the default `postgres` must find its tools too."""
    postgres = program(tmp_path / "bin" / "postgres")
    pg_config = program(tmp_path / "bin" / "pg_config")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert resolve_pgbin("postgres") == postgres
    assert sibling(resolve_pgbin("postgres"), "pg_config") == pg_config


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres = program(tmp_path / "bin" / "postgres")
    monkeypatch.chdir(tmp_path)
    assert resolve_pgbin("bin/postgres") == postgres


def test_a_tool_is_sought_beside_the_link_then_beside_the_real_file_then_in_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-25."""
    program(tmp_path / "real" / "postgres")
    link = tmp_path / "link" / "postgres"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "real" / "postgres")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    in_path = program(tmp_path / "path" / "pg_ctl")
    assert sibling(link, "pg_ctl") == in_path
    beside_real = program(tmp_path / "real" / "pg_ctl")
    assert sibling(link, "pg_ctl") == beside_real
    beside_link = program(tmp_path / "link" / "pg_ctl")
    assert sibling(link, "pg_ctl") == beside_link


def test_a_binary_that_cannot_be_used_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "plain").write_text("no program")
    for pgbin, text in (
        ("nowhere", "not found in PATH"),
        ("/no/where", "no such file"),
        (str(tmp_path), "no such file"),
        (str(tmp_path / "plain"), "not executable"),
    ):
        with pytest.raises(HostError, match=text):
            resolve_pgbin(pgbin)
    with pytest.raises(HostError, match="pg_ctl"):
        sibling(tmp_path / "postgres", "pg_ctl")


def test_a_directory_of_the_name_is_no_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    postgres = program(tmp_path / "bin" / "postgres")
    (tmp_path / "bin" / "pg_ctl").mkdir()
    in_path = program(tmp_path / "path" / "pg_ctl")
    assert sibling(postgres, "pg_ctl") == in_path
