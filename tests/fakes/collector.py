"""A collector of traces on loopback: it takes requests, refuses them, or says nothing at all."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.fakes.host import FakeHost
from trio_compute.storage.trace_collector import send_traces
from trio_compute.trace_settings import TraceSettings


def spans_in(payload: bytes) -> list[Any]:
    """Return the spans of a request."""
    request = ExportTraceServiceRequest.FromString(payload)
    return [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]


class Collector:
    """Hold what arrived, and how to answer: a status, or None for never."""

    def __init__(self, port: int, status: int | None) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/traces"
        self.status = status
        self.heads: list[str] = []
        self.spans: list[Any] = []
        self.arrived = trio.Event()
        self.connections = 0

    @property
    def settings(self) -> TraceSettings:
        return TraceSettings(url=self.url)

    def by_name(self) -> dict[str, Any]:
        """Return the newest span of each name."""
        return {span.name: span for span in self.spans}

    async def until(self, *names: str) -> None:
        """Wait until spans of these names are here."""
        with trio.fail_after(10):
            while not {*names} <= self.by_name().keys():
                self.arrived = trio.Event()
                await self.arrived.wait()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        try:
            await self._answer(stream)
        except trio.BrokenResourceError:
            pass
        finally:
            self.connections -= 1

    async def _answer(self, stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received or len(received) < _whole(received):
            piece = await stream.receive_some()
            if not piece:
                return
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        self.heads.append(head.decode().lower())
        if self.status is None:
            self.arrived.set()
            await stream.receive_some()
            return
        if self.status == 200:
            self.spans += spans_in(gzip.decompress(body) if b"content-encoding: gzip" in head.lower() else body)
        self.arrived.set()
        await stream.send_all(f"HTTP/1.1 {self.status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())


def _whole(received: bytes) -> int:
    head = received.partition(b"\r\n\r\n")[0]
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(head) + 4 + int(lengths[0])


@asynccontextmanager
async def open_collector(status: int | None = 200) -> AsyncIterator[Collector]:
    """Listen on a port of loopback until the block ends; by then every connection must be closed."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        collector = Collector(listeners[0].socket.getsockname()[1], status)
        nursery.start_soon(partial(trio.serve_listeners, collector.serve, listeners))
        yield collector
        with trio.fail_after(5):
            while collector.connections:
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()


class TracedHost(FakeHost):
    """Do everything as a fake but the export of traces."""

    async def send_traces(self, payload: bytes) -> None:
        await send_traces(payload, self.settings.traces)
