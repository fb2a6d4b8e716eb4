"""The user that owns PGDATA and runs Postgres."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from trio_compute.errors import UsageError
from trio_compute.host.run_as import RunAs, resolve_run_as

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)


@pytest.mark.usefixtures("as_nobody")
def test_an_ordinary_user_runs_postgres_as_itself() -> None:
    for name in (None, "nobody"):
        user = resolve_run_as(name)
        assert user == RunAs()
        assert user.owner is None
        assert user.process_options() == {}


@pytest.mark.usefixtures("as_nobody")
def test_an_ordinary_user_cannot_become_another_one() -> None:
    with pytest.raises(UsageError, match="--run-as root"):
        resolve_run_as("root")


@pytest.mark.usefixtures("as_root")
def test_root_runs_postgres_as_the_user_it_is_told() -> None:
    user = resolve_run_as("nobody")
    assert user == RunAs(NOBODY.pw_uid, NOBODY.pw_gid, NOBODY.pw_dir)
    assert user.owner == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert user.process_options() == {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []}


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", ["root", "no such user", ""])
def test_root_needs_an_ordinary_user(name: str) -> None:
    with pytest.raises(UsageError, match="--run-as"):
        resolve_run_as(name)


@pytest.mark.usefixtures("as_root")
def test_root_takes_the_user_postgres_or_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    if "postgres" in known:
        assert resolve_run_as(None).uid == pwd.getpwnam("postgres").pw_uid
    else:
        with pytest.raises(UsageError, match="--run-as"):
            resolve_run_as(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_link_is_given_away_and_not_what_it_points_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch()
    link.symlink_to(target)
    RunAs(1234, 2345, "/").own(link)
    assert (link.lstat().st_uid, link.lstat().st_gid) == (1234, 2345)
    assert target.stat().st_uid == 0


def test_owning_as_ourselves_changes_nothing(tmp_path: Path) -> None:
    before = tmp_path.stat().st_ctime_ns
    RunAs().own(tmp_path)
    assert tmp_path.stat().st_ctime_ns == before
