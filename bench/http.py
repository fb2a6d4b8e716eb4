"""The cheap reads under load against a bare ASGI application and a bare Quart one, idle clients, the monitor's cost."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from msgspec import Struct

from bench import rig
from bench.probe import cpu_seconds, memory_megabytes
from bench.report import Report, Result, Samples, machine, now, verdict
from trio_compute.db.connection import open_connection
from trio_compute.db.target import Target
from trio_compute.embedded.dev import connstr
from trio_compute.errors import HostError

SUMMARY = "/status, /metrics, /metrics.json under load against bare ASGI and Quart; idle clients; the monitor"
DEFAULT_RUNS = 3
CONNECTIONS = (1, 16, 64)
PATHS = ("/status", "/metrics.json", "/metrics")
SECONDS = 3
IDLE_CLIENTS = 1000
IDLE_SECONDS = 30.0
MONITOR_SECONDS = 15.0
TICK_SECONDS = 0.5

NOTES = [
    f"wrk, one thread, {SECONDS} s each, one after another in turns; peers answer 20 bytes, ours a status with history",
    "CPU per request: of the serving process with all its threads, log lines included; peers write no log",
    "/status and /metrics.json check a token on every request, peers check nothing",
    f"idle clients: {IDLE_CLIENTS} connections that each got one answer and stay for {IDLE_SECONDS:g} s",
    f"monitor: our CPU per tick of {TICK_SECONDS} s while nothing else happens, HTTP included (nobody asks)",
]
_RATE = re.compile(r"Requests/sec:\s*([\d.]+)")
_PERCENTILE = re.compile(r"^\s*(50|99)%\s+([\d.]+)(us|ms|s)\s*$", re.MULTILINE)
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Served(Struct, frozen=True):
    """Say what is asked: the process, its port, and the token that it wants."""

    pid: int
    port: int
    token: str | None = None


class Load(Struct, frozen=True):
    """Hold what one run of wrk found."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def run(runs: int) -> Report:
    """Measure and return the report."""
    if shutil.which("wrk") is None:
        raise HostError("the bench needs wrk: apt-get install wrk")
    return rig.run(partial(_run, runs))


async def _run(runs: int) -> Report:
    samples = Samples()
    async with rig.open_rig() as stand, stand.on(rig.places()[-1]), stand.compute(with_spec=True) as compute:
        await compute.reach("running")
        await compute.settle()
        samples.add("RSS before", memory_megabytes(compute.process.pid)["rss"])
        ours = Served(compute.process.pid, compute.ports.external, compute.token)
        async with _peer("plain") as plain, _peer("quart") as quart:
            for number in range(1, runs + 1):
                rig.say(f"http: run {number} of {runs}")
                for connections in CONNECTIONS:
                    await _round(samples, connections, ours, {"bare ASGI": plain, "bare Quart": quart})
        samples.add("RSS after the load", memory_megabytes(compute.process.pid)["rss"])
        await compute.settle()
        for turn in ("first", "second"):
            await _idle_clients(samples, ours, turn)
        await _monitor(samples, ours, connstr(stand.ports, "postgres"))
    return _report(samples)


async def _round(samples: Samples, connections: int, ours: Served, peers: dict[str, Served]) -> None:
    for name, peer in peers.items():
        _add(samples.add_reference, f"{name}, {connections}", await _load(peer, "/status", connections))
    for path in PATHS:
        _add(samples.add, f"{path}, {connections}", await _load(ours, path, connections))


def _add(add: Callable[[str, float], None], name: str, load: Load) -> None:
    for unit in ("rate", "p50_ms", "p99_ms", "cpu_us"):
        add(f"{name}: {unit}", getattr(load, unit))


async def _load(served: Served, path: str, connections: int) -> Load:
    headers = [] if served.token is None else ["-H", f"authorization: Bearer {served.token}"]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", *headers]
    before = cpu_seconds(served.pid)
    done = await trio.run_process([*command, f"http://127.0.0.1:{served.port}{path}"], capture_stdout=True)
    used = cpu_seconds(served.pid) - before
    text = done.stdout.decode()
    rate = _RATE.search(text)
    percentiles = {name: float(value) * _UNITS[unit] for name, value, unit in _PERCENTILE.findall(text)}
    if rate is None or "Non-2xx" in text or len(percentiles) != 2:
        raise HostError(f"wrk did not get its answers from {path}:\n{text}")
    requests = float(rate[1]) * SECONDS
    return Load(float(rate[1]), percentiles["50"], percentiles["99"], used / requests * 1e6)


@asynccontextmanager
async def _peer(kind: str) -> AsyncIterator[Served]:
    """Serve the least that answers, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, fd = listening.getsockname()[1], listening.fileno()
        command = [sys.executable, "-m", "bench.http_peers", kind, str(fd)]
        process = await trio.lowlevel.open_process(command, pass_fds=[fd], stdin=subprocess.DEVNULL)
    try:
        served = Served(process.pid, port)
        # What is asked before it accepts waits in the backlog.
        await trio.run_process(
            ["wrk", "-t1", "-c1", "-d1s", f"http://127.0.0.1:{port}/status"], stdout=subprocess.DEVNULL
        )
        yield served
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _idle_clients(samples: Samples, ours: Served, turn: str) -> None:
    """Let clients come, ask once, stay and go; look at memory and descriptors before, meanwhile and afterwards."""
    rig.say(f"http: {IDLE_CLIENTS} idle clients for {IDLE_SECONDS:g} s, {turn} time")
    samples.add(f"descriptors before idle clients, {turn}", _descriptors(ours.pid))
    samples.add(f"RSS before idle clients, {turn}", memory_megabytes(ours.pid)["rss"])
    request = f"GET /status HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ours.token}\r\n\r\n".encode()
    streams: list[trio.SocketStream] = []
    try:
        for _ in range(IDLE_CLIENTS):
            stream = await trio.open_tcp_stream("127.0.0.1", ours.port)
            streams.append(stream)
            await stream.send_all(request)
            await stream.receive_some(65536)
        samples.add(f"descriptors with idle clients, {turn}", _descriptors(ours.pid))
        samples.add(f"RSS with idle clients, {turn}", memory_megabytes(ours.pid)["rss"])
        await trio.sleep(IDLE_SECONDS)
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)
    await trio.sleep(1)
    samples.add(f"descriptors after idle clients, {turn}", _descriptors(ours.pid))
    samples.add(f"RSS after idle clients, {turn}", memory_megabytes(ours.pid)["rss"])


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def _monitor(samples: Samples, ours: Served, url: str) -> None:
    """Look at what the activity monitor costs while nothing else happens."""
    rig.say(f"http: the monitor alone for {MONITOR_SECONDS:g} s")
    async with open_connection(Target.parse(url)) as connection:
        statement = "SELECT sum(xact_commit) FROM pg_catalog.pg_stat_database"

        async def committed() -> int:
            row = await (await connection.execute(statement)).fetchone()
            return int(row[0]) if row else 0

        # Statistics of a backend appear with a delay; what is older than that is in both looks.
        first, cpu = await committed(), cpu_seconds(ours.pid)
        await trio.sleep(MONITOR_SECONDS)
        used, last = cpu_seconds(ours.pid) - cpu, await committed()
    ticks = MONITOR_SECONDS / TICK_SECONDS
    samples.add("monitor: CPU per tick", used / ticks * 1000)
    samples.add("monitor: transactions per tick", (last - first) / ticks)


def _report(samples: Samples) -> Report:
    units = {"rate": "1/s", "p50_ms": "ms", "p99_ms": "ms", "cpu_us": "µs CPU"}
    results = [
        samples.result(f"{path}, {connections}: {unit}", label, against=f"{peer}, {connections}: {unit}", what=peer)
        for path in PATHS
        for connections in CONNECTIONS
        for unit, label in units.items()
        for peer in ("bare ASGI", "bare Quart")
    ]
    plain = {
        name: "MB" if "RSS" in name else "ms" if "CPU" in name else ""
        for name in samples.ours
        if not name.startswith("/")
    }
    results += [samples.result(name, unit) for name, unit in plain.items()]
    aims = [
        verdict(f"/status at {n}: time per request ≤ bare ASGI", 1 / _ratio(results, n), 1.0, "×") for n in CONNECTIONS
    ]
    after, before = (
        samples.ours["descriptors after idle clients, second"][0],
        samples.ours["descriptors before idle clients, second"][0],
    )
    aims.append(verdict("descriptors after idle clients ≤ before", after, before, ""))
    return Report(
        bench="http", date=now(), machine=machine(), results=results, aims=aims, notes=NOTES, samples=samples.dump()
    )


def _ratio(results: list[Result], connections: int) -> float:
    name = f"/status, {connections}: rate"
    found = next(item for item in results if (item.name, item.reference_name) == (name, "bare ASGI"))
    return found.ratio or 0.0
