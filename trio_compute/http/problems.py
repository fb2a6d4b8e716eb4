"""Errors of the HTTP API: one exception, one place that maps all others to status and text (contract 03 §2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import trio
from msgspec import UNSET, structs

from trio_compute.errors import ComputeError, Conflicting, NotFound, PostgresError, SpecError, TimedOut, cause_chain
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import TERMINATION_PENDING, Status
from trio_compute.lifecycle.transitions import IllegalTransition
from trio_compute.model.catalog_options import MAX_NAME_BYTES
from trio_compute.model.catalog_rules import is_possible_name
from trio_compute.model.decode import MalformedJson, encode
from trio_compute.model.responses import ErrorResponse
from trio_compute.plan.catalog.failures import Failure
from trio_compute.services.errands import Ended
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.redaction import redact

CONTENT_TYPE = "application/json"

log = get_logger("http")


class Problem(Exception):
    """Answer a request with an error status and a text."""

    def __init__(self, status: int, text: str, failures: Sequence[Failure] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.failures = failures

    def log_and_encode(self) -> bytes:
        """Log the problem, as is the rule for all, and return its JSON body without secrets."""
        note = log.error if self.status >= 500 else log.info
        note("request refused", code=self.status, error=self)
        failures = [_redacted(failure) for failure in self.failures]
        return encode(ErrorResponse(error=redact(str(self)), failures=failures or UNSET))


def _redacted(failure: Failure) -> dict[str, str | None]:
    return {name: value and redact(value) for name, value in structs.asdict(failure).items()}


_STATUS_OF: Mapping[type[ComputeError], int] = {NotFound: 404, Conflicting: 409, TimedOut: 504}


def problem_of(error: Exception, path: str) -> Problem:
    """Return how an error is answered; one that nobody foresaw is a defect, whose text goes to the log alone."""
    match error:
        case Problem():
            return error
        case IllegalTransition():
            return wrong_status(error.status)
        case Ended():
            return Problem(503, str(error))
        case SpecError():
            return Problem(400, str(error))
        case trio.TooSlowError():
            return Problem(504, "timed out")
        case ComputeError():
            return Problem(_STATUS_OF.get(type(error), 500), cause_chain(error))
        case _:
            log.error("handler failed", path=path, error=cause_chain(error))
            return Problem(500, "internal error")


@contextmanager
def explained(prefix: str) -> Iterator[None]:
    """Say before the text of a failure of Postgres what was being done; `timed out` stays as it is (A-15)."""
    try:
        yield
    except TimedOut:
        raise
    except PostgresError as error:
        raise Problem(_STATUS_OF.get(type(error), 500), f"{prefix}: {cause_chain(error)}") from None


def require_names(**names: str) -> None:
    """Raise the 400 of a name that Postgres would cut or refuse (A-17)."""
    for what, name in names.items():
        if not is_possible_name(name):
            raise Problem(400, f"{what} must have 1 to {MAX_NAME_BYTES} bytes and no NUL")


def unacceptable_body(error: SpecError) -> Problem:
    """Return the problem of a body that is not JSON (400) or has a wrong shape (422)."""
    if isinstance(error, MalformedJson):
        return Problem(400, f"failed to parse the request body as json: {error}")
    return Problem(422, f"failed to deserialize the json body into the target type: {error}")


def body_too_large() -> Problem:
    """Return the problem of a body beyond the limit of its route."""
    return Problem(413, "failed to buffer the request body: length limit exceeded")


def wrong_status(status: Status) -> Problem:
    """Return the problem of a request that the present status does not allow."""
    return Problem(412, f"invalid compute status: {status.kebab}")


def require_postgres(compute: Compute) -> None:
    """Raise the 412 of a request that needs a Postgres that runs, whatever the status is beside that (03 §5.5)."""
    status = compute.state.status
    if not compute.postgres_running or status in TERMINATION_PENDING:
        raise wrong_status(status)


def require_running(compute: Compute) -> None:
    """Raise the 412 of a request that needs a running compute."""
    if compute.state.status is not Status.RUNNING:
        raise wrong_status(compute.state.status)
