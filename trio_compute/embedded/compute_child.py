"""A real compute as a child process: the production command line, watched through its own APIs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio
from msgspec import Struct

from trio_compute.embedded.progress import SpanView
from trio_compute.errors import HostError, RemoteError
from trio_compute.host.process import reap

POLL_SECONDS = 0.05
HTTP_TIMEOUT_SECONDS = 300.0
LOG_TAIL_CHARACTERS = 4000


class Ports(Struct, frozen=True):
    """Hold the ports of one compute."""

    postgres: int
    external: int
    internal: int


class ComputeChild:
    """Talk to a compute that runs beside us."""

    def __init__(self, process: trio.Process, ports: Ports, token: str, log_path: Path) -> None:
        self.process = process
        self.ports = ports
        self._log_path = log_path
        self._external = f"http://127.0.0.1:{ports.external}"
        self._internal = f"http://127.0.0.1:{ports.internal}"
        self._client = httpx.AsyncClient(
            trust_env=False, headers={"authorization": f"Bearer {token}"}, timeout=HTTP_TIMEOUT_SECONDS
        )

    @property
    def external_url(self) -> str:
        """Return the base URL of the external API."""
        return self._external

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self._client.aclose()

    async def status(self) -> dict[str, Any] | None:
        """Return `/status`, or None while nobody answers."""
        try:
            response = await self._client.get(f"{self._external}/status")
        except httpx.TransportError:
            return None
        return self._json(response)

    async def metrics(self) -> dict[str, Any]:
        """Return `/metrics.json`."""
        return self._json(await self._client.get(f"{self._external}/metrics.json"))

    async def spans(self) -> list[SpanView]:
        """Return the time spans measured so far."""
        response = await self._client.get(f"{self._internal}/spans")
        return msgspec.json.decode(response.content, type=list[SpanView])

    async def get(self, path: str) -> dict[str, Any]:
        """Return what a route of the external API says."""
        return self._json(await self._client.get(self._external + path))

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Post to a route of the external API and return what it says; nothing is an empty object."""
        response = await self._client.post(self._external + path, json=None if body is None else dict(body))
        return self._json(response) if response.content else {}

    async def configure(self, config: Mapping[str, Any]) -> httpx.Response:
        """Post a configuration and return the answer, whatever its status."""
        return await self._client.post(f"{self._external}/configure", json=dict(config))

    async def terminate(self, mode: str) -> dict[str, Any]:
        """End the compute over HTTP; return the answer, which holds the LSN."""
        return self._json(await self._client.post(f"{self._external}/terminate", params={"mode": mode}))

    async def reach(self, *wanted: str, give_up: Sequence[str] = ("failed", "terminated")) -> dict[str, Any]:
        """Poll `/status` until it is one of those wanted; raise HostError if the compute ends or fails before."""
        while True:
            if self.process.returncode is not None:
                raise HostError(
                    f"the compute ended with code {self.process.returncode}; its log ends:\n{self.log_tail()}"
                )
            status = await self.status()
            if status is not None and status["status"] in wanted:
                return status
            if status is not None and status["status"] in give_up:
                raise HostError(
                    f"the compute is {status['status']}: {status['error']}; its log ends:\n{self.log_tail()}"
                )
            await trio.sleep(POLL_SECONDS)

    def log_tail(self) -> str:
        """Return the end of the compute's log, without our own questions over HTTP."""
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        return "".join(line for line in lines if " INFO http: " not in line)[-LOG_TAIL_CHARACTERS:]

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code >= 400:
            raise RemoteError(f"{response.request.url.path} answered {response.status_code}: {response.text[:1000]}")
        return msgspec.json.decode(response.content, type=dict[str, Any])


@asynccontextmanager
async def open_compute(
    arguments: Sequence[str],
    ports: Ports,
    *,
    token: str,
    log_path: Path,
    environ: Mapping[str, str],
    stop_seconds: float = 15.0,
) -> AsyncIterator[ComputeChild]:
    """Run `trio-compute run …` while the block runs; afterwards it is stopped by signals if it still lives."""
    command = [sys.executable, "-m", "trio_compute", "run", *arguments]
    with log_path.open("wb") as log_file:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file.fileno(),
            stderr=log_file.fileno(),
            env=dict(environ),
            process_group=0,
        )
    child = ComputeChild(process, ports, token, log_path)
    try:
        yield child
    finally:
        with trio.CancelScope(shield=True):
            await child.aclose()
            await _stop(process, stop_seconds)


async def _stop(process: trio.Process, stop_seconds: float) -> None:
    for sig in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            break
        process.send_signal(sig)
        with trio.move_on_after(stop_seconds if sig is signal.SIGTERM else float("inf")):
            await reap(process)
