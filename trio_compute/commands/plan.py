"""`trio-compute plan`: what applying a configuration would do, shown and not done (contract 05 K-34, 04 F-26)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from trio_compute.commands.inspection import inspect_configuration
from trio_compute.commands.preview_text import preview_text
from trio_compute.db.preview import Outlook, look_ahead
from trio_compute.db.target import Target
from trio_compute.deadlines import Deadlines
from trio_compute.errors import ComputeError, HostError, SpecError, cause_chain
from trio_compute.model.catalog_rules import SUPERUSER
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.model.spec import TlsConfig
from trio_compute.plan.catalog.operations import Plan
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.snapshot import fresh_snapshot
from trio_compute.plan.catalog.wanted import Wanted, wanted_of
from trio_compute.plan.conf_diff import changed_settings
from trio_compute.plan.conf_syntax import effective_settings, split_libraries
from trio_compute.plan.postgres_conf import ConfContext, render_postgresql_conf
from trio_compute.plan.preview import Preview, preview_of
from trio_compute.plan.tls import tls_in_use
from trio_compute.settings import DEFAULT_INTERNAL_PORT
from trio_compute.storage.control_plane import located_configuration
from trio_compute.telemetry.redaction import learn_spec, redact

PATIENCE_SECONDS = 300.0


def run_plan(argv: Sequence[str]) -> int:
    """Print the plan; return 0 if there is one, 1 if the file or the server does not allow it, 2 for a wrong line."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return 0 if stop.code in {None, 0} else 2
    try:
        preview = _preview(arguments)
    except ComputeError as error:
        sys.stderr.write(f"trio-compute plan: {redact(cause_chain(error))}\n")
        return 1
    text = msgspec.json.format(msgspec.json.encode(preview)).decode() if arguments.json else preview_text(preview)
    sys.stdout.write(text + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trio-compute plan",
        description="Show what applying a config.json would do to a running compute, or to a new cluster. "
        "Nothing is changed, and nothing secret is shown.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="a configuration, a bare spec, or an answer of a control plane")
    add("--connstr", metavar="URL", help="superuser connection URL of the compute (default: a new, empty cluster)")
    add("--pgdata", metavar="DIR", type=Path, help="data directory whose postgresql.conf is compared (default: none)")
    add("--privileged-role-name", default="neon_superuser", help="default neon_superuser")
    add("--internal-http-port", type=int, default=DEFAULT_INTERNAL_PORT, help=f"default {DEFAULT_INTERNAL_PORT}")
    add("--lakebase-mode", action="store_true", help="plan as in lakebase mode")
    add("--postgres", type=int, choices=range(14, 19), default=17, help="major version of the new cluster")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _preview(arguments: argparse.Namespace) -> Preview:
    parsed, tls = _parsed(arguments.file)
    old, new = _old_conf(arguments.pgdata), _new_conf(parsed, tls, arguments)
    touched = parsed.is_primary and not parsed.spec.skip_pg_catalog_updates
    role, lakebase = arguments.privileged_role_name, arguments.lakebase_mode
    wanted = wanted_of(parsed, privileged_role=role, lakebase=lakebase) if touched else None
    if arguments.connstr is None:
        outlook = Outlook(_plan_from_nothing(wanted, arguments.postgres, new), "postgres", ())
    else:
        redact.learn([Target.parse(arguments.connstr).password])
        outlook = trio.run(_look, arguments.connstr, wanted, [*changed_settings(old, new)])
    return preview_of(
        outlook.plan,
        outlook.system_database,
        old_conf=old,
        new_conf=new,
        restart_required=outlook.start_only,
        hide=redact,
        warnings=parsed.warnings,
    )


def _parsed(path: Path) -> tuple[ParsedSpec, TlsConfig | None]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    report = inspect_configuration(data)
    if report.errors:
        first = report.lines(report.errors)[0]
        raise SpecError(f"{path} cannot be used: {first['path']}: {first['rule']}; `trio-compute validate` tells all")
    config = located_configuration(str(path), data, bare=True)
    if config.spec is None:
        raise SpecError(f"{path} holds no spec")
    parsed = parse_spec(config.spec)
    learn_spec(parsed)
    return parsed, config.compute_ctl_config.tls


def _old_conf(pgdata: Path | None) -> str:
    if pgdata is None:
        return ""
    try:
        return (pgdata / "postgresql.conf").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise HostError(f"cannot read postgresql.conf in {pgdata}: {error.strerror}") from None


def _new_conf(parsed: ParsedSpec, tls: TlsConfig | None, arguments: argparse.Namespace) -> str:
    is_lakebase = arguments.lakebase_mode and arguments.connstr is not None
    context = ConfContext(
        privileged_role_name=arguments.privileged_role_name,
        internal_http_port=arguments.internal_http_port,
        tls=tls_in_use(parsed.spec, tls) is not None,
        lakebase_port=Target.parse(arguments.connstr).port if is_lakebase else None,
    )
    return render_postgresql_conf(parsed, context)


def _plan_from_nothing(wanted: Wanted | None, major: int, conf: str) -> Plan:
    if wanted is None:
        return Plan()
    libraries = split_libraries(effective_settings(conf).get("shared_preload_libraries", ""))
    snapshot = fresh_snapshot(SUPERUSER, major=major, libraries=libraries)
    return plan_catalog(wanted, snapshot)[0]


async def _look(connstr: str, wanted: Wanted | None, changed: Sequence[str]) -> Outlook:
    with trio.fail_after(PATIENCE_SECONDS):
        return await look_ahead(connstr, wanted, changed, deadlines=Deadlines())
