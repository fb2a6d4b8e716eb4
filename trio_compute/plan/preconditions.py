"""What must hold before a start may touch PGDATA (contract 04 §4, F-19)."""

from __future__ import annotations

from trio_compute.errors import SpecError
from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.audit import is_audit_shipped
from trio_compute.plan.lakebase import lakebase_port
from trio_compute.settings import Settings


def require_startable(parsed: ParsedSpec, settings: Settings) -> None:
    """Raise SpecError if this process cannot start what the spec wants; only at a start, not when reconfigured."""
    endpoints = (settings.audit_logging_endpoint, settings.audit_logging_tls_endpoint)
    if is_audit_shipped(parsed.spec) and not any(endpoints):
        level = parsed.spec.audit_log_level.value
        raise SpecError(
            f"AUDIT_LOGGING_ENDPOINT and AUDIT_LOGGING_TLS_ENDPOINT are both empty (audit_log_level is {level})"
        )
    lakebase_port(settings)
