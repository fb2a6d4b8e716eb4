"""POST /extension_server on the internal server, against a gateway of our own (contract 06 §10.3, §10.4, §15)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.component.http.world import World, open_world, stands
from tests.fakes import specs
from tests.fakes.extensions import FILES, Gateway, Step, archive, remote_extensions, serving
from tests.fakes.host import FakeHost
from trio_compute.errors import HostError
from trio_compute.lifecycle.status import Status
from trio_compute.plan.remote_extensions import Archive
from trio_compute.ports import Host
from trio_compute.postgres.extension_staging import PREFIX, Places
from trio_compute.postgres.installation import Installation
from trio_compute.settings import Settings

ALL = sorted(name.rpartition("/")[2] for name in FILES)
URL = "/extension_server/demo"
CLIENTS = 20


class Installer(FakeHost):
    """Install what it downloads, for real."""

    def __init__(self, settings: Settings, root: Path, installation: Installation | None = None) -> None:
        super().__init__(settings, specs.config())
        self.places = Places(root / "extension", root / "lib")
        for path in (self.places.extension, self.places.library):
            path.mkdir()
        self.installation = installation or Installation("PostgreSQL 17.11", 17, self.places)

    async def fetch_extension(self, archive: Archive, places: Places) -> int:
        return await Host.fetch_extension(self, archive, places)

    @property
    def installed(self) -> list[str]:
        names = [path.name for place in (self.places.extension, self.places.library) for path in place.iterdir()]
        assert not [name for name in names if name.startswith(PREFIX)], "temporary directories are left"
        return sorted(names)


@asynccontextmanager
async def opened(
    gateway: Gateway | None, root: Path, *, status: Status = Status.RUNNING, **changes: Any
) -> AsyncIterator[tuple[World, httpx.AsyncClient]]:
    base_url = None if gateway is None else gateway.base_url
    host = Installer(specs.settings(remote_ext_base_url=base_url), root)
    remote = {"remote_extensions": remote_extensions("demo", **changes)}
    async with (
        open_world(status, spec_changes=remote, host=host, remote_ext_base_url=base_url) as world,
        world.client(token=None, internal=True) as client,
    ):
        yield world, client


def installed(world: World) -> list[str]:
    assert isinstance(world.host, Installer)
    return world.host.installed


def waiting(world: World) -> int:
    """Return how many requests wait for downloads."""
    return sum(flight.landed.statistics().tasks_waiting for flight in world.life.extensions._flights.values())


@pytest.mark.parametrize("status", [Status.RUNNING, Status.INIT, Status.CONFIGURATION, Status.FAILED])
@pytest.mark.parametrize("url", [URL, "/extension_server/demo.so?is_library=true", f"{URL}?is_library=false&x=y"])
async def test_an_extension_is_installed_in_any_status(tmp_path: Path, status: Status, url: str) -> None:
    """§10.3: 200 and an empty body, also if it was there already."""
    async with (
        serving(Gateway(Step(archive()))) as gateway,
        opened(gateway, tmp_path, status=status) as (world, client),
    ):
        for _ in range(2):
            response = await client.post(url)
            assert (response.status_code, response.content) == (200, b"")
        assert installed(world) == ALL
    assert gateway.requests == {f"/latest/{_architecture()}/v17/extensions/demo.tar.zst": 1}


def _architecture() -> str:
    import platform

    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


async def test_twenty_clients_at_once_are_one_transfer(tmp_path: Path) -> None:
    """R-16, R-17, D-34, §15."""
    go = trio.Event()
    async with (
        serving(Gateway(Step(archive(), hold_before=go))) as gateway,
        opened(gateway, tmp_path) as (world, client),
    ):
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await client.post(URL)).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(ask)
            await stands(lambda: waiting(world) == CLIENTS)
            go.set()
        assert statuses == [200] * CLIENTS
        assert gateway.requests.total() == 1
        assert installed(world) == ALL


async def test_all_waiters_get_the_error_and_a_later_request_tries_again(tmp_path: Path) -> None:
    """R-16, D-34, A-23."""
    go = trio.Event()
    async with (
        serving(Gateway(Step(status=404, hold_before=go), Step(archive()))) as gateway,
        opened(gateway, tmp_path) as (world, client),
    ):
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await client.post(URL))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await stands(lambda: waiting(world) == 5)
            go.set()
        text = (
            "failed to download extension demo.tar.zst: "
            "unexpected remote extensions server response status code: 404 Not Found"
        )
        assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [(500, text)] * 5
        assert gateway.requests.total() == 1
        assert (await client.post(URL)).status_code == 200
        assert installed(world) == ALL


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Step(status=503), "remote extensions server is temporarily unavailable"),
        (Step(b"junk"), "zstd stream is corrupt"),
        (Step(archive()[:-7]), "zstd stream ends early"),
        (Step(archive({**FILES, "share/extension/../../evil": "x"})), "`..`"),
    ],
)
async def test_a_failed_download_is_500_and_can_be_repeated(tmp_path: Path, step: Step, text: str) -> None:
    async with serving(Gateway(step)) as gateway, opened(gateway, tmp_path) as (world, client):
        response = await client.post(URL)
        assert response.status_code == 500
        assert response.json()["error"].startswith("failed to download extension demo.tar.zst: ")
        assert text in response.json()["error"]
        assert installed(world) == []
        gateway.steps = [Step(archive())]
        assert (await client.post(URL)).status_code == 200


async def test_a_gateway_that_is_gone_is_500(tmp_path: Path) -> None:
    async with serving(Gateway(Step())) as gateway:
        pass
    async with opened(gateway, tmp_path) as (world, client):
        response = await client.post(URL)
        assert response.status_code == 500
        assert installed(world) == []


async def test_the_download_goes_on_though_the_client_leaves(tmp_path: Path) -> None:
    """§2: work never runs in the request's cancel scope."""
    go = trio.Event()
    async with (
        serving(Gateway(Step(archive(), hold_before=go))) as gateway,
        opened(gateway, tmp_path) as (world, client),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.post, URL)
            await gateway.asked.wait()
            nursery.cancel_scope.cancel()
        go.set()
        assert (await client.post(URL)).status_code == 200
        assert gateway.requests.total() == 1
        assert installed(world) == ALL


async def test_who_waits_when_the_compute_ends_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    async with serving(Gateway(Step(archive(), hold_after=50))) as gateway:
        async with trio.open_nursery() as nursery:
            async with opened(gateway, tmp_path) as (world, _):
                client = await nursery.start(hold_client, world)

                async def ask() -> None:
                    answers.append(await client.post(URL))
                    nursery.cancel_scope.cancel()

                nursery.start_soon(ask)
                await gateway.holding.wait()
            assert installed(world) == []
    assert [(answer.status_code, answer.json()) for answer in answers] == [(503, {"error": "compute is terminating"})]


async def hold_client(world: World, *, task_status: trio.TaskStatus[httpx.AsyncClient]) -> None:
    async with world.client(token=None, internal=True) as client:
        task_status.started(client)
        await trio.sleep_forever()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("/extension_server/other", "extension other is not found"),
        ("/extension_server/demo.so", "extension demo.so is not found"),
        ("/extension_server/none.so.1?is_library=true", "library none is not found"),
        ("/extension_server/listed", "real_ext_name listed is not found"),
        ("/extension_server/a/b", "extension a/b is not found"),
        ("/extension_server/..%2F..%2Fetc%2Fpasswd", "extension ../../etc/passwd is not found"),
        ("/extension_server/%C3%BC", "extension ü is not found"),
    ],
)
async def test_what_the_spec_does_not_know_is_404(tmp_path: Path, url: str, text: str) -> None:
    """§10.2; R-25: no such name becomes a label, since nothing is asked for."""
    public = ["demo", "listed"]
    async with serving(Gateway(Step(archive()))) as gateway:
        async with opened(gateway, tmp_path, public_extensions=public) as (_, client):
            response = await client.post(url)
    assert (response.status_code, response.json()) == (404, {"error": text})
    assert gateway.requests.total() == 0


async def test_without_a_gateway_it_is_412(tmp_path: Path) -> None:
    async with opened(None, tmp_path) as (_, client):
        response = await client.post(URL)
    assert (response.status_code, response.json()) == (412, {"error": "remote storage is not configured"})


@pytest.mark.parametrize("status", [Status.EMPTY, Status.RUNNING])
async def test_without_a_spec_or_without_extensions_in_it_it_is_409(status: Status) -> None:
    """R-26, A-01, D-25."""
    async with (
        open_world(status, remote_ext_base_url="http://127.0.0.1:1/") as world,
        world.client(token=None, internal=True) as client,
    ):
        response = await client.post(URL)
        assert (await client.post("/refresh_configuration")).status_code in {200, 500}
    error = "information about remote extensions is unavailable"
    assert (response.status_code, response.json()) == (409, {"error": error})


@pytest.mark.parametrize("query", ["is_library=x", "is_library=", "is_library"])
async def test_an_unusable_flag_is_400(tmp_path: Path, query: str) -> None:
    """03 §2.1."""
    async with opened(None, tmp_path) as (_, client):
        response = await client.post(f"{URL}?{query}")
    assert response.status_code == 400
    assert response.json()["error"].startswith("failed to deserialize query string: ")


async def test_an_unknown_major_is_a_clear_error(tmp_path: Path) -> None:
    """R-22."""
    async with serving(Gateway(Step(archive()))) as gateway, opened(gateway, tmp_path) as (world, client):
        world.host.installation = Installation("PostgreSQL 13.1", None, world.host.installation.places)
        response = await client.post(URL)
    assert (response.status_code, response.json()) == (
        500,
        {"error": "there are no remote extensions for PostgreSQL 13.1"},
    )
    assert gateway.requests.total() == 0


async def test_a_missing_pg_config_is_a_clear_error(tmp_path: Path) -> None:
    """R-22."""
    async with serving(Gateway(Step(archive()))) as gateway, opened(gateway, tmp_path) as (world, client):
        world.host.failures["inspect_installation"] = [HostError("pg_config is neither beside /x nor in PATH"), None]
        response = await client.post(URL)
        assert (response.status_code, response.json()) == (500, {"error": "pg_config is neither beside /x nor in PATH"})
        assert (await client.post(URL)).status_code == 200


async def test_the_external_server_does_not_have_it(tmp_path: Path) -> None:
    async with opened(None, tmp_path) as (world, _), world.client() as client:
        assert (await client.post(URL)).status_code == 404


@pytest.mark.parametrize(("method", "status"), [("GET", 405), ("PUT", 405)])
async def test_only_post_is_allowed(tmp_path: Path, method: str, status: int) -> None:
    async with opened(None, tmp_path) as (_, client):
        response = await client.request(method, URL)
    assert (response.status_code, response.headers["allow"]) == (status, "POST")
