"""`trio-compute status`: what a compute does, now or as it happens."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

from msgspec import UNSET, UnsetType

from trio_compute.client import ComputeClient, Event
from trio_compute.commands.asking import asking_parser, print_json, run_asking
from trio_compute.commands.terminal import BOLD, DIM, GREEN, RED, YELLOW, Paint, printable, say
from trio_compute.model.responses import PassageResponse, StatusResponse

_STYLES = {"running": (GREEN, BOLD), "failed": (RED, BOLD), "terminated": (BOLD,), "empty": (BOLD,)}
_SHOWN_PASSAGES = 5


def run_status(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the status of a compute, with `--watch` also what follows; return the exit code."""
    parser = asking_parser("status", "Tell what a compute does.")
    parser.add_argument("--watch", action="store_true", help="go on telling what happens, until it ends or Ctrl-C")
    return run_asking(parser, argv, environ, _ask)


def _ask(client: ComputeClient, arguments: argparse.Namespace, paint: Paint) -> None:
    if not arguments.watch:
        _show(client.status(), arguments, paint)
        return
    # First the stream, then the status: nothing can happen in between unseen.
    with client.events() as events:
        _show(client.status(), arguments, paint)
        for event in events:
            if arguments.json:
                print_json({"event": event.kind, "number": event.number, "data": event.data}, pretty=False)
            else:
                say(event_text(event, paint))


def _show(status: StatusResponse, arguments: argparse.Namespace, paint: Paint) -> None:
    if arguments.json:
        print_json(status, pretty=not arguments.watch)
    else:
        say(status_text(status, paint))


def status_text(status: StatusResponse, paint: Paint) -> str:
    """Return lines for people about a status; what a compute says is made harmless to a terminal."""
    rows = [f"  {name:<18}{value}" for name, value in _rows(status, paint)]
    return "\n".join([_name(status.status, paint), *rows, *_passages(status.history, paint)])


def _rows(status: StatusResponse, paint: Paint) -> Iterator[tuple[str, str]]:
    """Yield what there is to say, with its name."""
    said: tuple[tuple[str, str | UnsetType | None, tuple[int, ...]], ...] = (
        ("started", _moment(status.start_time), ()),
        ("tenant", status.tenant, ()),
        ("timeline", status.timeline, ()),
        ("last active", status.last_active and _moment(status.last_active), ()),
        ("now", _phase(status), ()),
        ("waits for restart", ", ".join(names_that_wait(status)), (YELLOW,)),
        ("migrations", status.migration_error, (RED,)),
        ("databases", databases_that_failed(status), (RED,)),
        ("error", status.error, (RED,)),
    )
    yield from ((name, paint(printable(text), *styles)) for name, text, styles in said if text)


def databases_that_failed(status: StatusResponse) -> str:
    """Return which databases the last apply failed in, and why, on one line; empty if all is well."""
    return "; ".join(f"{each.database}: {each.error}" for each in status.databases_failed or ())


def _phase(status: StatusResponse) -> str | None:
    if status.phase is UNSET:
        return None
    return status.phase if status.phase_since is UNSET else f"{status.phase}, since {_moment(status.phase_since)}"


def names_that_wait(status: StatusResponse) -> list[str]:
    """Return the fields of the spec and the settings of Postgres that are not in force before a restart."""
    named = (status.restart_required, status.pending_restart)
    return [name for names in named if names is not UNSET for name in names]


def _passages(history: Sequence[PassageResponse], paint: Paint) -> Iterator[str]:
    if history:
        yield "  how it came to it"
    if len(history) > _SHOWN_PASSAGES:
        yield paint(f"    ({len(history) - _SHOWN_PASSAGES} earlier)", DIM)
    for passage in history[-_SHOWN_PASSAGES:]:
        yield f"    {_passage(passage.at, passage.source, passage.target, passage.event, paint)}"


def _passage(at: str, source: str, target: str, event: str, paint: Paint) -> str:
    return f"{_moment(at)}  {printable(source)} → {_name(target, paint)}  {paint(printable(event), DIM)}"


def event_text(event: Event, paint: Paint) -> str:
    """Return one line for people about something that happened."""
    data = event.data
    at = str(data.get("at", ""))
    match event.kind:
        case "transition":
            error = f"  {paint(printable(str(data['error'])), RED)}" if data.get("error") else ""
            source, target, cause = (str(data.get(name, "")) for name in ("from", "to", "event"))
            return _passage(at, source, target, cause, paint) + error
        case "phase":
            return f"{_moment(at)}  {_phase_text(data, paint)}"
        case _:
            rest = ", ".join(f"{name} {value}" for name, value in data.items() if name != "at")
            return f"{_moment(at)}  {printable(event.kind)}: {printable(rest)}"


def _phase_text(data: Mapping[str, object], paint: Paint) -> str:
    name, seconds = printable(str(data.get("name", ""))), data.get("duration_seconds")
    if not isinstance(seconds, int | float):
        return paint(f"{name} …", DIM)
    end = paint("failed after", RED) if data.get("failed") else "took"
    return f"{name} {end} {seconds * 1000:.0f} ms"


def _name(status: str, paint: Paint) -> str:
    return paint(printable(status.replace("_", "-")), *_STYLES.get(status, (YELLOW, BOLD)))


def _moment(text: str) -> str:
    """Return an RFC 3339 time without what nobody reads."""
    day, _, rest = printable(text).partition("T")
    return f"{day} {rest.partition('.')[0].partition('+')[0].removesuffix('Z')} UTC" if rest else day
