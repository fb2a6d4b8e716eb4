"""Real Postgres, real sockets, real child processes: one seeded world per major version, copied for each test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from conftest import MAJORS
from tests.integration.bare_postgres import BarePostgres, bare_postgres
from tests.integration.compute import Rig
from trio_compute.embedded import binaries
from trio_compute.embedded.services import open_services
from trio_compute.embedded.world import World
from trio_compute.host.run_as import RunAs


def ordinary_run_as() -> RunAs:
    user = binaries.ordinary_user()
    return RunAs() if user is None else RunAs(user.pw_uid, user.pw_gid, user.pw_dir)


@pytest.fixture(scope="session", params=MAJORS, ids=lambda major: f"pg{major}")
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="session")
def seeded_world(major: int) -> Iterator[Path]:
    """Make a world with one snapshot; tests copy its directory."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/var/tmp"
    directory = Path(tempfile.mkdtemp(prefix="trio-compute-seed-", dir=base))
    World(directory, binaries.ensure(major), major, ordinary_run_as()).seed()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def server(major: int) -> Iterator[BarePostgres]:
    """Run one bare Postgres of each major version; tests use names of their own."""
    yield from bare_postgres(binaries.ensure(major), ordinary_run_as())


@pytest.fixture
def world(seeded_world: Path, major: int, public_tmp: Path) -> World:
    directory = public_tmp / "world"
    shutil.copytree(seeded_world, directory, symlinks=True)
    return World(directory, binaries.ensure(major), major, ordinary_run_as())


@pytest.fixture
async def rig(world: World) -> AsyncIterator[Rig]:
    """Run the embedded services and make computes on demand; nothing of them may be left at the end."""
    answers: dict[str, dict[str, Any]] = {}
    async with open_services(world, answer=answers.get) as addresses:
        rig = Rig(world, addresses, answers)
        yield rig
    assert rig.leftovers() == []


@pytest.fixture
def sql() -> Any:
    """Return a function that runs one statement over a connection of its own, in the calling thread."""

    def run(connstr: str, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(connstr, autocommit=True, sslmode="disable") as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    return run
