"""Extensions that come from a gateway, used by real Postgres in a server tree of its own (contract 06 §10, §11)."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.component.http.world import stands
from tests.fakes.extensions import CONTROL, FILES, Gateway, Step, archive, remote_extensions, serving
from tests.integration.compute import Rig
from tests.integration.conftest import ordinary_run_as
from trio_compute.embedded import binaries
from trio_compute.embedded.services import open_services
from trio_compute.embedded.world import World
from trio_compute.errors import HostError
from trio_compute.host.run_as import RunAs
from trio_compute.postgres.extension_staging import PREFIX
from trio_compute.postgres.installation import inspect_installation

pytestmark = pytest.mark.postgres

SQL_ONLY = {name: text for name, text in FILES.items() if name.endswith(".sql")}
FUNCTION = "SELECT demo_answer()"


@pytest.fixture
def tree(major: int, public_tmp: Path) -> Path:
    """Copy a server tree, into which extensions may be installed."""
    copy = public_tmp / "tree"
    shutil.copytree(binaries.ensure(major), copy, symlinks=True)
    return copy


@pytest.fixture
async def own_rig(tree: Path, seeded_world: Path, major: int, public_tmp: Path) -> AsyncIterator[Rig]:
    directory = public_tmp / "world"
    shutil.copytree(seeded_world, directory, symlinks=True)
    world = World(directory, tree, major, ordinary_run_as())
    answers: dict[str, dict[str, Any]] = {}
    async with open_services(world, answer=answers.get) as addresses:
        rig = Rig(world, addresses, answers)
        yield rig
    assert rig.leftovers() == []


def place(tree: Path, option: str) -> Path:
    done = subprocess.run([tree / "bin" / "pg_config", option], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tree)
    return path


def leftovers(tree: Path) -> list[Path]:
    return list(tree.rglob(f"{PREFIX}*"))


def a_real_library(tree: Path) -> bytes:
    return (place(tree, "--pkglibdir") / "auto_explain.so").read_bytes()


def config(rig: Rig, **changes: Any) -> dict[str, Any]:
    return rig.config(remote_extensions=remote_extensions("demo", **changes))


async def create(rig: Rig, sql: Any) -> list[tuple[Any, ...]]:
    await trio.to_thread.run_sync(sql, rig.connstr, "CREATE EXTENSION demo")
    rows: list[tuple[Any, ...]] = await trio.to_thread.run_sync(sql, rig.connstr, FUNCTION)
    return rows


async def test_an_extension_of_sql_is_fetched_on_demand_and_created(own_rig: Rig, tree: Path, sql: Any) -> None:
    """§15 `test_remote_extensions`: files in place, counter 1 with the label, control file from the spec."""
    async with serving(Gateway(Step(archive(SQL_ONLY)))) as gateway:
        flags = {"--remote-ext-base-url": gateway.base_url}
        async with (
            own_rig.compute(config(own_rig), flags=flags) as child,
            httpx.AsyncClient(trust_env=False, timeout=60) as client,
        ):
            await child.reach("running")
            share = place(tree, "--sharedir") / "extension"
            assert (share / "demo.control").read_text() == CONTROL
            assert not (share / "demo--1.0.sql").exists()
            internal = f"http://127.0.0.1:{own_rig.ports.internal}"
            answers = []

            async def ask() -> None:
                answers.append(await client.post(f"{internal}/extension_server/demo"))

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask)
            assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"")] * 20
            assert await create(own_rig, sql) == [(42,)]
            text = (await client.get(f"http://127.0.0.1:{own_rig.ports.external}/metrics")).text
            assert re.findall(r"^compute_ctl_remote_ext_requests_total\{(.*)\} 1(?:\.0)?$", text, re.MULTILINE) == [
                'filename="demo.tar.zst",http_status="200 OK"'
            ]
            assert (await client.post(f"{internal}/extension_server/other")).status_code == 404
            await child.terminate("immediate")
    assert gateway.requests.total() == 1
    assert leftovers(tree) == []


async def test_a_preloaded_library_is_there_before_postgres_starts(own_rig: Rig, tree: Path, sql: Any) -> None:
    """§11."""
    data = archive({**SQL_ONLY, "lib/demo.so": a_real_library(tree)})
    document = config(own_rig)
    document["spec"]["cluster"]["settings"] = [
        {"name": "shared_preload_libraries", "value": "demo", "vartype": "string"}
    ]
    async with serving(Gateway(Step(data))) as gateway:
        async with own_rig.compute(document, flags={"--remote-ext-base-url": gateway.base_url}) as child:
            await child.reach("running")
            loaded = await trio.to_thread.run_sync(sql, own_rig.connstr, "SHOW shared_preload_libraries")
            assert loaded == [("demo",)]
            assert await create(own_rig, sql) == [(42,)]
            metrics = await child.metrics()
            await child.terminate("immediate")
    assert metrics["num_ext_downloaded"] == 1
    assert metrics["largest_ext_size"] == metrics["total_ext_download_size"] == len(data)
    assert metrics["load_ext_ms"] > 0
    assert (place(tree, "--pkglibdir") / "demo.so").stat().st_mode & 0o777 == 0o755


async def test_what_a_kill_leaves_is_swept_at_the_next_start(own_rig: Rig, tree: Path) -> None:
    """R-19."""
    filler = random.Random(1).randbytes(1_000_000)
    data = archive({**SQL_ONLY, "lib/demo.so": a_real_library(tree), "lib/filler": filler})
    document = config(own_rig)
    document["spec"]["cluster"]["settings"] = [
        {"name": "shared_preload_libraries", "value": "demo", "vartype": "string"}
    ]
    async with serving(Gateway(Step(data, hold_after=700_000), Step(data))) as gateway:
        flags = {"--remote-ext-base-url": gateway.base_url}
        async with own_rig.compute(document, flags=flags) as child:
            await gateway.holding.wait()
            await stands(lambda: len(leftovers(tree)) == 2)
            # Postgres has not been started yet: nothing else is left behind.
            os.kill(child.process.pid, signal.SIGKILL)
            await child.process.wait()
        assert len(leftovers(tree)) == 2
        async with own_rig.compute(document, flags=flags) as child:
            await child.reach("running")
            assert leftovers(tree) == []
            await child.terminate("immediate")


async def test_a_local_control_file_wins(own_rig: Rig, tree: Path) -> None:
    """§10.6."""
    control = place(tree, "--sharedir") / "extension" / "demo.control"
    control.write_text("comment = 'local'")
    async with own_rig.compute(config(own_rig)) as child:
        await child.reach("running")
        await child.terminate("immediate")
    assert control.read_text() == "comment = 'local'"
    assert "control file exists already" in own_rig.log()


async def test_an_unwritable_directory_fails_the_start_with_a_text(own_rig: Rig, tree: Path) -> None:
    """R-20."""
    share = place(tree, "--sharedir") / "extension"
    share.rename(share.with_name("moved"))
    async with own_rig.compute(config(own_rig)) as child:
        status = await child.reach("failed", give_up=())
        assert "cannot write into" in status["error"]
        assert str(share) in status["error"]


async def test_the_tree_of_a_version_says_what_it_is(tree: Path, major: int) -> None:
    installation = await inspect_installation(tree / "bin" / "postgres", environ=os.environ, run_as=RunAs())
    assert installation.major == major
    assert installation.places.extension == place(tree, "--sharedir") / "extension"
    assert installation.places.library == place(tree, "--pkglibdir")


async def test_a_pg_config_that_fails_is_a_clear_error(tmp_path: Path) -> None:
    """R-22."""
    program = tmp_path / "pg_config"
    program.write_text("#!/bin/sh\necho 'no idea' >&2; exit 3\n")
    program.chmod(0o755)
    with pytest.raises(HostError, match="failed with code 3: no idea"):
        await inspect_installation(tmp_path / "postgres", environ=os.environ, run_as=RunAs())
