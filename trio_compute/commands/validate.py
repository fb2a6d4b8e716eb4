"""`trio-compute validate`: everything that is wrong with configuration files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from trio_compute.commands.inspection import Report, inspect_configuration
from trio_compute.commands.terminal import printable, say
from trio_compute.model.shape import Finding

LARGEST_FILE_BYTES = 64 * 1024 * 1024


class FileReport(Struct, frozen=True):
    """Be one element of what `--json` prints."""

    file: str
    ok: bool
    errors: list[dict[str, str]]
    warnings: list[dict[str, str]]


def run_validate(argv: Sequence[str]) -> int:
    """Check files and print what is wrong; return 0 if all are usable, 1 if not, 2 for a wrong command line."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return 0 if stop.code in {None, 0} else 2
    reports = [(name, _inspect(name)) for name in arguments.files]
    if arguments.json:
        files = [_file_report(name, report) for name, report in reports]
        say(msgspec.json.format(msgspec.json.encode({"files": files})).decode())
    else:
        for name, report in reports:
            say(_for_people(name, report))
    return 1 if any(report.errors for _, report in reports) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trio-compute validate",
        description="Report everything that is wrong with config.json files, bare specs or answers of a control plane.",
        epilog="Exit code: 0 all files can be used (warnings do not count), 1 one cannot, 2 wrong command line.",
        allow_abbrev=False,
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a file; - reads standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return parser


def _inspect(name: str) -> Report:
    try:
        data = _read(name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Report([Finding((), f"cannot read the file: {reason}", "check name and permissions")], [])
    if len(data) > LARGEST_FILE_BYTES:
        return Report(
            [Finding((), f"the file is larger than {LARGEST_FILE_BYTES >> 20} MiB", "is it the right one?")], []
        )
    return inspect_configuration(data)


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(LARGEST_FILE_BYTES + 1)
    with Path(name).open("rb") as file:
        return file.read(LARGEST_FILE_BYTES + 1)


def _file_report(name: str, report: Report) -> FileReport:
    return FileReport(printable(name), not report.errors, report.lines(report.errors), report.lines(report.warnings))


def _for_people(name: str, report: Report) -> str:
    name = printable(name)
    errors = [f"{name}:{_line(line)}" for line in report.lines(report.errors)]
    warnings = [f"{name}:{_line(line, 'warning: ')}" for line in report.lines(report.warnings)]
    kind = " (a bare spec, for --spec-path)" if report.is_bare else ""
    return "\n".join([*errors, *warnings, *([] if errors else [f"{name}: ok{kind}"])])


def _line(line: dict[str, str], mark: str = "") -> str:
    return f"{line['path']}: {mark}{printable(line['rule'])} (hint: {printable(line['hint'])})"
