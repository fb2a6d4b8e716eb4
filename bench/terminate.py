"""`/terminate?mode=immediate` against Postgres' own fast stop, on the same backup and configuration."""

from __future__ import annotations

import datetime as dt
import re
import signal
import time
from functools import partial

import trio

from bench import rig
from bench.probe import filesystem
from bench.report import Report, Samples, Stretch, machine, now, stretches, verdict
from trio_compute.embedded.progress import SpanView

SUMMARY = "POST /terminate?mode=immediate against SIGINT to Postgres"
DEFAULT_RUNS = 9
LIMIT_ABOVE_MS = 50.0
SETTLE_SECONDS = 1.0

OWN_STOP = "SIGINT → postmaster gone"
SYNC = "of it: --sync-safekeepers"
STOP = "of it: stop of Postgres"
WITHOUT_SYNC = "without its --sync-safekeepers"
EXIT = "answer → exit of the process"

NOTES = [
    "wall time of the client, from before its connect() to the whole answer; the compute was idle before",
    "the stop of Postgres inside is read off the compute's log: `stopping Postgres` to `Postgres ended`",
    "--sync-safekeepers is the stand-in's sh wrapper here (pg_controldata and psql), in production the walproposer",
    "after the answer the process stays for a moment on purpose: a repeated request must find it (contract 02 §6)",
]


def run(runs: int) -> Report:
    """Measure and return the report."""
    return rig.run(partial(_run, runs))


async def _run(runs: int) -> Report:
    samples, waterfalls, places = Samples(), dict[str, list[list[Stretch]]](), rig.places()
    async with rig.open_rig() as stand:
        for place in places:
            waterfalls[place.label] = []
            async with stand.on(place):
                for number in range(1, runs + 1):
                    rig.say(f"terminate: {place.label} ({filesystem(place.directory)}), run {number} of {runs}")
                    waterfalls[place.label].append(await _ours(stand, place.label, samples))
                    samples.add_reference(place.label, await _own_stop(stand))
    return _report(samples, waterfalls, [place.label for place in places])


async def _ours(stand: rig.Rig, label: str, samples: Samples) -> list[Stretch]:
    async with stand.compute(with_spec=True) as compute:
        await compute.reach("running")
        await compute.settle()
        await trio.sleep(SETTLE_SECONDS)
        clock_offset = time.time() - time.monotonic()
        began = time.monotonic()
        seconds, _ = await compute.post("/terminate?mode=immediate")
        spans = await compute.spans()
        await compute.process.wait()
        samples.add(f"terminate, {label}", seconds * 1000)
        samples.add(f"{EXIT}, {label}", (time.monotonic() - began - seconds) * 1000)
        log = compute.log_path.read_text(encoding="utf-8", errors="replace")
    rows = [Stretch(name="whole request", start_ms=0, duration_ms=seconds * 1000)]
    stop = stop_in_log(log)
    if stop is not None:
        samples.add(f"{STOP}, {label}", stop[1] * 1000)
        start = (stop[0] - clock_offset - began) * 1000
        rows.append(
            Stretch(name="stop of Postgres", parent="whole request", start_ms=start, duration_ms=stop[1] * 1000)
        )
    sync = _last_sync(spans)
    if sync is not None:
        length = (sync.duration_seconds or 0) * 1000
        samples.add(f"{SYNC}, {label}", length)
        samples.add(f"{WITHOUT_SYNC}, {label}", seconds * 1000 - length)
        # Spans count from another origin than ours; the sync follows the stop of Postgres.
        after = 0.0 if stop is None else (stop[0] + stop[1] - clock_offset - began) * 1000
        rows.append(Stretch(name="sync_safekeepers", parent="whole request", start_ms=after, duration_ms=length))
    return rows


def _last_sync(spans: list[SpanView]) -> SpanView | None:
    started = max(span.start_seconds + (span.duration_seconds or 0) for span in spans if span.name == "total_startup")
    return next((s for s in reversed(spans) if s.name == "sync_safekeepers" and s.start_seconds >= started), None)


def stop_in_log(log: str) -> tuple[float, float] | None:
    """Return when the last stop of Postgres began (Unix time) and how many seconds it took; None if it is not there."""
    moments = []
    for text in ("stopping Postgres", "Postgres ended"):
        found = re.findall(rf"^(\S+) \w+ postmaster: {text}", log, re.MULTILINE)
        if not found:
            return None
        moments.append(dt.datetime.fromisoformat(found[-1]).timestamp())
    return moments[0], moments[1] - moments[0]


async def _own_stop(stand: rig.Rig) -> float:
    await stand.unpack_floor()
    async with stand.bare_postgres() as ready:
        await trio.sleep(SETTLE_SECONDS * 2)
        began = time.monotonic()
        ready.process.send_signal(signal.SIGINT)
        await ready.process.wait()
        return (time.monotonic() - began) * 1000


def _report(samples: Samples, waterfalls: dict[str, list[list[Stretch]]], labels: list[str]) -> Report:
    results, aims = [], []
    for label in labels:
        whole = samples.result(f"terminate, {label}", "ms", against=label, what=OWN_STOP)
        results.append(whole)
        results += [
            samples.result(f"{name}, {label}", "ms", against=label, what=OWN_STOP)
            for name in (WITHOUT_SYNC, STOP)
            if f"{name}, {label}" in samples.ours
        ]
        rest = (f"{SYNC}, {label}", f"{EXIT}, {label}")
        results += [samples.result(name, "ms") for name in rest if name in samples.ours]
        above = whole.ours - (whole.reference or 0.0)
        aims.append(
            verdict(f"terminate ≤ own stop + {LIMIT_ABOVE_MS:.0f} ms, {label}", above, LIMIT_ABOVE_MS, "ms above")
        )
    return Report(
        bench="terminate",
        date=now(),
        machine=machine(),
        results=results,
        aims=aims,
        breakdown={f"terminate, {label}": stretches(runs) for label, runs in waterfalls.items()},
        notes=NOTES,
        samples=samples.dump(),
    )
