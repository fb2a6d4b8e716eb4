"""GET /metrics, /metrics.json and /spans: what was measured (contract 03 §5, §7)."""

from __future__ import annotations

from types import ModuleType

import trio

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.lifecycle.compute import Compute
from trio_compute.telemetry.logging import sink
from trio_compute.telemetry.metrics import ATTACHED, EVENTS_DROPPED, UP, metrics


async def metrics_text(context: Context, _request: Request) -> Answer:
    """Answer with all metrics in Prometheus' text format."""
    # Only the import may take long; the values are read here, where nobody changes them meanwhile.
    module = await trio.to_thread.run_sync(_load_exposition)
    _describe(context.compute)
    return Answer(200, module.exposition(metrics), module.CONTENT_TYPE)


def _describe(compute: Compute) -> None:
    """Set what is a view of the state, now, so that it is never out of date (D-36)."""
    settings, state = compute.settings, compute.state
    metrics.replace(UP, {(settings.build_tag, state.status.kebab): 1})
    is_attached = settings.lakebase_mode and settings.instance_id is not None and state.spec is not None
    spec = state.spec
    if is_attached and spec is not None:
        names = (settings.compute_id, settings.instance_id or "", str(spec.tenant_id), str(spec.timeline_id))
        metrics.replace(ATTACHED, {names: 1})
    else:
        metrics.replace(ATTACHED, {})
    metrics.replace(EVENTS_DROPPED, {(): sink.dropped})


def _load_exposition() -> ModuleType:
    from trio_compute.telemetry import exposition

    return exposition


async def metrics_json(context: Context, _request: Request) -> Answer:
    """Answer with the thirteen numbers of the start (contract 02 §4.2)."""
    await trio.lowlevel.checkpoint()
    return ok(context.compute.spans.metrics())


async def spans(context: Context, _request: Request) -> Answer:
    """Answer with the measured phases, for people who look at a start-up."""
    await trio.lowlevel.checkpoint()
    return ok([*context.compute.spans.spans])
