"""Start-up against its floor: the same backup unpacked by gunzip and tar, the same Postgres from spawn to ready."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

import trio

from bench import rig
from bench.probe import cpu_seconds, filesystem, memory_megabytes, wait_for_first_200
from bench.report import Report, Samples, Stretch, machine, now, stretches, verdict
from trio_compute.embedded.progress import SpanView

SUMMARY = "spec → running against unpack + Postgres start; exec → first 200; RSS and idle CPU"
DEFAULT_RUNS = 7
IDLE_SECONDS = 10.0
IDLE_RUNS = 3

START_LIMIT = 1.10
FIRST_ANSWER_LIMIT_MS = 250.0
FIRST_ANSWER_LIMIT_DEBIAN_MS = 200.0
RSS_LIMIT_MB = 55.0
IDLE_LIMIT_PERCENT = 0.5

FLOOR = "gunzip | tar x, then Postgres to ready"
CONNECT = "exec → connect()"
ANSWER_EMPTY = "exec → first 200, empty, after its VM warm-up"
ANSWER_SPEC = "exec → first 200, while starting"
RSS = "RSS after start"
IDLE = "idle CPU over 10 s"

NOTES = [
    "pooled: the compute is empty and idle when the spec is posted; spec → running is its own span total_startup",
    "client's wall: what the client of POST /configure waits, from before its connect()",
    "exec → running: the compute's own figure too, from the kernel's start time of the process (steps of 10 ms)",
    "both sides: fresh directory, sync(2) before the clock starts, skip_pg_catalog_updates, fsync=off, the same user",
    "only ours asks three safekeepers, and starts Postgres through the stand-in's sh wrapper",
    "the stand-in pageserver lives in the bench process, on the same cores; it sends a prepared buffer from memory",
    "an empty compute answers only after its VM warm-up, so the aim for the first answer does not apply to it",
    "memory and idle CPU: the compute's process without Postgres; nobody asks it anything meanwhile",
]


class Findings:
    """Collect what the runs find."""

    def __init__(self) -> None:
        self.samples = Samples()
        self.waterfalls: dict[str, list[list[Stretch]]] = {}

    def add_waterfall(self, title: str, rows: list[Stretch]) -> None:
        """Take the waterfall of one run."""
        self.waterfalls.setdefault(title, []).append(rows)


def run(runs: int) -> Report:
    """Measure and return the report."""
    return rig.run(partial(_run, runs))


async def _run(runs: int) -> Report:
    findings, places = Findings(), rig.places()
    async with rig.open_rig() as stand:
        for place in places:
            async with stand.on(place):
                for number in range(1, runs + 1):
                    rig.say(f"startup: {place.label} ({filesystem(place.directory)}), run {number} of {runs}")
                    await _pooled(stand, place.label, findings)
                    await _floor(stand, place.label, findings)
                    with_idle = place is places[0] and number <= IDLE_RUNS
                    await _direct(stand, place.label, findings, with_idle=with_idle)
                    await _interpreter(findings)
    return _report(findings, [place.label for place in places])


async def _pooled(stand: rig.Rig, label: str, findings: Findings) -> None:
    samples = findings.samples
    async with stand.compute(with_spec=False) as compute:
        first = await rig.in_thread(wait_for_first_200, compute.ports.external, compute.token)
        samples.add(ANSWER_EMPTY, (first.answered - compute.started) * 1000)
        await compute.reach("empty")
        await compute.settle()
        seconds, _ = await compute.post("/configure", {"spec": stand.config["spec"]})
        spans = await compute.spans()
        total = _span(spans, "total_startup")
        samples.add(f"spec → running, {label}", _milliseconds(total))
        samples.add(f"spec → running, client's wall, {label}", seconds * 1000)
        for name, source in (("unpack", "basebackup.unpack"), ("start → ready", "start_postgres")):
            samples.add(f"{name}, {label}", _milliseconds(_span(spans, source)))
        findings.add_waterfall(f"spec → running, {label}", rig.waterfall(spans, origin_seconds=total.start_seconds))
        await compute.settle()
        samples.add(f"{RSS}, pooled", memory_megabytes(compute.process.pid)["rss"])


async def _floor(stand: rig.Rig, label: str, findings: Findings) -> None:
    unpack = await stand.unpack_floor() * 1000
    async with stand.bare_postgres() as ready:
        start = ready.seconds * 1000
    add = findings.samples.add_reference
    add(f"floor, {label}", unpack + start)
    add(f"unpack, {label}", unpack)
    add(f"start → ready, {label}", start)


async def _direct(stand: rig.Rig, label: str, findings: Findings, *, with_idle: bool) -> None:
    samples = findings.samples
    async with stand.compute(with_spec=True) as compute:
        first = await rig.in_thread(wait_for_first_200, compute.ports.external, compute.token)
        await compute.reach("running")
        spans = await compute.spans()
        total = _span(spans, "total_startup")
        samples.add(CONNECT, (first.connected - compute.started) * 1000)
        samples.add(ANSWER_SPEC, (first.answered - compute.started) * 1000)
        samples.add(f"exec → running, {label}", _milliseconds(total))
        boot = [
            Stretch(name="interpreter → connect()", start_ms=0, duration_ms=samples.ours[CONNECT][-1]),
            Stretch(name="interpreter → first 200", start_ms=0, duration_ms=samples.ours[ANSWER_SPEC][-1]),
        ]
        findings.add_waterfall(f"exec → running, {label}", [*boot, *rig.waterfall(spans, origin_seconds=0.0)])
        await compute.settle()
        memory = memory_megabytes(compute.process.pid)
        samples.add(RSS, memory["rss"])
        samples.add("peak RSS", memory["peak"])
        if "pss" in memory:
            samples.add("PSS after start", memory["pss"])
        if with_idle:
            samples.add(IDLE, await _idle_percent(compute.process.pid))


async def _idle_percent(pid: int) -> float:
    """Return how much of one core a process uses while nobody asks it anything."""
    began, before = time.monotonic(), cpu_seconds(pid)
    await trio.sleep(IDLE_SECONDS)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began) * 100


async def _interpreter(findings: Findings) -> None:
    began = time.monotonic()
    await trio.run_process([sys.executable, "-c", "pass"], stdin=subprocess.DEVNULL)
    findings.samples.add_reference(CONNECT, (time.monotonic() - began) * 1000)


def _span(spans: Sequence[SpanView], name: str) -> SpanView:
    return next(span for span in reversed(spans) if span.name == name)


def _milliseconds(span: SpanView) -> float:
    return (span.duration_seconds or 0.0) * 1000


def _report(findings: Findings, labels: Sequence[str]) -> Report:
    samples = findings.samples
    limit = first_answer_limit_ms(sys.base_prefix)
    results, aims = [], []
    for label in labels:
        start = samples.result(f"spec → running, {label}", "ms", against=f"floor, {label}", what=FLOOR)
        results.append(start)
        results += [
            samples.result(f"{name}, {label}", "ms", against=f"floor, {label}", what=FLOOR)
            for name in ("spec → running, client's wall", "exec → running")
        ]
        results.append(samples.result(f"unpack, {label}", "ms", against=f"unpack, {label}", what="gunzip | tar x"))
        results.append(
            samples.result(f"start → ready, {label}", "ms", against=f"start → ready, {label}", what="bare Postgres")
        )
        if start.ratio is not None:
            aims.append(verdict(f"spec → running ≤ {START_LIMIT:.2f} × floor, {label}", start.ratio, START_LIMIT, "×"))
    results.append(samples.result(CONNECT, "ms", against=CONNECT, what="python -c pass, exec → exit"))
    for name, unit, most in (
        (ANSWER_SPEC, "ms", limit),
        (RSS, "MB", RSS_LIMIT_MB),
        (IDLE, "% of a core", IDLE_LIMIT_PERCENT),
    ):
        samples.reference[name] = [most]
        figure = samples.result(name, unit, against=name, what="aim")
        results.append(figure)
        aims.append(verdict(name, figure.ours, most, unit))
    results.append(samples.result(ANSWER_EMPTY, "ms"))
    others = (name for name in (f"{RSS}, pooled", "PSS after start", "peak RSS") if name in samples.ours)
    results += [samples.result(name, "MB") for name in others]
    return Report(
        bench="startup",
        date=now(),
        machine=machine(),
        results=results,
        aims=aims,
        breakdown={title: stretches(runs) for title, runs in findings.waterfalls.items()},
        notes=NOTES,
        samples=samples.dump(),
    )


def first_answer_limit_ms(base_prefix: str) -> float:
    """Return the aim for the first answer: Debian's own Python is the faster one and is expected to do better."""
    return FIRST_ANSWER_LIMIT_DEBIAN_MS if base_prefix == "/usr" else FIRST_ANSWER_LIMIT_MS
