"""Archives of extensions, honest and hostile ones, and the gateway that they come from."""

from __future__ import annotations

import io
import socket
import tarfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
import zstandard

from trio_compute.http.exchange import Message, Receive, Send
from trio_compute.http.serve import serve_app

CONTROL = "comment = 'a test'\ndefault_version = '1.0'\nrelocatable = true\n"
FILES = {
    "share/extension/demo.control": CONTROL,
    "share/extension/demo--1.0.sql": "CREATE FUNCTION demo_answer() RETURNS int LANGUAGE sql AS 'SELECT 42';\n",
    "lib/demo.so": "not really a library\n",
}
Change = Callable[[tarfile.TarInfo], None]


Files = Mapping[str, str | bytes]


def tar_of(files: Files, *entries: tarfile.TarInfo, gnu: bool = False) -> bytes:
    """Return a tar of files, and of entries without content behind them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT if gnu else tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for entry in entries:
            tar.addfile(entry)
    return out.getvalue()


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return an entry of any type."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def packed(tar: bytes) -> bytes:
    """Return a tar as the gateway serves it."""
    return zstandard.ZstdCompressor().compress(tar)


def archive(files: Files | None = None, *entries: tarfile.TarInfo) -> bytes:
    """Return an archive as the gateway serves it."""
    return packed(tar_of(FILES if files is None else files, *entries))


class Step:
    """Say how one request is answered: `declared` is what content-length says, `hold_after` bytes it stands still."""

    def __init__(
        self,
        body: bytes = b"",
        *,
        status: int = 200,
        declared: int | None = None,
        hold_before: trio.Event | None = None,
        hold_after: int | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.body, self.status, self.declared = body, status, declared
        self.hold_before, self.hold_after = hold_before, hold_after
        self.headers = list(headers)


class Gateway:
    """Answer each request with the next step, the last one again and again; count requests by path."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: Counter[str] = Counter()
        self.asked = trio.Event()
        self.holding = trio.Event()
        self.base_url = ""

    async def app(self, scope: Message, receive: Receive, send: Send) -> None:
        self.requests[scope["raw_path"].decode()] += 1
        self.asked.set()
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if step.hold_before is not None:
            await step.hold_before.wait()
        length = len(step.body) if step.declared is None else step.declared
        headers = [(b"content-length", str(length).encode()), *step.headers]
        await send({"type": "http.response.start", "status": step.status, "headers": headers})
        sent = len(step.body) if step.hold_after is None else step.hold_after
        await send({"type": "http.response.body", "body": step.body[:sent], "more_body": True})
        if step.hold_after is not None:
            self.holding.set()
            await trio.sleep_forever()
        if length != len(step.body):
            raise RuntimeError("the gateway breaks off")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[Gateway]:
    """Serve the gateway on a free port for the length of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        async with trio.open_nursery() as nursery:
            await nursery.start(
                partial(serve_app, gateway.app, [listening], draining=trio.sleep_forever, drain_seconds=0)
            )
            gateway.base_url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            yield gateway
            nursery.cancel_scope.cancel()


def remote_extensions(*names: str, **changes: Any) -> dict[str, Any]:
    """Return the part of a spec that allows some extensions, each with a library of its name."""
    return {
        "public_extensions": list(names),
        "custom_extensions": None,
        "library_index": {name: name for name in names},
        "extension_data": {
            name: {"control_data": {f"{name}.control": CONTROL}, "archive_path": "ignored"} for name in names
        },
        **changes,
    }
