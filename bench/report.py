"""What every bench prints: one JSON object for machines, a table for people. Figures are medians."""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec
from msgspec import Struct

DIGITS = 3


class Result(Struct, frozen=True, kw_only=True):
    """Hold one figure of ours beside its reference: both are medians of `runs` samples, `ratio` is ours / reference.

    A figure without anything to compare it with has no reference and no ratio.
    """

    name: str
    ours: float
    reference: float | None
    reference_name: str | None
    ratio: float | None
    unit: str
    runs: int


class Verdict(Struct, frozen=True, kw_only=True):
    """Hold one aim: a figure that must not exceed its limit."""

    aim: str
    limit: float
    measured: float
    unit: str
    met: bool


class Stretch(Struct, frozen=True, kw_only=True):
    """Hold one row of a breakdown: where it begins and how long it takes, in milliseconds; medians again."""

    name: str
    parent: str | None = None
    start_ms: float
    duration_ms: float


class Report(Struct, frozen=True, kw_only=True):
    """Hold all that one bench found; `samples` are the single measurements behind each result, in order."""

    bench: str
    date: str
    machine: dict[str, Any]
    results: list[Result]
    aims: list[Verdict] = []
    breakdown: dict[str, list[Stretch]] = {}
    notes: list[str] = []
    samples: dict[str, dict[str, list[float]]] = {}


class Samples:
    """Collect measurements under the names of the results that they will become."""

    def __init__(self) -> None:
        self.ours: dict[str, list[float]] = {}
        self.reference: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """Take one measurement of ours."""
        self.ours.setdefault(name, []).append(value)

    def add_reference(self, name: str, value: float) -> None:
        """Take one measurement of a reference, which several results may share."""
        self.reference.setdefault(name, []).append(value)

    def result(self, name: str, unit: str, *, against: str | None = None, what: str | None = None) -> Result:
        """Return the result of a name, against the reference samples called `against`, described by `what`."""
        reference = self.reference[against] if against is not None else None
        return result(name, self.ours[name], unit, reference=reference, reference_name=what or against)

    def dump(self) -> dict[str, dict[str, list[float]]]:
        """Return all samples, rounded."""
        return {
            kind: {name: [_rounded(value) for value in values] for name, values in samples.items()}
            for kind, samples in (("ours", self.ours), ("reference", self.reference))
        }


def result(
    name: str,
    ours: Sequence[float],
    unit: str,
    *,
    reference: Sequence[float] | None = None,
    reference_name: str | None = None,
) -> Result:
    """Return the medians of two series and their ratio; raise ValueError when a series is empty."""
    if not ours or (reference is not None and not reference):
        raise ValueError(f"{name}: no samples")
    median = statistics.median(ours)
    other = None if reference is None else statistics.median(reference)
    return Result(
        name=name,
        ours=_rounded(median),
        reference=None if other is None else _rounded(other),
        reference_name=None if other is None else reference_name,
        ratio=_rounded(median / other) if other else None,
        unit=unit,
        runs=len(ours),
    )


def verdict(aim: str, measured: float, limit: float, unit: str) -> Verdict:
    """Return whether a figure keeps its limit."""
    return Verdict(aim=aim, limit=_rounded(limit), measured=_rounded(measured), unit=unit, met=measured <= limit)


def stretches(runs: Sequence[Sequence[Stretch]]) -> list[Stretch]:
    """Return the medians per name over several runs, in order of their start; a name met twice in a run is summed."""
    collected: dict[str, list[Stretch]] = {}
    for run in runs:
        for name, stretch in _merged(run).items():
            collected.setdefault(name, []).append(stretch)
    medians = [
        Stretch(
            name=name,
            parent=found[0].parent,
            start_ms=_rounded(statistics.median(one.start_ms for one in found)),
            duration_ms=_rounded(statistics.median(one.duration_ms for one in found)),
        )
        for name, found in collected.items()
    ]
    return sorted(medians, key=lambda stretch: stretch.start_ms)


def _merged(run: Sequence[Stretch]) -> dict[str, Stretch]:
    merged: dict[str, Stretch] = {}
    for stretch in run:
        before = merged.get(stretch.name)
        earlier_ms = 0.0 if before is None else before.duration_ms
        merged[stretch.name] = msgspec.structs.replace(before or stretch, duration_ms=stretch.duration_ms + earlier_ms)
    return merged


def now() -> str:
    """Return the date of a report: UTC, to the second."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on, and how busy it was at the moment of this call."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{_distribution()}, Linux {platform.release()}",
        "python": f"{platform.python_version()} ({sys.base_prefix})",
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def show(report: Report, *, as_json: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
    """Print the table; with `as_json` it goes to stderr and stdout gets exactly one JSON object."""
    out, err = out or sys.stdout, err or sys.stderr
    (err if as_json else out).write(table(report))
    if as_json:
        out.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")


def table(report: Report) -> str:
    """Return the report as text for people."""
    place = report.machine
    lines = [
        f"{report.bench}, {report.date}",
        f"{place.get('cpu')}, {place.get('cores')} cores; {place.get('system')}; Python {place.get('python')}",
        f"load average {' '.join(map(str, place.get('load_average', [])))} at the end",
        "",
        *_columns([("", "ours", "reference", "ratio", "unit", "runs", "against"), *map(_cells, report.results)]),
    ]
    if report.aims:
        rows = [("met" if aim.met else "MISSED", aim.aim, f"{aim.measured:g} ≤ {aim.limit:g}", aim.unit)
                for aim in report.aims]  # fmt: skip
        lines += ["", "aims", *_columns(rows, text_columns=(0, 1, 3))]
    for title, rows_of in report.breakdown.items():
        lines += ["", f"{title}: begins at, takes (ms)", *_columns(_tree(rows_of), text_columns=(0,))]
    lines += ["", *(f"- {note}" for note in report.notes)] if report.notes else []
    return "\n".join(lines) + "\n"


def _cells(item: Result) -> tuple[str, ...]:
    reference = "-" if item.reference is None else f"{item.reference:g}"
    ratio = "-" if item.ratio is None else f"{item.ratio:.2f}"
    return (item.name, f"{item.ours:g}", reference, ratio, item.unit, str(item.runs), item.reference_name or "")


def _tree(rows: Sequence[Stretch]) -> list[tuple[str, ...]]:
    """Return rows whose names are indented under their parents; a parent that is no row counts as none."""
    parents = {row.name: row.parent for row in rows}

    def depth(name: str, seen: Mapping[str, None]) -> int:
        parent = parents.get(name)
        return 0 if parent not in parents or parent in seen else 1 + depth(parent, {**seen, parent: None})

    return [
        ("  " * depth(row.name, {row.name: None}) + row.name, f"{row.start_ms:.1f}", f"{row.duration_ms:.1f}")
        for row in rows
    ]


def _columns(rows: Sequence[Sequence[str]], *, text_columns: Sequence[int] = (0, 4, 6)) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  ".join(
            cell.ljust(width) if column in text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)
