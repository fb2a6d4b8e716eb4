"""What the commands share that talk to a running compute: where it is, the token, what errors look like, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from trio_compute.client import ApiError, ComputeClient, UnexpectedAnswer, Unreachable
from trio_compute.client.core import DEFAULT_URL
from trio_compute.commands.terminal import Paint, printable, say
from trio_compute.errors import ComputeError, UsageError
from trio_compute.telemetry.redaction import redact

TOKEN_VARIABLE = "TRIO_COMPUTE_TOKEN"  # noqa: S105  (the name of a variable)
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130
EPILOG = (
    "Exit code: 0 done, 1 the compute refused or failed, 2 wrong command line, file or token, "
    "3 no compute answers there, 130 interrupted."
)

Ask = Callable[[ComputeClient, argparse.Namespace, Paint], None]


def asking_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that all these commands have."""
    parser = argparse.ArgumentParser(
        prog=f"trio-compute {name}", description=description, epilog=EPILOG, allow_abbrev=False
    )
    add = parser.add_argument
    add("--url", default=DEFAULT_URL, help=f"the compute's external server (default {DEFAULT_URL})")
    add("--token-file", metavar="FILE", type=Path, help=f"holds the token (default: environment {TOKEN_VARIABLE})")
    add("--json", action="store_true", help="print JSON, for programs")
    return parser


def run_asking(parser: argparse.ArgumentParser, argv: Sequence[str], environ: Mapping[str, str], ask: Ask) -> int:
    """Parse a command line, ask a compute, and return the exit code; whatever goes wrong is told in one line."""
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return 0 if stop.code in {None, 0} else EXIT_USAGE
    try:
        with _client(arguments, environ) as client:
            ask(client, arguments, Paint(sys.stdout, environ))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except ComputeError as error:
        _complain(parser.prog, error, arguments)
        return _exit_code(error)
    return 0


def print_json(value: object, *, pretty: bool = True) -> None:
    """Print a value for programs; `pretty` spreads it over lines."""
    data = msgspec.json.encode(value)
    say((msgspec.json.format(data) if pretty else data).decode())


def _client(arguments: argparse.Namespace, environ: Mapping[str, str]) -> ComputeClient:
    source, token = _token(arguments.token_file, environ)
    redact.learn([token])
    try:
        ComputeClient(arguments.url)
    except UsageError as error:
        raise UsageError(f"--url: {error}") from None
    try:
        return ComputeClient(arguments.url, token=token)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def _token(path: Path | None, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return where the token comes from and the token; never from the command line, which everybody can read."""
    if path is None:
        return TOKEN_VARIABLE, environ.get(TOKEN_VARIABLE) or None
    try:
        return "--token-file", path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"--token-file: cannot read {path}: {reason}") from None


def _complain(prog: str, error: ComputeError, arguments: argparse.Namespace) -> None:
    if arguments.json and isinstance(error, ApiError):
        failures = {"failures": error.failures} if error.failures else {}
        print_json({"error": error.text, "http_status": error.status, **failures})
        return
    lines = [f"{prog}: {printable(redact(str(error)))}"]
    if isinstance(error, ApiError):
        lines += [f"  {_failure_text(failure)}" for failure in error.failures]
        if error.status == 400 and error.text == "invalid authorization token":
            lines += [f"  give a token: --token-file FILE, or environment {TOKEN_VARIABLE}"]
    sys.stderr.write("\n".join(lines) + "\n")


def _failure_text(failure: Mapping[str, str | None]) -> str:
    what = f"{failure.get('operation')} {failure.get('object')}, database {failure.get('database')}"
    state = f" (SQLSTATE {failure['sqlstate']})" if failure.get("sqlstate") else ""
    return printable(redact(f"{what}: {failure.get('message')}{state}"))


def _exit_code(error: ComputeError) -> int:
    match error:
        case UsageError():
            return EXIT_USAGE
        case Unreachable() | UnexpectedAnswer():
            return EXIT_UNREACHABLE
        case _:
            return EXIT_REFUSED


def _reader_left() -> int:
    """End quietly when whoever read our output has gone, as `head` does."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    return EXIT_REFUSED
