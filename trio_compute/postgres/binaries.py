"""Find Postgres' programs from --pgbin (contract 01 §1.2, 04 F-25)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trio_compute.errors import HostError


def resolve_pgbin(pgbin: str) -> Path:
    """Return the Postgres binary as an absolute path, a bare name looked up in PATH; raise HostError if unusable."""
    found = shutil.which(pgbin) if "/" not in pgbin else pgbin
    if found is None:
        raise HostError(f"--pgbin {pgbin}: not found in PATH")
    path = Path(found).absolute()
    if not path.is_file():
        raise HostError(f"--pgbin {pgbin}: no such file")
    if not os.access(path, os.X_OK):
        raise HostError(f"--pgbin {pgbin}: not executable")
    return path


def sibling(pgbin: Path, name: str) -> Path:
    """Return another program of the same installation: beside the binary, beside its real file, else from PATH."""
    for directory in (pgbin.parent, pgbin.resolve().parent):
        candidate = directory / name
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    found = shutil.which(name)
    if found is None:
        raise HostError(f"{name} is neither beside {pgbin} nor in PATH")
    return Path(found)
