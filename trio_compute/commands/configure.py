"""`trio-compute configure`: brings a compute to what a configuration wants, or tells what that would do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import UNSET

from trio_compute.client import ComputeClient
from trio_compute.commands.asking import asking_parser, print_json, run_asking
from trio_compute.commands.preview_text import preview_text
from trio_compute.commands.terminal import RED, YELLOW, Paint, printable, say
from trio_compute.errors import UsageError
from trio_compute.model.responses import StatusResponse


def run_configure(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Send a configuration to a compute and wait until it is in force; return the exit code."""
    parser = asking_parser("configure", "Bring a compute to what a configuration wants, and wait until it is so.")
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help="config.json, bare spec, or answer of a control plane; - reads standard input",
    )
    add("--dry-run", action="store_true", help="tell what would be done, and do nothing")
    add("--idempotency-key", metavar="TEXT", help="a repetition with the same text finds the result of the first")
    return run_asking(parser, argv, environ, _ask)


def _ask(client: ComputeClient, arguments: argparse.Namespace, paint: Paint) -> None:
    body = _body(arguments.file)
    if arguments.dry_run:
        preview = client.configure_dry_run(body)
        print_json(preview) if arguments.json else say(preview_text(preview))
        return
    status = client.configure(body, idempotency_key=arguments.idempotency_key)
    print_json(status) if arguments.json else say(_result_text(status, paint))


def _body(name: str) -> bytes:
    """Return what is posted; a bare spec is put where `/configure` expects it. Raise UsageError that names the file."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"FILE: cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    try:
        members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"FILE: {name} is not a JSON object: {error}") from None
    if "spec" not in members and "cluster" in members:
        return msgspec.json.encode({"spec": msgspec.Raw(data)})
    if bytes(members.get("spec", b"null")) == b"null":
        raise UsageError(f"FILE: {name} holds no spec; `trio-compute validate` tells more")
    return data


def _result_text(status: StatusResponse, paint: Paint) -> str:
    lines = [f"{printable(status.status.replace('_', '-'))}: the configuration is in force"]
    waiting = [
        name for names in (status.restart_required, status.pending_restart) if names is not UNSET for name in names
    ]
    if waiting:
        lines.append(paint(f"waits for a restart: {printable(', '.join(waiting))}", YELLOW))
    if status.migration_error is not UNSET:
        lines.append(paint(f"migrations failed: {printable(status.migration_error)}", RED))
    return "\n".join(lines)
