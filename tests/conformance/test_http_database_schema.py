"""GET /database_schema with scripts in place of pg_dump (contract 06 §6, R-11, 03 §5.5)."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import trio

from tests.component.http.world import World, open_world, stands
from tests.fakes import specs
from tests.fakes.host import FakeHost
from tests.fakes.programs import install_program
from trio_compute.deadlines import Deadlines
from trio_compute.errors import TimedOut
from trio_compute.host.run_as import RunAs
from trio_compute.lifecycle.status import Status
from trio_compute.postgres.dump_places import DumpPlaces
from trio_compute.postgres.tools import PostgresTools

CONNSTR = "postgresql://cloud_admin:s3cr3tpassword@127.0.0.1:55433/postgres?options=-c%20a.b%3D1"
URL = "/database_schema?database=postgres"


class DumpHost(FakeHost):
    """Run a script in place of pg_dump."""

    schema_dump = PostgresTools.schema_dump

    def __init__(self, directory: Path, script: str | None, deadlines: Deadlines = Deadlines()) -> None:  # noqa: B008
        super().__init__(specs.settings(pgdata=directory, connstr=CONNSTR, deadlines=deadlines), specs.config())
        self.directory = directory
        self.pgbin = directory / "postgres"
        self.run_as = RunAs()
        self._dump_places = DumpPlaces(self.dumps_that_wait, at_work=2)
        self._dump_numbers = count(1)
        if script is not None:
            install_program(directory, "pg_dump", f'cd "${{0%/*}}"\n{script}')

    def _environ(self, parsed: object) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": "/nowhere", "NEON_CONTROL_PLANE_TOKEN": "s3cr3ttoken"}


async def ask(tmp_path: Path, script: str, url: str = URL, status: Status = Status.RUNNING) -> httpx.Response:
    async with open_world(status, host=DumpHost(tmp_path, script)) as world, world.client() as client:
        return await client.get(url)


async def test_the_text_is_passed_on_as_text(tmp_path: Path) -> None:
    response = await ask(tmp_path, 'echo "-- ü"; echo "$*" > called; env > environ; ps -o args= $$ > seen')
    assert (response.status_code, response.text) == (200, "-- ü\n")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    said = "--host 127.0.0.1 --port 55433 --username cloud_admin --lock-wait-timeout=10000ms --schema-only\n"
    assert (tmp_path / "called").read_text() == said
    environ = dict(line.partition("=")[::2] for line in (tmp_path / "environ").read_text().splitlines())
    known = {"PGDATABASE": "postgres", "PGPASSWORD": "s3cr3tpassword", "LC_ALL": "C"}
    assert known.items() <= environ.items()
    options = environ["PGOPTIONS"]
    assert options.endswith(" -c lc_messages=C -c client_connection_check_interval=1000")
    # T-01: what keeps strangers out comes after the operator's own.
    assert options.index("-c a.b=1 ") < options.index("-c search_path=pg_catalog,pg_temp ")
    assert environ["PGCONNECT_TIMEOUT"] == "5"
    assert environ["PGCLIENTENCODING"] == "UTF8"


async def test_the_program_gets_no_more_of_our_environment_than_it_needs(tmp_path: Path) -> None:
    """T-13, Q-08: a list of names; what pg_dump is told besides begins with PG."""
    await ask(tmp_path, "echo; env > environ")
    names = {line.partition("=")[0] for line in (tmp_path / "environ").read_text().splitlines()}
    of_the_shell = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert {name for name in names if not name.startswith("PG")} - of_the_shell == {"PATH", "LD_LIBRARY_PATH", "LC_ALL"}


async def test_the_password_is_not_on_the_command_line(tmp_path: Path) -> None:
    """R-11: everybody on the machine can read it there."""
    await ask(tmp_path, "echo; tr '\\0' ' ' < /proc/$$/cmdline > cmdline")
    assert "s3cr3t" not in (tmp_path / "cmdline").read_text()


@pytest.mark.parametrize("name", ['a"b', "a=b c", "ü", "a%b", "'; --", "x" * 63, "new\nline", "host=elsewhere"])
async def test_the_name_goes_through_the_environment_as_it_is(tmp_path: Path, name: str) -> None:
    script = 'printf "%s" "$PGDATABASE"'
    response = await ask(tmp_path, script, f"/database_schema?database={quote(name)}")
    assert (response.status_code, response.text) == (200, name)


@pytest.mark.parametrize("name", ["a%00b", "x" * 64, "%C3%BC" * 32, ""])
async def test_a_name_that_postgres_cannot_have_is_400(tmp_path: Path, name: str) -> None:
    """A-17, R-11."""
    response = await ask(tmp_path, "echo; touch called", f"/database_schema?database={name}")
    assert response.status_code == 400
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("query", ["", "?", "?other=x"])
async def test_a_missing_name_is_400(tmp_path: Path, query: str) -> None:
    """03 §2.1."""
    response = await ask(tmp_path, "echo", f"/database_schema{query}")
    text = "failed to deserialize query string: missing field `database`"
    assert (response.status_code, response.json()) == (400, {"error": text})


REFUSING = {Status.EMPTY, Status.INIT, *(status for status in Status if "terminat" in status.value)}


@pytest.mark.parametrize("status", sorted(REFUSING, key=lambda status: status.value))
async def test_where_postgres_cannot_be_up_it_is_412(tmp_path: Path, status: Status) -> None:
    """03 §5.5."""
    response = await ask(tmp_path, "echo; touch called", status=status)
    assert (response.status_code, response.json()) == (412, {"error": f"invalid compute status: {status.kebab}"})
    assert not (tmp_path / "called").exists()


async def test_a_database_that_is_not_there_is_404(tmp_path: Path) -> None:
    """R-11: whatever language the message is in."""
    script = 'echo "pg_dump: FATAL: la base n\'existe pas" >&2; exit 1'
    response = await ask(tmp_path, script, "/database_schema?database=none")
    assert (response.status_code, response.json()) == (404, {"error": "database does not exist"})


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (
            "echo 'password=hunter2 is wrong' >&2; exit 1",
            "failed to execute pg_dump: pg_dump failed with code 1: password=[redacted] is wrong",
        ),
        ("exit 0", "failed to execute pg_dump"),
        ("kill -9 $$", "failed to execute pg_dump: pg_dump failed with code -9"),
    ],
)
async def test_a_dump_that_fails_at_once_is_500(tmp_path: Path, script: str, text: str) -> None:
    response = await ask(tmp_path, script)
    assert (response.status_code, response.json()) == (500, {"error": text})


async def test_a_pg_dump_that_cannot_be_executed_is_500(tmp_path: Path) -> None:
    path = install_program(tmp_path, "pg_dump", "")
    path.write_text("#!/nowhere/sh\n")
    async with open_world(host=DumpHost(tmp_path, None)) as world, world.client() as client:
        response = await client.get(URL)
    assert response.status_code == 500
    assert response.json()["error"].startswith("failed to execute pg_dump: cannot execute")


@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$"])
async def test_a_dump_that_fails_in_the_middle_breaks_the_answer_off(tmp_path: Path, end: str) -> None:
    """R-11: what is incomplete must not look complete."""
    script = f"echo first; echo 'it broke' >&2; {end}"
    async with open_world(host=DumpHost(tmp_path, script)) as world, world.client() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(URL)


async def test_warnings_do_not_block_the_dump(tmp_path: Path) -> None:
    """R-11: the error stream may be full before the text begins."""
    script = "head -c 1000000 /dev/zero | tr '\\0' w >&2; echo done"
    with trio.fail_after(10):
        response = await ask(tmp_path, script)
    assert (response.status_code, response.text) == (200, "done\n")


async def test_a_large_dump_comes_whole(tmp_path: Path) -> None:
    response = await ask(tmp_path, "head -c 5000000 /dev/zero | tr '\\0' x")
    assert response.content == b"x" * 5_000_000


HOLDING = "echo $$ > pid.$$.new; mv pid.$$.new pid.$$; echo first; exec sleep 1000"


def children(world: World) -> list[int]:
    assert isinstance(world.host, DumpHost)
    return [int(path.name.removeprefix("pid.")) for path in world.host.directory.glob("pid.*[0-9]")]


def are_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_a_client_that_leaves_ends_the_dump(tmp_path: Path) -> None:
    """§6, D-49: no child is left, no zombie either."""
    async with open_world(host=DumpHost(tmp_path, HOLDING)) as world, world.client() as client:
        async with client.stream("GET", URL) as response:
            assert response.status_code == 200
            await stands(lambda: len(children(world)) == 1)
        await stands(lambda: are_gone(children(world)))


async def test_a_client_that_leaves_before_the_first_text_ends_the_dump(tmp_path: Path) -> None:
    script = HOLDING.replace("echo first; ", "")
    async with open_world(host=DumpHost(tmp_path, script)) as world, world.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get, URL)
            await stands(lambda: len(children(world)) == 1)
            nursery.cancel_scope.cancel()
        await stands(lambda: are_gone(children(world)))


async def test_a_client_that_reads_nothing_does_not_keep_the_dump_when_the_compute_ends(tmp_path: Path) -> None:
    """The end of the compute's life ends it, whoever reads."""
    script = "echo $$ > pid.$$.new; mv pid.$$.new pid.$$; exec cat /dev/zero"
    async with open_world(host=DumpHost(tmp_path, script)) as world, world.client() as client:
        async with client.stream("GET", URL) as response:
            assert response.status_code == 200
            await stands(lambda: len(children(world)) == 1)
            assert world.life.errands._nursery is not None
            world.life.errands._nursery.cancel_scope.cancel()
            await stands(lambda: are_gone(children(world)))


async def test_only_some_run_at_once_and_the_others_wait(tmp_path: Path) -> None:
    """R-11."""
    script = "echo $$ > pid.$$.new; mv pid.$$.new pid.$$; while [ ! -e go ]; do sleep 0.01; done; echo done"
    async with open_world(host=DumpHost(tmp_path, script)) as world, world.client() as client:
        texts: list[str] = []

        async def get() -> None:
            texts.append((await client.get(URL)).text)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(get)
            await stands(lambda: len(children(world)) == 2)
            await stands(lambda: world.host._dump_places.queue_length == 3)
            assert len(children(world)) == 2
            (tmp_path / "go").touch()
        assert texts == ["done\n"] * 5
        assert len(children(world)) == 5


WAITING = "echo $$ > pid.$$.new; mv pid.$$.new pid.$$; exec sleep 1000"


async def test_dumps_that_wait_for_locks_leave_their_places_to_one_that_can_work(tmp_path: Path) -> None:
    """T-13: four of them blocked all dumps."""
    script = f'if [ "$PGDATABASE" = free ]; then echo done; else {WAITING}; fi'
    async with open_world(host=DumpHost(tmp_path, script)) as world, world.client() as client:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(client.get, URL)
            await stands(lambda: len(children(world)) == 2)
            assert world.host._dump_places.queue_length == 2
            world.host.dumps_at_locks = {f"compute_ctl:database_schema:{number}" for number in range(1, 5)}
            await stands(lambda: len(children(world)) == 4)
            response = await client.get("/database_schema?database=free")
            assert (response.status_code, response.text) == (200, "done\n")
            nursery.cancel_scope.cancel()


async def test_dumps_that_wait_for_their_readers_leave_their_places_too(tmp_path: Path) -> None:
    """T-13: of two that are not read to the end, none keeps a third from working."""
    script = 'if [ "$PGDATABASE" = free ]; then echo done; else exec cat /dev/zero; fi'
    async with open_world(host=DumpHost(tmp_path, script)) as world, world.client() as client:
        async with client.stream("GET", URL), client.stream("GET", URL):
            response = await client.get("/database_schema?database=free")
            assert (response.status_code, response.text) == (200, "done\n")


async def test_dumps_whose_state_is_not_known_keep_their_places(tmp_path: Path) -> None:
    """T-13: a Postgres that cannot be asked makes nobody believe that dumps wait."""

    class Silent(DumpHost):
        async def dumps_that_wait(self, names: object) -> set[str]:
            raise TimedOut

    async with open_world(host=Silent(tmp_path, WAITING, Deadlines(dump_total=1.0))) as world, world.client() as client:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.get, URL)
            await stands(lambda: world.host._dump_places.queue_length == 1)
            await stands(lambda: len(children(world)) == 2)
            response = await client.get(URL)
        assert response.status_code == 504
        await stands(lambda: are_gone(children(world)))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "pg_dump: error: query failed: ERROR:  canceling statement due to statement timeout",
            "timed out: somebody holds a lock that the dump needs, for more than 10 s",
        ),
        (
            'pg_dump: error: connection to server at "127.0.0.1", port 55433 failed: timeout expired',
            "timed out: Postgres does not accept a connection within 5 s",
        ),
    ],
)
async def test_a_limit_of_pg_dump_is_504_with_the_reason(tmp_path: Path, said: str, reason: str) -> None:
    """T-13."""
    response = await ask(tmp_path, f"echo '{said}' >&2; exit 1")
    assert (response.status_code, response.json()) == (504, {"error": reason})


async def test_a_dump_that_takes_too_long_is_504_before_its_first_text(tmp_path: Path) -> None:
    """T-13."""
    async with open_world(host=DumpHost(tmp_path, WAITING, Deadlines(dump_total=0.3))) as world:
        async with world.client() as client:
            response = await client.get(URL)
        reason = "timed out: the dump, with the wait for its turn, took more than 0.3 s"
        assert (response.status_code, response.json()) == (504, {"error": reason})
        await stands(lambda: are_gone(children(world)))


async def test_a_dump_that_takes_too_long_is_broken_off_after_its_first_text(tmp_path: Path) -> None:
    """T-13."""
    async with open_world(host=DumpHost(tmp_path, HOLDING, Deadlines(dump_total=0.3))) as world:
        async with world.client() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(URL)
        await stands(lambda: are_gone(children(world)))


async def test_what_cannot_be_converted_comes_as_it_is(tmp_path: Path) -> None:
    """T-06: in a database of another encoding, one role name of arbitrary bytes made every dump fail."""
    script = 'if [ "$PGCLIENTENCODING" = UTF8 ]; then echo invalid >&2; exit 1; fi; printf "caf\\351\\n"'
    async with open_world(host=DumpHost(tmp_path, script)) as world, world.client() as client:
        assert (await client.get(URL)).status_code == 500  # in a UTF-8 database nothing is converted
        world.host.databases["postgres"] = "EUC_JP"
        response = await client.get(URL)
        assert (response.status_code, response.content) == (200, b"caf\xe9\n")
        assert response.headers["content-type"] == "text/plain"


async def test_head_starts_and_ends_one(tmp_path: Path) -> None:
    async with open_world(host=DumpHost(tmp_path, HOLDING)) as world, world.client() as client:
        response = await client.head(URL)
        assert (response.status_code, response.content) == (200, b"")
        await stands(lambda: are_gone(children(world)))
        assert len(children(world)) == 1


async def test_it_needs_a_token(tmp_path: Path) -> None:
    async with open_world(host=DumpHost(tmp_path, "echo")) as world, world.client(token=None) as client:
        assert (await client.get(URL)).status_code in {400, 401}
