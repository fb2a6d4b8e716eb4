"""Shell scripts that stand for the programs of an installation."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent


def install_program(directory: Path, name: str, script: str) -> Path:
    """Write an executable script and return its path."""
    path = directory / name
    path.write_text("#!/bin/sh\n" + dedent(script))
    path.chmod(0o755)
    return path
