"""The ordinary user that owns PGDATA and runs Postgres when we are root."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

from msgspec import Struct

from trio_compute.errors import UsageError

DEFAULT_USER = "postgres"


class RunAs(Struct, frozen=True):
    """Name a user; without ids it is simply who we are."""

    uid: int | None = None
    gid: int | None = None
    home: str | None = None

    @property
    def owner(self) -> tuple[int, int] | None:
        """Return uid and gid that new files must get, or None when they need no change."""
        return None if self.uid is None or self.gid is None else (self.uid, self.gid)

    def process_options(self) -> dict[str, Any]:
        """Return the options that start a child as this user."""
        return {} if self.owner is None else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give a file, directory or link to this user."""
        if self.owner is not None:
            os.chown(path, *self.owner, follow_symlinks=False)


def resolve_run_as(name: str | None) -> RunAs:
    """Return the user for Postgres: ourselves unless root, then `name`, else `postgres`; raise UsageError if none."""
    if os.geteuid() != 0:
        if name is not None and pwd.getpwuid(os.geteuid()).pw_name != name:
            raise UsageError(f"--run-as {name}: only root can start Postgres as another user")
        return RunAs()
    try:
        entry = pwd.getpwnam(DEFAULT_USER if name is None else name)
    except KeyError:
        if name is None:
            raise UsageError("started as root: name an ordinary user for Postgres with --run-as") from None
        raise UsageError(f"--run-as {name}: no such user") from None
    if entry.pw_uid == 0:
        raise UsageError(f"--run-as {entry.pw_name}: Postgres does not run as root")
    return RunAs(entry.pw_uid, entry.pw_gid, entry.pw_dir)
