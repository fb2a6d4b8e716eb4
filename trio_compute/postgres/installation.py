"""What an installation of Postgres says about itself, asked of its pg_config (contract 01 §1.2, 06 R-22)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trio
from msgspec import Struct

from trio_compute.errors import HostError
from trio_compute.host.process import run_command
from trio_compute.host.run_as import RunAs
from trio_compute.plan.remote_extensions import pg_major
from trio_compute.postgres.binaries import sibling
from trio_compute.postgres.extension_staging import Places
from trio_compute.storage.texts import brief

PATIENCE_SECONDS = 10.0


class Installation(Struct, frozen=True):
    """Hold version and directories; `major` is None for one that there are no archives for."""

    version: str
    major: int | None
    places: Places


async def inspect_installation(pgbin: Path, *, environ: Mapping[str, str], run_as: RunAs) -> Installation:
    """Ask the pg_config beside the Postgres binary; raise HostError if it is missing, fails or says nothing usable."""
    program = sibling(pgbin, "pg_config")
    argv = [str(program), "--version", "--sharedir", "--pkglibdir"]
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            output = await run_command(argv, environ={**environ, "LC_ALL": "C"}, run_as=run_as)
    except trio.TooSlowError:
        raise HostError(f"{program} took longer than {PATIENCE_SECONDS:g} s") from None
    lines = output.stdout.decode(errors="replace").splitlines()
    if output.returncode != 0 or len(lines) != 3:
        said = brief(output.stderr.decode(errors="replace") or output.stdout.decode(errors="replace"))
        raise HostError(f"{program} failed with code {output.returncode}: {said}")
    version, share, library = lines
    return Installation(version, pg_major(version), Places(Path(share) / "extension", Path(library)))
