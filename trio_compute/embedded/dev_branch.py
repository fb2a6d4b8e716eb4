"""`trio-compute dev branch`: make and list the branches of a world."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trio_compute.embedded import binaries
from trio_compute.embedded.branches import MAIN, Identity, known_identity
from trio_compute.embedded.progress import Progress
from trio_compute.embedded.world import World, default_data_directory
from trio_compute.errors import ComputeError, HostError, UsageError, cause_chain
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import Lsn


def run_branch(argv: Sequence[str], progress: Progress) -> int:
    """Run the sub-command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(list(argv))
    try:
        directory = (options.data or default_data_directory()).absolute()
        identity = known_identity(directory)
        if identity is None:
            raise HostError(f"{directory} holds no world yet; `trio-compute dev` makes one")
        if options.list:
            sys.stdout.write(_table(_open(directory, identity, MAIN)))
        else:
            _make(directory, identity, options, progress)
    except UsageError as error:
        parser.error(str(error))
    except ComputeError as error:
        progress.say(f"error: {cause_chain(error)}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trio-compute dev branch",
        description="Make a branch: a timeline of its own that begins with what another one held. "
        "`trio-compute dev --branch NAME` runs a compute on it.",
    )
    add = parser.add_argument
    add("name", metavar="NAME", nargs="?", help="letters and digits, and after the first . _ -")
    add("--at", metavar="LSN", help="begin with the state at this LSN (default: the last state)")
    add("--from", metavar="BRANCH", dest="parent", default=MAIN, help=f"the parent (default {MAIN})")
    add("--data", metavar="DIR", type=Path, help=f"state of the world (default {default_data_directory()})")
    add("--list", action="store_true", help="list the branches and the LSNs that can be branched from and read at")
    return parser


def _open(directory: Path, identity: Identity, branch: str) -> World:
    tree = binaries.ensure(identity.postgres_major)
    user = binaries.ordinary_user()
    run_as = RunAs() if user is None else RunAs(user.pw_uid, user.pw_gid, user.pw_dir)
    return World(directory, tree, identity.postgres_major, run_as, branch=branch)


def _make(directory: Path, identity: Identity, options: argparse.Namespace, progress: Progress) -> None:
    if options.list or options.name is None:
        raise UsageError("a NAME is needed, or --list")
    try:
        at = None if options.at is None else Lsn.parse(options.at)
    except ValueError as error:
        raise UsageError(f"--at: {error}") from None
    world = _open(directory, identity, options.parent)
    lsn = world.make_branch(options.name, at)
    where = "the last state" if at is None else f"the state at {at}"
    progress.say(f"branch {options.name} begins with {where} of {options.parent}; its first snapshot is at {lsn}")
    data = "" if options.data is None else f" --data {options.data}"
    progress.say(f"run it: trio-compute dev --branch {options.name}{data}")


def _table(world: World) -> str:
    identity = world.identity
    rows = [("branch", "parent", "from", "readable", "timeline")]
    parents = {branch.name: (branch.parent, branch.lsn) for branch in identity.branches}
    for name in (MAIN, *parents):
        timeline_id = identity.timeline_of(name)
        first, last = world.timelines[identity.tenant_id, timeline_id].readable()
        rows.append((name, *parents.get(name, ("", "")), f"{first} … {last}", timeline_id))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "".join(line.rstrip() + "\n" for line in lines)
