"""Which changes of a spec a running compute cannot take over (contract 02 D-47, D-48)."""

from __future__ import annotations

from collections.abc import Iterable

from trio_compute.model.parsed import ParsedSpec

_PLACE = ("tenant_id", "timeline_id")
_IDENTITY = (*_PLACE, "mode")

# Postgres, or a part of ours that only looks at its start, reads these once.
_START_ONLY = (
    *("storage_auth_token", "project_id", "branch_id", "endpoint_id", "audit_log_level", "remote_extensions"),
    *("swap_size_bytes", "disk_quota_bytes", "disable_lfc_resizing", "autoprewarm"),
    *("features", "databricks_settings"),
)


def changed_identity(current: ParsedSpec, wanted: ParsedSpec) -> str | None:
    """Return the first field that would turn a running compute into another one, or None."""
    return _first_difference(_IDENTITY, current, wanted)


def changed_place(current: ParsedSpec, wanted: ParsedSpec) -> str | None:
    """Return the first field that would turn it into a compute elsewhere; its mode may change, as by a promotion."""
    return _first_difference(_PLACE, current, wanted)


def _first_difference(fields: Iterable[str], current: ParsedSpec, wanted: ParsedSpec) -> str | None:
    return next((field for field in fields if getattr(current, field) != getattr(wanted, field)), None)


def restart_required(running: ParsedSpec, wanted: ParsedSpec) -> list[str]:
    """Return the fields whose new values take effect only at the next start."""
    return [field for field in _START_ONLY if getattr(running.spec, field) != getattr(wanted.spec, field)]
