"""POST /promote (contract 08 §6, 03 §5.3)."""

from __future__ import annotations

from trio_compute.errors import SpecError
from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import require_running
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.model.promotion import PromoteFailed
from trio_compute.plan.restart import changed_place
from trio_compute.services.apply_queue import Aborted
from trio_compute.services.errands import Ended
from trio_compute.telemetry.redaction import learn_spec


async def promote(context: Context, request: Request) -> Answer:
    """Make this replica the primary, or join a promotion that runs or has succeeded; answer with what became of it."""
    parsed = parse_spec(request.body.spec)
    learn_spec(parsed)
    if not parsed.is_primary:
        raise SpecError(f'compute mode "{parsed.mode}" of the new spec is not primary')
    require_running(context.compute)
    _require_same_place(context.compute.state.spec, parsed)
    outcome = await context.promotions.ask(parsed, Lsn.parse(request.body.wal_flush_lsn)).outcome()
    if isinstance(outcome, Aborted):
        raise Ended
    return ok(outcome, 500 if isinstance(outcome, PromoteFailed) else 200)


def _require_same_place(current: ParsedSpec | None, wanted: ParsedSpec) -> None:
    field = None if current is None else changed_place(current, wanted)
    if field is not None:
        raise SpecError(f"cannot change {field} of a running compute")
