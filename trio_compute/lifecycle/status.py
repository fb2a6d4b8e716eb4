"""The eleven statuses of a compute (contract 02 §1)."""

from __future__ import annotations

import enum


class Status(enum.Enum):
    """Name a status; the value is its JSON form."""

    EMPTY = "empty"
    CONFIGURATION_PENDING = "configuration_pending"
    INIT = "init"
    RUNNING = "running"
    CONFIGURATION = "configuration"
    FAILED = "failed"
    REFRESH_CONFIGURATION_PENDING = "refresh_configuration_pending"
    REFRESH_CONFIGURATION = "refresh_configuration"
    TERMINATION_PENDING_FAST = "termination_pending_fast"
    TERMINATION_PENDING_IMMEDIATE = "termination_pending_immediate"
    TERMINATED = "terminated"

    @property
    def kebab(self) -> str:
        """Return the form used in error texts and metric labels."""
        return self.value.replace("_", "-")


TERMINATION_PENDING = frozenset({Status.TERMINATION_PENDING_FAST, Status.TERMINATION_PENDING_IMMEDIATE})
