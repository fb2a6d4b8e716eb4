"""The Trio connection against a real Postgres: what works, and what a cancellation leaves behind (nothing)."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import socket
import struct
import subprocess
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
import trio

from conftest import MAJORS
from trio_compute.db.connection import ConnectFailed, TrioConnection, open_connection
from trio_compute.db.target import Target
from trio_compute.embedded import binaries
from trio_compute.errors import ComputeError, SpecError, cause_chain

pytestmark = pytest.mark.postgres

SECRET = "s3cr3t/päss"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Start a throwaway Postgres and return its URL."""
    bin_directory = binaries.ensure(MAJORS[0]) / "bin"
    directory = Path(tempfile.mkdtemp(prefix="trio-connection-", dir="/tmp"))
    data = directory / "data"
    as_postgres: dict[str, object] = {}
    if os.geteuid() == 0:
        account = binaries.ordinary_user()
        assert account is not None
        os.chown(directory, account.pw_uid, account.pw_gid)
        as_postgres = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    directory.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: object) -> None:
        arguments = [str(part) for part in command]
        subprocess.run(arguments, check=True, cwd="/", stdout=subprocess.DEVNULL, **as_postgres)  # type: ignore[call-overload]

    run(bin_directory / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-locale")
    with (data / "postgresql.conf").open("a") as settings:
        settings.write(f"port={port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{directory}'\n")
        settings.write("fsync=off\nmax_connections=40\nautovacuum=off\ntimezone='UTC'\n")
    with (data / "pg_hba.conf").open("r+") as rules:
        rest = rules.read()
        rules.seek(0)
        rules.write("host all guarded all scram-sha-256\n" + rest)
    run(bin_directory / "pg_ctl", "-D", data, "-w", "-l", directory / "log", "start")
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres?application_name=trio-connection-test"
    finally:
        run(bin_directory / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(directory)


@pytest.fixture
def target(postgres_url: str) -> Target:
    return Target.parse(postgres_url)


@pytest.fixture
async def observer(target: Target) -> AsyncIterator[TrioConnection[tuple[object, ...]]]:
    async with open_connection(target.replace(application_name="observer")) as connection:
        yield connection


async def backends(observer: TrioConnection[tuple[object, ...]]) -> list[tuple[object, ...]]:
    cursor = await observer.execute(
        "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = 'trio-connection-test'"
    )
    return await cursor.fetchall()


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(5):
        while not await condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def nothing_left(observer: TrioConnection[tuple[object, ...]]) -> AsyncIterator[None]:
    """Assert that the block leaves no backend and no file descriptor behind."""
    before = open_files()
    yield

    async def gone() -> bool:
        return not await backends(observer)

    await wait_until(gone)
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def scalar(connection: TrioConnection[tuple[object, ...]], query: str) -> object:
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return row[0]


# ------------------------------------------------------------------------------------------------------- ordinary work


async def test_a_query_with_parameters_returns_rows(target: Target) -> None:
    async with open_connection(target) as connection:
        cursor = await connection.execute("SELECT %s::int + 1, %s::text, %s::text[]", (41, "ä'\"\\", ["x", None]))
        assert await cursor.fetchall() == [(42, "ä'\"\\", ["x", None])]


async def test_a_repeated_query_is_prepared_and_still_right(target: Target) -> None:
    async with open_connection(target) as connection:
        for number in range(12):
            cursor = await connection.execute("SELECT %s::int * 2", (number,))
            assert await cursor.fetchone() == (number * 2,)
        assert await scalar(connection, "SELECT count(*) FROM pg_prepared_statements") == 1


async def test_a_parameter_larger_than_all_socket_buffers_is_sent(target: Target) -> None:
    async with open_connection(target) as connection:
        cursor = await connection.execute("SELECT length(%s::text)", ("x" * 30_000_000,))
        assert await cursor.fetchone() == (30_000_000,)


async def test_a_transaction_commits_at_the_end_and_rolls_back_on_an_error(target: Target) -> None:
    async with open_connection(target) as connection:
        await connection.execute("CREATE TEMP TABLE t (n int)")
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(KeyError):  # noqa: PT012
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (2)")
                raise KeyError
        async with connection.transaction():
            with pytest.raises(psycopg.errors.DivisionByZero):
                async with connection.transaction():
                    await connection.execute("INSERT INTO t SELECT 1/0")
            await connection.execute("INSERT INTO t VALUES (3)")
        assert await scalar(connection, "SELECT array_agg(n ORDER BY n) FROM t") == [1, 3]


async def test_without_autocommit_only_what_is_committed_remains(target: Target) -> None:
    async with open_connection(target, autocommit=False) as connection:
        await connection.execute("CREATE TABLE kept ()")
        await connection.commit()
        await connection.execute("CREATE TABLE dropped ()")
        await connection.rollback()
        await connection.execute("CREATE TABLE forgotten ()")
    async with open_connection(target) as connection:
        names = "SELECT array_agg(relname::text) FROM pg_class WHERE relname IN ('kept', 'dropped', 'forgotten')"
        assert await scalar(connection, names) == ["kept"]
        await connection.execute("DROP TABLE kept")


async def test_an_sql_error_keeps_its_sqlstate_and_the_connection_usable(target: Target) -> None:
    async with open_connection(target) as connection:
        with pytest.raises(psycopg.errors.UndefinedTable) as caught:
            await connection.execute("SELECT * FROM nowhere")
        assert caught.value.sqlstate == "42P01"
        assert await scalar(connection, "SELECT 1") == 1


async def test_copy_streams_out_and_in(target: Target) -> None:
    async with open_connection(target) as connection:
        received = bytearray()
        async with connection.cursor().copy(
            "COPY (SELECT repeat('x', 99) FROM generate_series(1, 50000)) TO STDOUT"
        ) as c:
            async for block in c:
                received += block
        assert len(received) == 5_000_000
        await connection.execute("CREATE TEMP TABLE t (x text)")
        async with connection.cursor().copy("COPY t FROM STDIN") as copy:
            for start in range(0, len(received), 100_000):
                await copy.write(received[start : start + 100_000])
        assert await scalar(connection, "SELECT count(*) FROM t") == 50_000


async def test_executemany_pipelines_and_streams_work(target: Target) -> None:
    async with open_connection(target) as connection:
        await connection.execute("CREATE TEMP TABLE t (n int)")
        await connection.cursor().executemany("INSERT INTO t VALUES (%s)", [(n,) for n in range(500)])
        async with connection.pipeline(), connection.transaction():
            for _ in range(20):
                await connection.execute("INSERT INTO t VALUES (1000)")
        assert await scalar(connection, "SELECT count(*) FROM t") == 520
        seen = [row[0] async for row in connection.cursor().stream("SELECT n FROM t WHERE n < 500 ORDER BY n")]
        assert seen == list(range(500))


async def test_notifications_arrive_and_waiting_for_them_can_be_cancelled(
    target: Target, observer: TrioConnection[tuple[object, ...]]
) -> None:
    async with open_connection(target) as connection:
        await connection.execute("LISTEN bell")
        with trio.move_on_after(0.05):
            async for _ in connection.notifies():
                pass
        await observer.execute("NOTIFY bell, 'ding'")
        heard = [note.payload async for note in connection.notifies(stop_after=1)]
        assert heard == ["ding"]
        assert [note async for note in connection.notifies(timeout=0.05)] == []
        assert await scalar(connection, "SELECT 1") == 1


async def test_tasks_that_share_a_connection_take_turns(target: Target) -> None:
    results: list[object] = []

    async def ask(number: int) -> None:
        results.append(await scalar(connection, f"SELECT {number} FROM pg_sleep(0.01)"))

    async with open_connection(target) as connection, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, number)
    assert sorted(results) == list(range(10))


async def test_other_tasks_run_while_a_query_waits_and_while_rows_stream(target: Target) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_connection(target) as connection, trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await connection.execute("SELECT pg_sleep(0.05)")
        assert turns > 50
        turns = 0
        async with connection.cursor().copy("COPY (SELECT * FROM generate_series(1, 20000)) TO STDOUT") as copy:
            async for _ in copy:
                pass
        assert turns > 3
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------------------- cancellation


async def test_cancelling_a_query_stops_it_on_the_server(
    target: Target, observer: TrioConnection[tuple[object, ...]]
) -> None:
    async with nothing_left(observer), open_connection(target) as connection:
        started = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await connection.execute("SELECT pg_sleep(60)")
        assert scope.cancelled_caught
        assert trio.current_time() - started < 2
        assert [state for _, state, _ in await backends(observer)] == ["idle"]
        assert await scalar(connection, "SELECT 1") == 1


async def test_cancelling_several_statements_runs_none_of_the_rest(target: Target) -> None:
    async with open_connection(target) as connection:
        await connection.execute("CREATE TEMP TABLE t ()")
        with trio.move_on_after(0.1):
            await connection.execute("SELECT 1; SELECT pg_sleep(60); INSERT INTO t DEFAULT VALUES")
        assert await scalar(connection, "SELECT count(*) FROM t") == 0


async def test_a_query_in_a_cancelled_scope_is_not_even_sent(target: Target) -> None:
    async with open_connection(target) as connection:
        await connection.execute("CREATE TEMP SEQUENCE s")
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.execute("SELECT nextval('s')")
        assert await scalar(connection, "SELECT is_called FROM s") is False


async def test_cancelling_while_a_large_query_is_being_sent_leaves_a_usable_connection(target: Target) -> None:
    async with open_connection(target) as connection:
        for delay in (0, 0.001, 0.01, 0.03):
            with trio.move_on_after(delay):
                await connection.execute("SELECT pg_sleep(60), %s::text", ("x" * 20_000_000,))
            assert await scalar(connection, "SELECT 1") == 1


async def test_cancelling_a_transaction_block_rolls_it_back(target: Target) -> None:
    async with open_connection(target) as connection:
        await connection.execute("CREATE TEMP TABLE t (n int)")
        with trio.move_on_after(0.1):
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (1)")
                await connection.execute("SELECT pg_sleep(60)")
        with trio.move_on_after(0.1):
            async with connection.transaction(), connection.transaction():
                await connection.execute("INSERT INTO t VALUES (2)")
                await trio.sleep_forever()
        with trio.CancelScope() as scope:
            scope.cancel()
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (3)")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (4)")
        assert await scalar(connection, "SELECT array_agg(n) FROM t") == [4]


async def make_commit_slow(connection: TrioConnection[tuple[object, ...]], seconds: float) -> None:
    await connection.execute("CREATE TEMP TABLE t (n int)")
    await connection.execute(
        "CREATE FUNCTION pg_temp.nap() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$"
    )
    await connection.execute(
        "CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION pg_temp.nap()"
    )
    await connection.commit()


@pytest.mark.parametrize("block", [True, False])
async def test_a_commit_that_is_cancelled_still_ends_and_its_outcome_holds(target: Target, block: bool) -> None:
    async with open_connection(target, autocommit=block) as connection:
        await make_commit_slow(connection, 0.3)
        with trio.CancelScope() as scope:
            scope.deadline = trio.current_time() + 0.1
            if block:
                async with connection.transaction():
                    await connection.execute("INSERT INTO t VALUES (1)")
            else:
                await connection.execute("INSERT INTO t VALUES (1)")
                await connection.commit()
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert await scalar(connection, "SELECT count(*) FROM t") == 1


async def test_a_commit_outlasting_its_grace_closes_the_connection(
    target: Target, observer: TrioConnection[tuple[object, ...]]
) -> None:
    async with nothing_left(observer), open_connection(target, autocommit=False) as connection:
        await make_commit_slow(connection, 60)
        connection.settle_seconds = 0.1
        with trio.move_on_after(0.1) as scope:
            await connection.execute("INSERT INTO t VALUES (1)")
            await connection.commit()
        assert scope.cancelled_caught
        assert connection.closed


COPY_OUT = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 10000000)) TO STDOUT"


@pytest.mark.parametrize("query", ["COPY (SELECT pg_sleep(60)) TO STDOUT", COPY_OUT])
@pytest.mark.parametrize("delay", [0, 0.0005, 0.002, 0.05])
async def test_cancelling_a_copy_out_leaves_a_usable_connection(
    target: Target, observer: TrioConnection[tuple[object, ...]], query: str, delay: float
) -> None:
    async with nothing_left(observer), open_connection(target) as connection:
        with trio.move_on_after(delay) as scope:
            async with connection.cursor().copy(query) as copy:
                async for _ in copy:
                    pass
        assert scope.cancelled_caught
        assert await scalar(connection, "SELECT 1") == 1


@pytest.mark.parametrize("statement", [COPY_OUT, "COPY t FROM STDIN"])
async def test_cancelling_in_a_copy_block_that_does_something_else_leaves_a_usable_connection(
    target: Target, statement: str
) -> None:
    async with open_connection(target) as connection:
        await connection.execute("CREATE TEMP TABLE t (x text)")
        with trio.move_on_after(0.05):
            async with connection.cursor().copy(statement) as copy:
                if "STDIN" in statement:
                    await copy.write("one\n")
                else:
                    await copy.read()
                await trio.sleep_forever()
        assert await scalar(connection, "SELECT count(*) FROM t") == 0


@pytest.mark.parametrize("statement", [COPY_OUT, "COPY t FROM STDIN"])
async def test_an_error_in_a_copy_block_leaves_a_usable_connection(target: Target, statement: str) -> None:
    async with open_connection(target) as connection:
        await connection.execute("CREATE TEMP TABLE t (x text)")
        with pytest.raises(KeyError):
            async with connection.cursor().copy(statement):
                raise KeyError
        assert await scalar(connection, "SELECT count(*) FROM t") == 0


async def test_cancelling_a_copy_in_writes_nothing(target: Target) -> None:
    async with open_connection(target) as connection:
        await connection.execute("CREATE TEMP TABLE t (x text)")
        with trio.move_on_after(0.1) as scope:
            async with connection.cursor().copy("COPY t FROM STDIN") as copy:
                while True:
                    await copy.write("x" * 50_000 + "\n")
        assert scope.cancelled_caught
        assert await scalar(connection, "SELECT count(*) FROM t") == 0


async def test_cancelling_a_stream_leaves_a_usable_connection(target: Target) -> None:
    async with open_connection(target) as connection:
        with trio.move_on_after(0.05) as scope:
            async for _ in connection.cursor().stream("SELECT * FROM generate_series(1, 100000000)"):
                pass
        assert scope.cancelled_caught
        assert await scalar(connection, "SELECT 1") == 1


@pytest.mark.parametrize("delay", [0, 0.001, 0.1])
async def test_cancelling_a_pipeline_closes_its_connection_and_stops_the_server(
    target: Target, observer: TrioConnection[tuple[object, ...]], delay: float
) -> None:
    async with nothing_left(observer):
        async with open_connection(target) as connection:
            with trio.move_on_after(delay) as scope:
                async with connection.pipeline(), connection.transaction():
                    for _ in range(3):
                        await connection.execute("SELECT pg_sleep(20)")
            assert scope.cancelled_caught
            assert connection.closed or delay == 0
        async with open_connection(target) as connection:
            with trio.move_on_after(delay) as scope:
                async with connection.pipeline():
                    await connection.execute("SELECT pg_sleep(20)")
            assert scope.cancelled_caught
            assert connection.closed
        async with open_connection(target) as connection:
            with trio.move_on_after(delay) as scope:
                await connection.cursor().executemany("SELECT pg_sleep(%s)", [(20,)] * 3)
            assert scope.cancelled_caught
            assert connection.closed or delay == 0


async def test_closing_wakes_a_task_that_waits_for_a_query(
    target: Target, observer: TrioConnection[tuple[object, ...]]
) -> None:
    async with nothing_left(observer), trio.open_nursery() as nursery:
        connection = await TrioConnection.connect(target)

        async def ask() -> None:
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT pg_sleep(60)")

        nursery.start_soon(ask)
        await trio.sleep(0.1)
        await connection.close()


async def test_a_backend_that_is_terminated_is_an_error_and_leaves_nothing(
    target: Target, observer: TrioConnection[tuple[object, ...]]
) -> None:
    async with nothing_left(observer), open_connection(target) as connection, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(psycopg.errors.AdminShutdown):
                await connection.execute("SELECT pg_sleep(60)")
            assert connection.closed

        nursery.start_soon(ask)
        await trio.sleep(0.1)
        await observer.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))


async def test_a_backend_that_is_terminated_in_a_pipeline_is_an_error(
    target: Target, observer: TrioConnection[tuple[object, ...]]
) -> None:
    async with nothing_left(observer), open_connection(target) as connection:
        with pytest.raises(psycopg.OperationalError):  # noqa: PT012
            async with connection.pipeline() as pipeline:
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(20)")
                await pipeline.sync()
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")


async def test_cancelling_at_random_moments_leaves_nothing(
    target: Target, observer: TrioConnection[tuple[object, ...]]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    dice = random.Random(seed)

    async def use() -> None:
        async with open_connection(target) as connection:
            while True:
                await connection.execute("SELECT %s::int, pg_sleep(0.0005)", (1,))
                async with connection.transaction():
                    await connection.execute("CREATE TEMP TABLE IF NOT EXISTS t (x text)")
                    async with connection.cursor().copy(
                        "COPY (SELECT * FROM generate_series(1, 999)) TO STDOUT"
                    ) as out:
                        await out.read()
                        async for _ in out:
                            pass
                async with connection.cursor().copy("COPY t FROM STDIN") as copy:
                    await copy.write("x\n" * 100)
                await connection.cursor().executemany("SELECT %s::int", [(1,), (2,)])

    async def reuse(connection: TrioConnection[tuple[object, ...]]) -> None:
        async with connection.transaction():
            await connection.execute("SELECT pg_sleep(%s)", (dice.choice([0, 0.001, 60]),))
        async with connection.cursor().copy("COPY (SELECT pg_sleep(0.002)) TO STDOUT") as copy:
            async for _ in copy:
                pass
        await connection.execute("SELECT pg_sleep(60)")

    async with nothing_left(observer):
        for _ in range(100):
            with trio.move_on_after(dice.choice([0.003, 0.03]) * dice.random() * 2):
                await use()
        async with open_connection(target) as connection:
            for _ in range(100):
                with trio.move_on_after(dice.random() * 0.01):
                    await reuse(connection)
                assert await scalar(connection, "SELECT 1") == 1
                assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


# -------------------------------------------------------------------------------------------- servers that misbehave


@asynccontextmanager
async def serving(handle: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[Target]:
    """Serve TCP connections by a function on an ephemeral port."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield Target("127.0.0.1", listener.socket.getsockname()[1], password=SECRET)
        nursery.cancel_scope.cancel()


async def stay_silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


def greeting(key: bool) -> bytes:
    authenticated = b"R" + struct.pack("!ii", 8, 0)
    backend_key = b"K" + struct.pack("!iii", 12, 4711, 1234) if key else b""
    return authenticated + backend_key + b"Z" + struct.pack("!ic", 5, b"I")


async def test_cancelling_while_connecting_leaks_nothing(target: Target) -> None:
    async with serving(stay_silent) as silent:
        await trio.sleep(0.05)
        before = open_files()
        for delay in (0, 0.001, 0.05, 0.05):
            with trio.move_on_after(delay) as scope:
                await TrioConnection.connect(silent)
            assert scope.cancelled_caught
            assert open_files() <= before + 4  # the listener's side of each connection
        assert silent.port not in [peer_port(fd) for fd in Path("/proc/self/fd").iterdir()]


def peer_port(fd: Path) -> int:
    """Return the port a descriptor is connected to, 0 if it is no such socket."""
    try:
        with socket.socket(fileno=os.dup(int(fd.name))) as duplicate:
            peer = duplicate.getpeername()
    except OSError:
        return 0
    return int(peer[1]) if isinstance(peer, tuple) else 0


async def test_a_connect_timeout_is_a_connect_failure(target: Target) -> None:
    async with serving(stay_silent) as silent:
        started = trio.current_time()
        with pytest.raises(ConnectFailed, match=r"no session at 127.0.0.1:\d+ within 0.1 seconds"):
            async with open_connection(silent, connect_timeout_seconds=0.1):
                pass
        assert 0.1 <= trio.current_time() - started < 1


async def test_a_refused_connection_an_unknown_database_and_host_are_connect_failures(target: Target) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = target.replace(port=unused.getsockname()[1])
        cases = {
            "Connection refused": refused,
            'database "nope" does not exist': target.replace(dbname="nope"),
            "could not resolve host": target.replace(host="no-such-host.invalid"),
            "idna": target.replace(host="x" * 64 + ".invalid"),
            "No such file": target.replace(host="/nowhere"),
        }
        before = open_files()
        for text, wrong in cases.items():
            with pytest.raises(ConnectFailed, match=text):
                async with open_connection(wrong.replace(password=SECRET)):
                    pass
    assert open_files() == before - 1


async def be_deaf(stream: trio.SocketStream, key: bool) -> None:
    """Log in anyone, then answer nothing, cancel requests included."""
    async with stream:
        first = await stream.receive_some()
        if struct.unpack_from("!i", first, 4)[0] == 80877102:  # a cancel request
            return
        await stream.send_all(greeting(key))
        while await stream.receive_some():
            pass


@pytest.mark.parametrize(("key", "cancel_seconds"), [(False, 60), (True, 0.3)])
async def test_a_server_that_cannot_cancel_is_hung_up_on(key: bool, cancel_seconds: float) -> None:
    async with serving(partial(be_deaf, key=key)) as deaf, open_connection(deaf) as connection:
        connection.cancel_seconds = cancel_seconds
        started = trio.current_time()
        with trio.move_on_after(0.05) as scope:
            await connection.execute("SELECT 1")
        assert scope.cancelled_caught
        assert connection.closed
        assert trio.current_time() - started < 0.6


async def test_hanging_up_wakes_a_task_that_waits() -> None:
    async with serving(partial(be_deaf, key=False)) as deaf, trio.open_nursery() as nursery:
        connection = await TrioConnection.connect(deaf)

        async def ask() -> None:
            with pytest.raises(psycopg.OperationalError, match="closed or used by another task"):
                await connection.execute("SELECT 1")

        nursery.start_soon(ask)
        await trio.sleep(0.05)
        with trio.fail_after(1):
            await connection.close()


async def test_a_server_that_drops_the_connection_is_an_error() -> None:
    async def drop(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(greeting(key=True))
            await stream.receive_some()

    async with serving(drop) as dropping, open_connection(dropping) as connection:
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")
        assert connection.closed


# ---------------------------------------------------------------------------------------------- targets and secrets


async def test_the_environment_has_no_influence(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".pgpass").write_text("*:*:*:*:wrong\n")
    (home / ".pgpass").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    foreign = {
        "PGHOST": "192.0.2.1",
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGDATABASE": "nope",
        "PGUSER": "nope",
        "PGPASSWORD": "wrong",
        "PGPASSFILE": str(home / ".pgpass"),
        "PGOPTIONS": "-c search_path=nope -c statement_timeout=1",
        "PGSERVICE": "nope",
        "PGSERVICEFILE": "/nowhere",
        "PGAPPNAME": "nope",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/nowhere",
        "PGGSSENCMODE": "require",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGCHANNELBINDING": "require",
        "PGCONNECT_TIMEOUT": "1",
        "PGCLIENTENCODING": "LATIN1",
        "PGTARGETSESSIONATTRS": "standby",
        "PGLOADBALANCEHOSTS": "nonsense",
        "PGMINPROTOCOLVERSION": "nonsense",
        "PGTZ": "Asia/Tokyo",
        "PGDATESTYLE": "German",
        "PGGEQO": "off",
    }
    settings = (
        "SELECT current_database(), current_user, current_setting('search_path'), current_setting('timezone'),"
        " current_setting('datestyle'), current_setting('geqo'), current_setting('client_encoding'),"
        " current_setting('application_name'), current_setting('statement_timeout')"
    )
    async with open_connection(target) as connection:
        expected = await (await connection.execute(settings)).fetchone()
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    async with open_connection(target) as connection:
        assert await (await connection.execute(settings)).fetchone() == expected
    assert {name: os.environ[name] for name in foreign} == foreign


async def test_a_password_comes_from_the_target_and_nowhere_else(
    target: Target,
    observer: TrioConnection[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    await observer.execute("DROP ROLE IF EXISTS guarded")
    await observer.execute(f"CREATE ROLE guarded LOGIN PASSWORD '{SECRET}'")
    guarded = target.replace(user="guarded", password=SECRET)
    async with open_connection(guarded) as connection:
        assert await scalar(connection, "SELECT current_user") == "guarded"
    (tmp_path / ".pgpass").write_text(f"*:*:*:*:{SECRET}\n")
    (tmp_path / ".pgpass").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGPASSWORD", SECRET)
    for password, text in (("", "no password supplied"), ("wrong" + SECRET, "password authentication failed")):
        with pytest.raises(ConnectFailed, match=text) as caught:
            async with open_connection(guarded.replace(password=password)):
                pass
        assert SECRET not in "".join(traceback.format_exception(caught.value)) + cause_chain(caught.value)
    assert capfd.readouterr().err == ""


async def test_names_and_unix_sockets_are_connected_to(
    target: Target, observer: TrioConnection[tuple[object, ...]]
) -> None:
    async with open_connection(target.replace(host="localhost")) as connection:
        assert await scalar(connection, "SELECT host(inet_server_addr())") == "127.0.0.1"
    directory = str(await scalar(observer, "SHOW unix_socket_directories"))
    async with open_connection(target.replace(host=directory)) as connection:
        assert await scalar(connection, "SELECT inet_server_addr() IS NULL") is True
        with trio.move_on_after(0.1):
            await connection.execute("SELECT pg_sleep(60)")
        assert await scalar(connection, "SELECT 1") == 1


async def test_options_and_application_name_reach_the_session(target: Target) -> None:
    chosen = target.replace(options=r"-c search_path='' -c statement_timeout=1234ms", application_name="it's \\ me")
    async with open_connection(chosen) as connection:
        assert await scalar(connection, "SHOW search_path") == "''"
        assert await scalar(connection, "SHOW statement_timeout") == "1234ms"
        assert await scalar(connection, "SHOW application_name") == "it's \\ me"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://h", Target("h", 5432, "postgres", "postgres")),
        ("postgresql://cloud_admin@localhost:55433/postgres", Target("localhost", 55433, "cloud_admin", "postgres")),
        ("PostgreSQL://no_user@ps-1:6400", Target("ps-1", 6400, "no_user", "no_user")),
        ("postgresql://u:p%40%2F%3a+x@h/d%20b", Target("h", 5432, "u", "d b", "p@/:+x")),
        ("postgresql://u:a:b@h/d", Target("h", 5432, "u", "d", "a:b")),
        ("postgresql://u@[::1]:5433/d", Target("::1", 5433, "u", "d")),
        ("postgresql://u@[fe80::1%25eth0]/d", Target("fe80::1%eth0", 5432, "u", "d")),
        ("postgresql:///d?host=/run/Socket&port=6", Target("/run/Socket", 6, "postgres", "d")),
        ("postgresql://h/d?user=u&password=p%26&dbname=e", Target("h", 5432, "u", "e", "p&")),
        ("postgres://h?options=-c%20a=b%20-c%20c%3Dd+e", Target("h", options="-c a=b -c c=d+e")),
        ("postgres://h?sslmode=disable&connect_timeout=3&application_name=x", Target("h", application_name="x")),
        ("postgres://u@h/d#1", Target("h", 5432, "u", "d#1")),
        ("postgres://u:1?x=1@h/d", Target("h", 5432, "u", "d", "1?x=1")),
        ("host=pageserver port=6400", Target("pageserver", 6400)),
        ("host=h user=u dbname='d b' password='it\\'s'", Target("h", 5432, "u", "d b", "it's")),
        ("host=name hostaddr=127.0.0.1", Target("127.0.0.1")),
        (
            "postgres://u@h?keepalives_idle=60&keepalives_retries=3&target_session_attrs=read-write&replication=false",
            Target("h", 5432, "u", "u", tuning=(("keepalives_idle", "60"), ("keepalives_count", "3"))),
        ),
    ],
)
def test_a_connection_string_is_parsed(url: str, expected: Target) -> None:
    """C-02: all that libpq and rust-postgres know is taken."""
    assert Target.parse(url) == expected


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (f"hots=h password={SECRET}", "unknown parameter \\(did you mean host"),
        (f"http://u:{SECRET}@h", "malformed|unknown parameter$"),
        (f"postgres:/u:{SECRET}@h", "malformed|unknown parameter$"),
        ("", "exactly one host"),
        ("postgres://u:s3cr3t@h:port/d", "malformed"),
        ("postgres://u:s3cr3t@h:5432x/d", "malformed"),
        ("postgres://u:s3cr3t@h:99999/d", "malformed"),
        ("postgres://u:s3cr3t@[::1/d", "malformed"),
        ("postgres://u:s3cr3t@h/d?port=s3cr3t", "malformed"),
        ("postgres://u:s3cr3t@h/d?connect", "malformed"),
        ("postgres://u:12/s3cr3t@h/d", "malformed"),
        ("postgres://u:12#s3cr3t", "malformed"),
        ("postgres://u:%ff@h/d", "malformed"),
        (f"postgres://u:{SECRET}@h/d", "malformed"),  # the slash in it must be escaped
        ("postgres://u:x?s3cr3t=1@h/d?s3cr3t=1", "unknown parameter$"),
        ("host=h port=s3cr3t", "malformed"),
        ("host=h password='s3cr3t", "malformed"),
        ("host=h password=my s3cr3t", "malformed"),
        ("host=h target_session_attrs=s3cr3t", "target_session_attrs is none of any, read-write"),
        ("host=h hostaddr=s3cr3t", "hostaddr is not an IP address"),
        ("host=h keepalives_idle=s3cr3t", "keepalives_idle is not a number"),
        ("host=h channel_binding=require", "encryption by channel_binding"),
        ("service=s3cr3t host=h", "names a service"),
        ("postgres://u:s3cr3t@h/d?colour=s3cr3t", "unknown parameter: colour$"),
        ("postgres://u:s3cr3t@h/d?sslmode=require", "encryption by sslmode"),
        ("postgres://u:s3cr3t@h,i/d", "exactly one host"),
        ("postgres://u:s3cr3t@/d", "exactly one host"),
        ("postgres://u:s3cr3t@h:0/d", "a port from 1"),
        ("postgres://u:s3cr3t%00@h/d", "NUL"),
    ],
)
def test_an_unusable_url_is_refused_without_repeating_its_password(url: str, text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        Target.parse(url)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value, limit=0))
    assert caught.value.__cause__ is None


async def test_the_password_appears_in_no_text(target: Target) -> None:
    secret = target.replace(password=SECRET)
    assert SECRET not in repr(secret) + str(secret) + f"{secret}"
    assert secret.conninfo()["password"] == SECRET
    async with open_connection(secret) as connection:
        assert SECRET not in repr(connection) + repr(connection.cursor()) + connection.info.dsn


def test_a_connect_failure_is_a_compute_error() -> None:
    assert issubclass(ConnectFailed, ComputeError)
    assert str(pickle.loads(pickle.dumps(ConnectFailed("text")))) == "text"
