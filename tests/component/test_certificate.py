"""TLS files and conditions of a start, seen from the whole program over a fake world."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from tests.fakes.certificates import Files
from tests.fakes.host import FakeChild, FakeHost, FakeServers
from tests.fakes.specs import config, settings, spec_dict
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import Status
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.spec import TlsConfig
from trio_compute.run import run
from trio_compute.services import certificate
from trio_compute.settings import Settings

Script = Callable[[Compute, FakeHost], Awaitable[None]]


async def play(values: Settings, tls: dict[str, str] | None, script: Script, **spec: Any) -> FakeHost:
    """Run a compute whose configuration names TLS files, beside a script; return its world."""
    ctl = {"jwks": {"keys": []}, "tls": tls}
    host = FakeHost(values, config(spec_dict(**spec), compute_ctl_config=ctl), pace=0)
    host.child = FakeChild({signal.SIGINT: 0, signal.SIGQUIT: 0})
    servers = FakeServers()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def perform() -> None:
                await servers.ready.wait()
                await script(servers.compute, host)
                servers.compute.request_termination(immediate=True)
                servers.compute.linger_cut.set()

            nursery.start_soon(perform)
            await run(values, host, servers)
    return host


class Looks:
    """Count how often the watcher asks what is in use."""

    def __init__(self, host: FakeHost) -> None:
        self._asked = trio.Event()
        self._real = host.tls_in_use
        setattr(host, "tls_in_use", self._ask)  # noqa: B010

    def _ask(self, parsed: ParsedSpec | None) -> TlsConfig | None:
        self._asked.set()
        self._asked = trio.Event()
        return self._real(parsed)

    async def some(self) -> None:
        for _ in range(3):
            await self._asked.wait()


@pytest.fixture
def brief(tmp_path: Path) -> Settings:
    values = settings(pgdata=tmp_path)
    return structs.replace(values, deadlines=structs.replace(values.deadlines, linger=0.01, brief_linger=0.01))


@pytest.mark.parametrize("is_used", [True, False])
async def test_a_renewed_certificate_is_installed_without_a_change_of_status(
    brief: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_used: bool
) -> None:
    """F-28, D-35: only after a real change, and only with the feature; `/configure` never meets another status."""
    monkeypatch.setattr(certificate.watch_certificate, "__kwdefaults__", {"poll_seconds": 0.001})
    files = Files(tmp_path)
    files.write("P-256")
    installed = tmp_path / "server.crt"
    installed.write_bytes(files.cert_path.read_bytes())

    async def script(compute: Compute, host: FakeHost) -> None:
        looks = Looks(host)
        await compute.reach(Status.RUNNING)
        reloads = host.child.reloads
        await looks.some()
        assert host.child.reloads == reloads, "nothing was new"
        files.write("P-256")
        await looks.some()
        while is_used and host.child.reloads == reloads:
            await looks.some()
        assert (host.child.reloads > reloads) is is_used
        assert [passage.target for passage in compute.history] == [Status.INIT, Status.RUNNING]

    features = ["tls_experimental"] if is_used else []
    host = await play(brief, files.document, script, features=features, skip_pg_catalog_updates=True)
    assert ("install_certificate" in host.calls) is is_used


@pytest.mark.parametrize(
    ("changes", "spec", "text"),
    [
        ({}, {"audit_log_level": "Extended"}, "AUDIT_LOGGING_ENDPOINT and AUDIT_LOGGING_TLS_ENDPOINT are both empty"),
        ({"lakebase_mode": True, "connstr": "postgresql://a@h/p"}, {}, "lakebase mode needs a port"),
    ],
)
async def test_a_start_that_cannot_work_fails_before_pgdata_is_touched(
    brief: Settings, changes: dict[str, Any], spec: dict[str, Any], text: str
) -> None:
    """F-19, and 04 §4 for the audit endpoints."""

    async def script(compute: Compute, host: FakeHost) -> None:
        state = await compute.reach(Status.FAILED)
        assert text in (state.error or "")

    host = await play(structs.replace(brief, **changes), None, script, **spec)
    assert "recreate_pgdata" not in host.calls
