"""From argv to an exit code (contract 01 §1 and §3)."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence

import msgspec

from trio_compute import __version__
from trio_compute.errors import ComputeError, UsageError, cause_chain
from trio_compute.settings import LIBPQ_VARIABLES, Settings, settings_from
from trio_compute.telemetry import logging as telemetry
from trio_compute.telemetry.failpoints import failpoints
from trio_compute.telemetry.redaction import redact

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

log = telemetry.get_logger("main")


def run_subcommand(argv: Sequence[str]) -> int:
    """Run `trio-compute COMMAND …` and return its exit code."""
    commands: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
        "run": (lambda rest: run_compute(rest, prog="trio-compute run"), "run one compute, like compute_ctl"),
        "dev": (_dev, "run a compute on an embedded storage, on your own machine"),
        "status": (_status, "tell what a running compute does, or follow it"),
        "configure": (_configure, "bring a running compute to what a config.json wants"),
        "terminate": (_terminate, "end a running compute"),
        "validate": (_validate, "report everything that is wrong with config.json files"),
        "plan": (_plan, "show what applying a config.json would do, and do nothing"),
        "schema": (_schema, "print the JSON Schema of config.json, or the OpenAPI description"),
    }
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in {"-h", "--help"}:
        width = max(map(len, commands))
        lines = [f"  {command:<{width}}  {what}" for command, (_, what) in commands.items()]
        _say("\n".join(["usage: trio-compute COMMAND [OPTION…]", "", *lines, "", "COMMAND --help tells more."]))
        return 0
    if name == "--version":
        _say(f"trio-compute {__version__}")
        return 0
    if name not in commands:
        _complain(f"trio-compute: no command {name!r}; there are {', '.join(commands)}")
        return EXIT_USAGE
    return commands[name][0](rest)


def run_compute(argv: Sequence[str], *, prog: str) -> int:
    """Run one compute and return the exit code of the process."""
    # Collecting garbage while modules are being imported finds none and costs a tenth of the import time.
    gc.disable()
    try:
        settings = settings_from(argv, prog=prog)
    except UsageError as error:
        _complain(f"{prog}: error: {error}\nTry '{prog} --help'.")
        return EXIT_USAGE
    try:
        _prepare_process(settings)
        return _run_bound(settings)
    except UsageError as error:
        log.error("cannot start", error=redact(str(error)))
        return EXIT_USAGE
    except ComputeError as error:
        log.error("cannot start", error=redact(cause_chain(error)))
        return EXIT_FAILED
    finally:
        telemetry.sink.close()


def _prepare_process(settings: Settings) -> None:
    for name in LIBPQ_VARIABLES | {"FAILPOINTS"}:
        os.environ.pop(name, None)
    redact.learn(settings.secrets())
    if settings.failpoints:
        failpoints.configure_text(settings.failpoints)
    telemetry.set_level(settings.log_filter)
    telemetry.adopt_library_logs()
    log.info("starting", version=__version__, build_tag=settings.build_tag, compute_id=settings.compute_id)
    if not settings.otel_disabled:
        for warning in settings.traces.warnings:
            log.warning("setting", about=warning)


def _run_bound(settings: Settings) -> int:
    from trio_compute.http.sockets import bind_sockets

    sockets = bind_sockets(settings)
    try:
        import trio

        from trio_compute.host.core_dumps import allow_core_dumps
        from trio_compute.http.servers import HttpServers
        from trio_compute.ports import Host
        from trio_compute.run import run
        from trio_compute.telemetry.spans import Recorder, process_start

        gc.freeze()
        gc.enable()
        allow_core_dumps()
        settings = msgspec.structs.replace(
            settings, external_http_port=sockets.external_port, internal_http_port=sockets.internal_port
        )
        log.info("listening", external=sockets.external_port, internal=sockets.internal_port)
        host = Host(settings)
        spans = Recorder(origin=process_start())
        return trio.run(
            lambda: run(
                settings,
                host,
                lambda life, config: HttpServers(sockets, life, config),
                spans=spans,
            ),
            restrict_keyboard_interrupt_to_checkpoints=True,
        )
    finally:
        sockets.close()


def _dev(argv: Sequence[str]) -> int:
    from trio_compute.embedded.dev import run_dev

    return run_dev(argv)


def _status(argv: Sequence[str]) -> int:
    from trio_compute.commands.status import run_status

    return run_status(argv, os.environ)


def _configure(argv: Sequence[str]) -> int:
    from trio_compute.commands.configure import run_configure

    return run_configure(argv, os.environ)


def _terminate(argv: Sequence[str]) -> int:
    from trio_compute.commands.terminate import run_terminate

    return run_terminate(argv, os.environ)


def _validate(argv: Sequence[str]) -> int:
    from trio_compute.commands.validate import run_validate

    return run_validate(argv)


def _plan(argv: Sequence[str]) -> int:
    from trio_compute.commands.plan import run_plan

    return run_plan(argv)


def _schema(argv: Sequence[str]) -> int:
    from trio_compute.commands.schema import run_schema

    return run_schema(argv)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(redact(text) + "\n")
