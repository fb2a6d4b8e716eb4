"""GET /status (contract 03 §4)."""

from __future__ import annotations

from msgspec import UNSET

from trio_compute.lifecycle.compute import Compute
from trio_compute.model.decode import encode
from trio_compute.model.responses import StatusResponse, last_active_text, start_time_text
from trio_compute.telemetry.redaction import redact


def status_response(compute: Compute) -> StatusResponse:
    """Return the answer that describes a compute."""
    state, notices = compute.state, compute.notices
    return StatusResponse(
        start_time=start_time_text(state.start_time),
        tenant=state.spec.tenant_id if state.spec else None,
        timeline=state.spec.timeline_id if state.spec else None,
        status=state.status.value,
        last_active=last_active_text(state.last_active) if state.last_active else None,
        error=redact(state.error) if state.error is not None else None,
        restart_required=state.restart_required or UNSET,
        pending_restart=notices.pending_restart or UNSET,
        migration_error=UNSET if notices.migration_error is None else redact(notices.migration_error),
    )


def status_body(compute: Compute) -> bytes:
    """Return the same as JSON."""
    return encode(status_response(compute))
