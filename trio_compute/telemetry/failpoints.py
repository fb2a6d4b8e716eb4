"""Places where a test may make the program fail; they do nothing unless it was started with --testing (01 §2)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from trio_compute.errors import UsageError

NAMES = frozenset({"compute-migration", "compute-prewarm", "compute-promotion"})
EXIT_CODE = 1
_ACTION = re.compile(r"\A(?:return(?:\((?P<value>[^()]*)\))?|exit|off)\Z")


class Failpoints:
    """Hold what shall happen where."""

    def __init__(self) -> None:
        self._actions: dict[str, str] = {}

    def configure(self, actions: Mapping[str, str]) -> None:
        """Set actions by name: `return`, `return(TEXT)`, `exit`, or `off`; raise UsageError for anything else."""
        for name, action in actions.items():
            if name not in NAMES:
                raise UsageError(f"unknown failpoint {name[:40]!r}")
            if _ACTION.match(action) is None:
                raise UsageError(f"failpoint {name} cannot do {action[:40]!r}")
        self._actions |= actions

    def configure_text(self, text: str) -> None:
        """Set actions written as `name=action;name=action`."""
        pairs = [part.partition("=") for part in text.split(";") if part.strip()]
        self.configure({name.strip(): action.strip() for name, _, action in pairs})

    def returns(self, name: str) -> str | None:
        """Return what the failpoint returns, or None if it is off; `exit` ends the process on the spot."""
        action = self._actions.get(name, "off")
        if action == "exit":
            os._exit(EXIT_CODE)
        match = _ACTION.match(action)
        return None if action == "off" or match is None else match["value"] or ""


failpoints = Failpoints()
