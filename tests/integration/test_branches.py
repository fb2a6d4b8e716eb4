"""Branches: timelines of their own that begin with what another one held."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from tests.integration.dev_process import DevProcess, run_dev, running_dev
from trio_compute.embedded import binaries
from trio_compute.embedded.branches import MAIN, known_identity
from trio_compute.embedded.world import World
from trio_compute.errors import HostError, StorageError
from trio_compute.model.ids import Lsn

pytestmark = pytest.mark.postgres


@pytest.fixture
def data(world: World) -> Path:
    """Return the directory of a world that has a cluster and nothing else."""
    return world.directory


def again(world: World, branch: str = MAIN) -> World:
    """Open the same world as another process would."""
    tree = world.real_bin.parent
    return World(world.directory, tree, world.identity.postgres_major, world.run_as, branch=branch)


def run(dev: DevProcess, statement: str) -> list[int]:
    with psycopg.connect(dev.connstr(), autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        return [row[0] for row in cursor.fetchall()] if cursor.description else []


def rows(dev: DevProcess) -> list[int]:
    return run(dev, "SELECT number FROM shared ORDER BY number")


def branch(data: Path, *arguments: str) -> str:
    result = run_dev(data, "branch", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_branches_and_their_parent_do_not_see_each_other(data: Path) -> None:
    """Both ways, at the same time, each on its own port; the branch is made while the parent runs."""
    with running_dev(data) as main:
        run(main, "CREATE TABLE shared AS SELECT 1 AS number")
        branch(data, "trial")
        run(main, "INSERT INTO shared VALUES (2)")
        with running_dev(data, "--branch", "trial") as trial:
            assert rows(trial) == [1]
            run(trial, "INSERT INTO shared VALUES (100)")
            run(main, "INSERT INTO shared VALUES (3)")
            assert (rows(trial), rows(main)) == ([1, 100], [1, 2, 3])
            assert trial.interrupt() == 0
        assert rows(main) == [1, 2, 3]
        main.kill_everything()
    with running_dev(data) as main, running_dev(data, "--branch", "trial") as trial:
        assert (rows(main), rows(trial)) == ([1, 2, 3], [1, 100])
        assert (main.interrupt(), trial.interrupt()) == (0, 0)


def test_a_branch_can_begin_at_an_earlier_lsn(data: Path) -> None:
    """Of a run that ended cleanly or not, and of a branch of a branch."""
    with running_dev(data) as main:
        run(main, "CREATE TABLE shared AS SELECT 1 AS number")
        (earlier,) = run(main, "SELECT pg_current_wal_flush_lsn()::text")
        run(main, "INSERT INTO shared VALUES (2)")
        assert main.interrupt() == 0
    with running_dev(data) as main:
        run(main, "INSERT INTO shared VALUES (3)")
        (later,) = run(main, "SELECT pg_current_wal_flush_lsn()::text")
        run(main, "INSERT INTO shared VALUES (4)")
        main.kill_everything()
    branch(data, "early", "--at", str(earlier))
    branch(data, "late", "--at", str(later))
    branch(data, "last")
    branch(data, "child", "--from", "late")
    for name, expected in (("early", [1]), ("late", [1, 2, 3]), ("last", [1, 2, 3, 4]), ("child", [1, 2, 3])):
        with running_dev(data, "--branch", name) as dev:
            assert rows(dev) == expected, name
            dev.kill_everything()
    table = branch(data, "--list").splitlines()
    assert [line.split()[:3] for line in table[1:]] == [
        ["main", *table[1].split()[1:3]],
        ["early", "main", str(earlier)],
        ["late", "main", str(later)],
        ["last", "main", table[4].split()[2]],
        ["child", "late", table[5].split()[2]],
    ]


def test_a_read_only_compute_shows_a_branch_at_an_earlier_lsn(data: Path) -> None:
    with running_dev(data) as main:
        run(main, "CREATE TABLE shared AS SELECT 1 AS number")
        (earlier,) = run(main, "SELECT pg_current_wal_flush_lsn()::text")
        run(main, "INSERT INTO shared VALUES (2)")
        assert main.interrupt() == 0
    arguments = ("--replica", "--read-only-at", str(earlier), "--exit-when-ready", "--json")
    result = run_dev(data, *arguments)
    assert result.returncode == 0, result.stderr
    readers = json.loads(result.stdout)["readers"]
    assert [(reader["name"], reader["mode"]) for reader in readers] == [
        ("replica", "Replica"),
        ("static", {"Static": str(earlier)}),
    ]
    assert all(reader["status"]["status"] == "running" for reader in readers)
    assert [reader["terminate"] for reader in readers] == [{"lsn": None, "exit_code": 0}] * 2
    refused = run_dev(data, "--read-only-at", "FF/0", "--exit-when-ready")
    assert (refused.returncode, "is not kept; what is kept reaches from" in refused.stderr) == (1, True)


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "a b", "x" * 64, "é", "main", "taken"])
def test_names_that_cannot_be_are_refused(name: str, world: World) -> None:
    world.make_branch("taken")
    with pytest.raises(HostError, match=r"is no name for a branch|there is a branch"):
        again(world).make_branch(name)
    assert sorted(path.name for path in (world.directory / "timelines").iterdir()) == sorted(
        {world.identity.timeline_id, *(known.timeline_id for known in again(world).identity.branches)}
    )


def test_an_lsn_that_is_not_kept_makes_no_branch(world: World) -> None:
    for at in (Lsn(1), Lsn.parse("FF/0")):
        with pytest.raises(StorageError, match="is not kept"):
            world.make_branch("nowhere", at)
    assert again(world).identity.branches == ()
    assert [path.name for path in (world.directory / "timelines").iterdir()] == [world.identity.timeline_id]


def test_an_unknown_branch_and_a_world_that_is_not_there_are_told(data: Path, public_tmp: Path) -> None:
    result = run_dev(data, "--branch", "nope", "--exit-when-ready")
    assert (result.returncode, "there is no branch 'nope'" in result.stderr) == (1, True)
    for arguments in (("branch", "x"), ("branch", "--list"), ("--branch", "x")):
        result = run_dev(public_tmp / "nothing", *arguments)
        assert (result.returncode, "holds no world yet" in result.stderr) == (1, True)
    assert not (public_tmp / "nothing").exists()
    assert run_dev(data, "branch").returncode == 2
    assert run_dev(data, "branch", "x", "--at", "soon").returncode == 2


def test_a_world_of_part_one_still_opens(world: World) -> None:
    """It has no branches in world.json and no WAL beside its snapshots."""
    identity = known_identity(world.directory)
    assert identity is not None
    old = {name: getattr(identity, name) for name in ("tenant_id", "timeline_id", "postgres_major")}
    (world.directory / "world.json").write_text(json.dumps(old))
    for path in world.timeline.wal.directory.iterdir():
        path.unlink()
    world.timeline.wal.directory.rmdir()
    with running_dev(world.directory) as main:
        run(main, "CREATE TABLE shared AS SELECT 1 AS number")
        main.kill_everything()
    with running_dev(world.directory) as main:
        assert rows(main) == [1]
        assert main.interrupt() == 0


def test_the_tree_of_the_world_is_chosen_without_being_told(data: Path, major: int) -> None:
    result = run_dev(data, "--exit-when-ready", "--postgres", str(next(m for m in binaries.MAJORS if m != major)))
    assert (result.returncode, f"was made for Postgres {major}" in result.stderr) == (1, True)
    assert run_dev(data, "--exit-when-ready").returncode == 0
