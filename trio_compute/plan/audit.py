"""The audit block of postgresql.conf and what an audit level asks for (contract 04 §4)."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from trio_compute.model.spec import Cluster, ComputeAudit, ComputeSpec
from trio_compute.plan.conf_syntax import effective_settings, fold, join_list, quote, split_libraries, split_list

_LIBRARIES = "shared_preload_libraries"
_DEFAULT_LIBRARIES = "neon"


class AuditLevel(Struct, frozen=True, kw_only=True):
    """Hold what one level writes; `is_shipped` if its log must be sent to an endpoint."""

    begin: str
    end: str
    lines: tuple[str, ...]
    libraries: tuple[str, ...]
    is_shipped: bool = False


def _shipped(parameters: str, classes: str) -> AuditLevel:
    return AuditLevel(
        begin="# Managed by compute_ctl compliance audit settings: begin",
        end="# Managed by compute_ctl compliance audit settings: end",
        lines=(
            f"pgaudit.log_parameter={parameters}",
            f"pgaudit.log='{classes}'",
            "pgaudit.log_catalog=off",
            "pgaudit.log_rotation_age=5",
        ),
        libraries=("pgaudit", "pgauditlogtofile"),
        is_shipped=True,
    )


_BASE = AuditLevel(
    begin="# Managed by compute_ctl base audit settings: start",
    end="# Managed by compute_ctl base audit settings: end",
    lines=("pgaudit.log='ddl,role'", "pgaudit.log_catalog=off"),
    libraries=("pgaudit",),
)
_EXTENDED = _shipped("off", "all, -misc")
_FULL = _shipped("on", "all")

LEVELS: dict[ComputeAudit, AuditLevel | None] = {
    ComputeAudit.DISABLED: None,
    ComputeAudit.LOG: _BASE,
    ComputeAudit.BASE: _BASE,
    ComputeAudit.HIPAA: _EXTENDED,
    ComputeAudit.EXTENDED: _EXTENDED,
    ComputeAudit.FULL: _FULL,
}


def audit_lines(spec: ComputeSpec) -> Iterator[str]:
    """Yield the lines of the block; none if auditing is off."""
    level = LEVELS[spec.audit_log_level]
    if level is None:
        return
    yield level.begin
    yield from level.lines
    yield f"{_LIBRARIES}={quote(_with_members(_libraries(spec.cluster), level.libraries))}"
    yield level.end


def is_audit_shipped(spec: ComputeSpec) -> bool:
    """Tell whether the audit log of this level must be sent to an endpoint."""
    level = LEVELS[spec.audit_log_level]
    return level is not None and level.is_shipped


def _libraries(cluster: Cluster) -> str:
    """Return the list that would be in force without the block (F-08)."""
    managed = [option.value for option in cluster.settings or () if fold(option.name) == _LIBRARIES]
    given = [value for value in managed if value is not None]
    if given:
        return given[-1]
    return effective_settings(cluster.postgresql_conf or "").get(_LIBRARIES, _DEFAULT_LIBRARIES)


def _with_members(text: str, wanted: tuple[str, ...]) -> str:
    """Return a list with what it lacks at its end (F-05, F-07)."""
    members, present = split_list(text), split_libraries(text)
    return join_list([*members, *(member for member in wanted if member not in present)])
