"""What an embedded world is called, and which branches it has: `world.json`."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from trio_compute.errors import HostError
from trio_compute.host.files import write_atomically
from trio_compute.host.run_as import RunAs

MAIN = "main"

_NAME = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


class Branch(Struct, frozen=True):
    """Hold a branch: its timeline, and the LSN up to which it shares its parent's history."""

    name: str
    timeline_id: str
    parent: str
    lsn: str


class Identity(Struct, frozen=True):
    """Hold what a world is called; `timeline_id` is the main branch's."""

    tenant_id: str
    timeline_id: str
    postgres_major: int
    branches: tuple[Branch, ...] = ()

    def timeline_of(self, branch: str) -> str:
        """Return the timeline of a branch; raise HostError if there is no such branch."""
        for known in self.branches:
            if known.name == branch:
                return known.timeline_id
        if branch == MAIN:
            return self.timeline_id
        raise HostError(f"there is no branch {branch!r}; `trio-compute dev branch {branch}` makes it")

    def require_free(self, name: str) -> None:
        """Raise HostError unless a new branch may have this name."""
        if _NAME.match(name) is None:
            raise HostError(f"{name[:80]!r} is no name for a branch: letters and digits, and after the first . _ -")
        if name == MAIN or any(branch.name == name for branch in self.branches):
            raise HostError(f"there is a branch {name!r} already")


def load_identity(directory: Path, major: int) -> Identity:
    """Return the identity of the world in a directory, made the first time; raise HostError if it is of another major.

    A file of part 1 has no branches; one of ours read by part 1 is a world with its main branch only.
    """
    identity = known_identity(directory)
    if identity is None:
        identity = Identity(secrets.token_hex(16), secrets.token_hex(16), major)
        _write(directory, identity)
    if identity.postgres_major != major:
        raise HostError(f"{directory} was made for Postgres {identity.postgres_major}, not {major}")
    return identity


def known_identity(directory: Path) -> Identity | None:
    """Return the identity of the world in a directory, or None while there is no world."""
    path = directory / "world.json"
    return msgspec.json.decode(path.read_bytes(), type=Identity) if path.exists() else None


def add_branch(directory: Path, branch: Branch) -> Identity:
    """Write a new branch down and return the identity with it; raise HostError if the name was taken meanwhile."""
    with exclusive(directory / "branches.lock"):
        identity = known_identity(directory)
        assert identity is not None
        identity.require_free(branch.name)
        identity = structs.replace(identity, branches=(*identity.branches, branch))
        _write(directory, identity)
        return identity


def _write(directory: Path, identity: Identity) -> None:
    write_atomically(directory / "world.json", msgspec.json.encode(identity).decode(), RunAs(), mode=0o644)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock that a file stands for, waiting for it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
