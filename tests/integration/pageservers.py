"""Pageservers without Postgres: one small snapshot, served over both transports on real sockets."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.fakes.specs import TENANT, TIMELINE, parsed
from trio_compute.embedded.grpc_pageserver import GrpcPageserver
from trio_compute.embedded.pageserver import Pageserver
from trio_compute.embedded.snapshots import Snapshots
from trio_compute.embedded.tokens import Issuer
from trio_compute.embedded.wire import serve_session, token_login
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec

SNAPSHOT_LSN = Lsn.parse("0/2000000")
SEGMENT_BYTES = 1024 * 1024


class Storage:
    """Own a snapshot of about a MiB, and a pageserver of each kind that serves it."""

    def __init__(self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.issuer = Issuer.load(directory / "issuer.key")
        self.snapshots = Snapshots(directory)
        self.archive = self.snapshots.path(SNAPSHOT_LSN)
        self.archive.write_bytes(gzip.compress(small_archive(segment_bytes), compresslevel=1))
        timelines = {(TENANT, TIMELINE): self.snapshots}
        self.libpq = Pageserver(timelines)
        self.grpc = GrpcPageserver(timelines, self.issuer)

    def token(self, **claims: Any) -> str:
        return self.issuer.sign({"scope": "tenant", "tenant_id": TENANT, **claims})

    @asynccontextmanager
    async def open_libpq(self) -> AsyncIterator[str]:
        """Serve over libpq; yield the URL."""

        async def session(stream: trio.SocketStream) -> None:
            await serve_session(stream, authenticate=token_login(self.issuer), handle_query=self.libpq.handle)

        async with open_tcp_server(session) as port:
            yield f"postgresql://no_user@127.0.0.1:{port}"

    def spec(self, *urls: str, **changes: Any) -> ParsedSpec:
        """Return a primary's spec with one shard per URL, of the transport that the URLs are for."""
        protocol = "grpc" if urls[0].startswith("grpc") else "libpq"
        count = len(urls) if len(urls) > 1 else 0
        return parsed(
            **{
                "storage_auth_token": self.token(),
                "pageserver_connection_info": {
                    "shard_count": count,
                    "stripe_size": 8 if count else None,
                    "shards": {
                        f"{number:02x}{count:02x}": {"pageservers": [{f"{protocol}_url": url}]}
                        for number, url in enumerate(urls)
                    },
                    "prefer_protocol": protocol,
                },
                **changes,
            }
        )

    def static_spec(self, *urls: str, lsn: Lsn = SNAPSHOT_LSN, **changes: Any) -> ParsedSpec:
        return self.spec(*urls, mode={"Static": str(lsn)}, **changes)


def small_archive(segment_bytes: int) -> bytes:
    """Return the tar of the least that counts as a data directory; its segment does not compress."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in (
            ("PG_VERSION", b"17\n"),
            ("global/pg_control", b"control"),
            (f"pg_wal/{'0' * 24}", os.urandom(segment_bytes)),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return output.getvalue()


@asynccontextmanager
async def open_tcp_server(handle: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield int(listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_cutting_proxy(url: str, *, after_bytes: int) -> AsyncIterator[str]:
    """Stand before a gRPC pageserver and drop the connection once it has sent that much; yield another URL."""
    port = int(url.rpartition(":")[2])

    async def handle(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", port)
        async with server, client, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, client, server, None)
            await _copy(server, client, after_bytes)
            nursery.cancel_scope.cancel()

    async with open_tcp_server(handle) as proxy:
        yield f"grpc://127.0.0.1:{proxy}"


async def _copy(source: trio.SocketStream, target: trio.SocketStream, limit: int | None) -> None:
    copied = 0
    try:
        while data := await source.receive_some(16 * 1024):
            await target.send_all(data)
            copied += len(data)
            if limit is not None and copied >= limit:
                return
    except trio.BrokenResourceError:
        return


class Leftovers:
    """Compare open files and Python's threads with what there was.

    Idle threads of Trio's cache do not count, nor those of a pool that a server which still runs may have grown.
    """

    def __init__(self, *, ignored: tuple[str, ...] = ("Trio thread", "grpc-pageserver")) -> None:
        self._ignored = ignored
        self._files = _open_files()
        self._threads = set(threading.enumerate())

    async def gone(self, *, within_seconds: float = 5.0) -> None:
        with trio.move_on_after(within_seconds):
            while self.found():
                await trio.sleep(0.01)
        if found := self.found():
            raise AssertionError(f"left over: {found}")

    def found(self) -> list[str]:
        threads = [thread.name for thread in set(threading.enumerate()) - self._threads]
        files = sorted((_open_files() - self._files).elements())
        return [name for name in threads if not name.startswith(self._ignored)] + files


def _open_files() -> Counter[str]:
    """Count open files by kind; a number would tell one socket from another that took its place."""
    kinds = Counter[str]()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            kinds[str(entry.readlink()).partition(":[")[0]] += 1
    return kinds
