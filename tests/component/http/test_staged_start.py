"""Design §9: the cheap reads answer while Quart is not even imported, and what needs Quart waits for it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import trio

from tests.component.http.raw import connect, request_text
from tests.component.http.world import open_world
from trio_compute.http.front import LazyApp
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status


def run_python(script: str) -> str:
    """Run a script in a fresh interpreter and return what it printed."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_sockets_are_bound_before_anything_heavy_is_imported() -> None:
    loaded = run_python("""
        import sys
        import trio_compute.http.sockets
        print(*sorted({"trio", "hypercorn", "h11", "quart", "cryptography", "httpx", "psycopg"} & set(sys.modules)))
    """)
    assert loaded == ""


def test_cheap_reads_are_answered_without_quart_and_the_first_configure_loads_it() -> None:
    printed = run_python("""
        import sys, trio
        from tests.component.http.world import open_world, JSON
        from trio_compute.lifecycle.status import Status

        def quart():
            return sorted({"quart", "quart_trio", "werkzeug"} & set(sys.modules))

        async def main():
            async with open_world(Status.INIT) as world, world.client() as client:
                for path in ("/status", "/metrics.json", "/nowhere"):
                    print((await client.get(path)).status_code, end=" ")
                print((await client.get("/configure")).status_code, end=" ")
                print((await client.post("/configure", headers={"authorization": "none"})).status_code, end=" ")
                assert quart() == [], quart()
                print((await client.post("/configure", content=b"{}", headers=JSON)).status_code)
                assert "quart" in quart()

        trio.run(main)
    """)
    assert printed.splitlines()[-1] == "200 200 404 405 400 422"


def test_quart_is_loaded_unasked_while_a_pooled_compute_waits() -> None:
    run_python("""
        import sys, trio
        from tests.component.http.world import open_world, stands
        from trio_compute.lifecycle import events as ev
        from trio_compute.lifecycle.status import Status

        async def main():
            async with open_world(Status.RUNNING) as world, world.client() as client:
                assert (await client.post("/terminate?mode=x")).status_code == 400
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert "quart" not in sys.modules
            async with open_world(Status.EMPTY):
                await stands(lambda: "trio_compute.http.app" in sys.modules)

        import trio.testing
        trio.run(main)
    """)


class TestLazyApp:
    async def test_it_is_made_once_for_all_who_wait(self) -> None:
        made: list[object] = []

        def make() -> object:
            made.append(object())
            return made[0]

        lazy = LazyApp(make)  # type: ignore[arg-type]
        got: list[object] = []

        async def ask() -> None:
            got.append(await lazy())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert (len(made), got) == (1, made * 5)

    async def test_a_failure_is_tried_again_by_the_next(self) -> None:
        attempts = [ImportError("half written"), None]

        def make() -> str:
            if (error := attempts.pop(0)) is not None:
                raise error
            return "app"

        lazy = LazyApp(make)  # type: ignore[arg-type]
        with pytest.raises(ImportError):
            await lazy()
        assert await lazy() == "app"


async def test_a_client_that_leaves_while_quart_is_loaded_harms_nobody() -> None:
    async with open_world(Status.INIT) as world:
        async with connect(world.port) as client:
            await client.send(request_text("POST", "/terminate"))
        async with world.client() as good:
            assert (await good.post("/terminate")).status_code == 412
        world.compute.apply(ev.Started())
