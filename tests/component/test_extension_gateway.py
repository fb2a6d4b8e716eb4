"""One archive from a gateway to its places, however the gateway behaves (contract 06 R-18, R-19, §15)."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest
import trio

from tests.fakes.extensions import FILES, Gateway, Step, archive, packed, serving, tar_of
from trio_compute.deadlines import Deadlines
from trio_compute.errors import ComputeError, RemoteError, StorageError
from trio_compute.plan.remote_extensions import Archive
from trio_compute.postgres.extension_archive import Limits
from trio_compute.postgres.extension_staging import PREFIX, Places
from trio_compute.storage.extension_gateway import fetch_extension
from trio_compute.telemetry.metrics import REMOTE_EXTENSION_REQUESTS, metrics

DEMO = Archive("demo", "latest/amd64/v17/extensions/demo.tar.zst")
QUICK = Deadlines(extension_connect=2, extension_idle=2, extension_total=10)
BIG = archive({**FILES, "lib/demo.so": random.Random(1).randbytes(50_000).hex()})


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "extension").mkdir()
    (tmp_path / "lib").mkdir()
    return Places(tmp_path / "extension", tmp_path / "lib")


def installed(places: Places) -> list[str]:
    names = [path.name for path in (*places.extension.iterdir(), *places.library.iterdir())]
    assert not [name for name in names if name.startswith(PREFIX)], "temporary directories are left"
    return sorted(names)


ALL = sorted(name.rpartition("/")[2] for name in FILES)


def counted(status: str) -> float:
    return metrics.value(REMOTE_EXTENSION_REQUESTS, http_status=status, filename="demo.tar.zst")


async def fetch(
    gateway: Gateway,
    places: Places,
    deadlines: Deadlines = QUICK,
    limits: Limits | None = None,
    archive: Archive = DEMO,
) -> int:
    return await fetch_extension(gateway.base_url, archive, places, deadlines=deadlines, limits=limits)


async def test_an_archive_is_fetched_once_and_installed(places: Places) -> None:
    before = counted("200 OK")
    async with serving(Gateway(Step(archive()))) as gateway:
        assert await fetch(gateway, places) == len(archive())
    assert gateway.requests == {"/latest/amd64/v17/extensions/demo.tar.zst": 1}
    assert installed(places) == ALL
    assert counted("200 OK") == before + 1


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_that_fails_once_is_asked_again(places: Places, status: int) -> None:
    async with serving(Gateway(Step(status=status), Step(archive()))) as gateway:
        await fetch(gateway, places)
    assert gateway.requests.total() == 2
    assert installed(places) == ALL


async def test_a_body_that_breaks_off_is_fetched_again_from_its_beginning(places: Places) -> None:
    broken = Step(BIG[:30_000], declared=len(BIG))
    async with serving(Gateway(broken, Step(BIG))) as gateway:
        await fetch(gateway, places)
    assert gateway.requests.total() == 2
    assert installed(places) == ALL


@pytest.mark.parametrize(
    ("status", "requests", "text"),
    [
        (503, 3, "remote extensions server is temporarily unavailable"),
        (404, 1, "unexpected remote extensions server response status code: 404 Not Found"),
        (403, 1, "unexpected remote extensions server response status code: 403 Forbidden"),
        (204, 1, "unexpected remote extensions server response status code: 204 No Content"),
        (502, 3, "unexpected remote extensions server response status code: 502 Bad Gateway"),
    ],
)
async def test_an_error_of_the_gateway_is_told(places: Places, status: int, requests: int, text: str) -> None:
    async with serving(Gateway(Step(b"secret" if status != 204 else b"", status=status))) as gateway:
        with pytest.raises(RemoteError) as raised:
            await fetch(gateway, places)
    assert str(raised.value) == text
    assert gateway.requests.total() == requests
    assert installed(places) == []


async def test_each_request_is_counted_with_its_status(places: Places) -> None:
    before = {status: counted(status) for status in ("503 Service Unavailable", "404 Not Found", "unknown")}
    async with serving(Gateway(Step(status=503), Step(status=404))) as gateway:
        with pytest.raises(RemoteError):
            await fetch(gateway, places)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(RemoteError):
        await fetch_extension(f"http://127.0.0.1:{port}/", DEMO, places, deadlines=QUICK)
    added = {status: counted(status) - number for status, number in before.items()}
    assert added == {"503 Service Unavailable": 1, "404 Not Found": 1, "unknown": 3}


@pytest.mark.parametrize(
    "body",
    [
        b"<html>junk</html>",
        BIG[: len(BIG) // 2],
        archive()[:-1],
        packed(tar_of(FILES)[:1500]),
        archive({**FILES, "lib/../../evil": "x"}),
        b"",
    ],
    ids=["junk", "half", "one byte short", "half a tar", "climbs", "empty"],
)
async def test_an_archive_that_is_refused_is_not_fetched_again_and_installs_nothing(
    places: Places, body: bytes
) -> None:
    """R-19."""
    async with serving(Gateway(Step(body))) as gateway:
        with pytest.raises(StorageError, match=r"demo\.tar\.zst"):
            await fetch(gateway, places)
        assert gateway.requests.total() == 1
        assert installed(places) == []
        gateway.steps = [Step(archive())]
        await fetch(gateway, places)
    assert installed(places) == ALL


async def test_the_size_is_limited(places: Places) -> None:
    """R-18."""
    async with serving(Gateway(Step(BIG))) as gateway:
        with pytest.raises(StorageError, match="larger than 20000 bytes"):
            await fetch(gateway, places, limits=Limits(compressed_bytes=20_000))
    assert installed(places) == []


async def test_a_wrong_digest_installs_nothing(places: Places) -> None:
    """R-18."""
    async with serving(Gateway(Step(archive()))) as gateway:
        with pytest.raises(StorageError, match="SHA-256"):
            await fetch(gateway, places, archive=Archive("demo", "x", "0" * 64))
    assert installed(places) == []


@pytest.mark.parametrize(
    ("step", "deadlines", "text"),
    [
        (Step(hold_before=trio.Event()), Deadlines(extension_total=0.3), "not downloaded within 0.3 s"),
        (Step(BIG, hold_after=30_000), Deadlines(extension_total=0.3), "not downloaded within 0.3 s"),
        (Step(BIG, hold_after=30_000), Deadlines(extension_idle=0.1), "ReadTimeout"),
        (Step(hold_before=trio.Event()), Deadlines(extension_idle=0.1), "ReadTimeout"),
    ],
)
async def test_a_gateway_that_stands_still_is_given_up(
    places: Places, step: Step, deadlines: Deadlines, text: str
) -> None:
    """R-18, D-33."""
    async with serving(Gateway(step)) as gateway:
        with pytest.raises(RemoteError, match=text):
            await fetch(gateway, places, deadlines)
    assert installed(places) == []


async def test_a_redirect_is_followed(places: Places) -> None:
    moved = Step(status=302, headers=[(b"location", b"/elsewhere/demo.tar.zst")])
    async with serving(Gateway(moved, Step(archive()))) as gateway:
        await fetch(gateway, places)
    assert list(gateway.requests) == ["/latest/amd64/v17/extensions/demo.tar.zst", "/elsewhere/demo.tar.zst"]


@pytest.mark.parametrize("base", ["http://[::1", "ftp://localhost/", "http://"])
async def test_an_unusable_address_is_a_clear_error(places: Places, base: str) -> None:
    with pytest.raises(ComputeError):
        await fetch_extension(base, DEMO, places, deadlines=QUICK)
    assert installed(places) == []


@pytest.mark.parametrize(
    "step", [Step(hold_before=trio.Event()), Step(BIG, hold_after=0), Step(BIG, hold_after=50_000)]
)
async def test_a_cancellation_while_waiting_leaves_nothing(places: Places, step: Step) -> None:
    async with serving(Gateway(step)) as gateway:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, gateway, places)
            await (gateway.asked if step.hold_after is None else gateway.holding).wait()
            nursery.cancel_scope.cancel()
        assert installed(places) == []


async def test_a_cancellation_at_any_step_leaves_nothing_or_all(tmp_path: Path) -> None:
    async with serving(Gateway(Step(BIG))) as gateway:
        at = 0
        while await fetch_cancelled_at(at, gateway, tmp_path / str(at)):
            at += 1
    assert at > 20


async def fetch_cancelled_at(at: int, gateway: Gateway, root: Path) -> bool:
    """Cancel a download at a step of its task and return whether it took so many steps."""
    places = Places(root / "extension", root / "lib")
    for path in (places.extension, places.library):
        path.mkdir(parents=True)
    with trio.CancelScope() as scope:
        counter = CancelAt(at, trio.lowlevel.current_task(), scope)
        trio.lowlevel.add_instrument(counter)
        try:
            await fetch(gateway, places)
        finally:
            trio.lowlevel.remove_instrument(counter)
    assert installed(places) in ([], ALL)
    assert scope.cancelled_caught or installed(places) == ALL
    return counter.steps_left < 0


class CancelAt(trio.abc.Instrument):
    def __init__(self, steps: int, task: trio.lowlevel.Task, scope: trio.CancelScope) -> None:
        self.steps_left, self._task, self._scope = steps, task, scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.steps_left -= 1
            if self.steps_left == -1:
                trio.lowlevel.current_trio_token().run_sync_soon(self._scope.cancel)
