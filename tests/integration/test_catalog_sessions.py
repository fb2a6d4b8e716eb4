"""How maintenance sessions get in, and what users may have set up against them (contract 05 §2, K-10 … K-14, K-33)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import psycopg
import pytest
import trio

from tests.integration.bare_postgres import QUICK, BarePostgres, apply, fresh, wanted
from trio_compute.db import maintenance
from trio_compute.db.maintenance import maintenance_target, open_maintenance
from trio_compute.db.migrations import run_migrations
from trio_compute.db.target import Target
from trio_compute.db.watch import LockWatch
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.model.catalog_rules import SUPERUSER
from trio_compute.plan.catalog.failures import CatalogFailed
from trio_compute.plan.catalog.quoting import identifier, literal

pytestmark = pytest.mark.postgres

TEXTS = [
    "plain",
    "",
    '"',
    "'",
    "\\",
    "\\'",
    "E'\\'",
    "$x$",
    "$$",
    "--",
    "/*",
    "a\nb\tc",
    "é🐘",
    "%I{}",
    "x" * 63,
    "user",
]


def scram(password: str) -> str:
    """Return the verifier of a password, as the control plane would make it (RFC 5802)."""
    salt = b"0123456789abcdef"
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    parts = (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))
    encoded = [base64.b64encode(part).decode() for part in parts]
    return f"SCRAM-SHA-256$4096:{encoded[0]}${encoded[1]}:{encoded[2]}"


@pytest.fixture
def password_wanted(server: BarePostgres) -> Iterator[BarePostgres]:
    """Let everybody but the role `keeper` log in by password only."""
    file = server.data / "pg_hba.conf"
    before = file.read_text()
    server.sql("CREATE ROLE keeper SUPERUSER LOGIN")
    file.write_text("host all keeper 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 md5\n")
    server.sql("SELECT pg_reload_conf()")
    wait_until(lambda: server.sql("SELECT count(*)::int FROM pg_hba_file_rules", user="keeper") == [(2,)])
    wait_until(lambda: not can_log_in(server, "cloud_admin", "wrong"))
    yield server
    file.write_text(before)
    server.sql("SELECT pg_reload_conf()", user="keeper")
    wait_until(lambda: can_log_in(server, "cloud_admin", "wrong"))
    server.sql("DROP ROLE keeper")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # Postgres tells nobody when it has read its files


def can_log_in(server: BarePostgres, user: str, password: str) -> bool:
    try:
        server.connect(user=user, password=password).close()
    except psycopg.OperationalError:
        return False
    return True


def test_the_server_quotes_as_we_do(server: BarePostgres) -> None:
    """§4: every text means itself, and names are those that the server would write, but for needless quotes."""
    for text in TEXTS:
        for conforming in ("on", "off"):
            with server.connect(options=f"-c standard_conforming_strings={conforming}") as session:
                session.execute("SET backslash_quote = on; SET escape_string_warning = off")
                statement = (
                    f"SELECT {literal(text)}, {identifier(text or 'x')} FROM (SELECT 1 AS {identifier(text or 'x')}) t"
                )
                cursor = session.execute(statement.encode())
                assert cursor.fetchall() == [(text, 1)]
                assert cursor.description is not None
                assert cursor.description[1].name == (text or "x")
        ((quoted, name),) = server.sql("SELECT quote_literal(%s), quote_ident(%s)", text, text)
        assert literal(text) == quoted.strip()
        assert identifier(text) in (name, f'"{name}"')


async def test_passwords_of_both_kinds_let_their_roles_in(password_wanted: BarePostgres) -> None:
    """§5, K-03: hashes arrive as hashes."""
    server, old, new = password_wanted, fresh("md5"), fresh("scram")
    server.sql("ALTER ROLE cloud_admin PASSWORD 'secret'", user="keeper")
    url = server.url().replace("cloud_admin@", "cloud_admin:secret@")
    md5 = hashlib.md5(f"open sesame{old}".encode()).hexdigest()
    roles = [{"name": old, "encrypted_password": md5}, {"name": new, "encrypted_password": scram("open sesame")}]
    await apply(server, wanted(roles), url=url)
    for role in (old, new):
        assert can_log_in(server, role, "open sesame")
        assert not can_log_in(server, role, "closed sesame")
    await apply(server, wanted([old, new]), url=url)
    assert not can_log_in(server, old, "open sesame")
    server.sql("ALTER ROLE cloud_admin PASSWORD NULL", user="keeper")


async def test_the_old_superuser_hands_its_password_on(password_wanted: BarePostgres) -> None:
    """K-11, D-41: the new superuser can log in with the only password that we have."""
    server, role = password_wanted, fresh("after")
    server.sql("CREATE ROLE zenith_admin SUPERUSER LOGIN PASSWORD 's3''cret\\'", user="keeper")
    server.sql("ALTER ROLE cloud_admin RENAME TO was_admin", user="keeper")
    url = server.url().replace("cloud_admin@", "cloud_admin:s3%27cret%5C@")
    try:
        await apply(server, wanted([role]), url=url)
        assert server.sql("SELECT count(*)::int FROM pg_roles WHERE rolname = %s", role, user="keeper") == [(1,)]
    finally:
        server.sql("REASSIGN OWNED BY cloud_admin TO was_admin; DROP OWNED BY cloud_admin", user="keeper")
        server.sql("DROP ROLE cloud_admin; ALTER ROLE was_admin RENAME TO cloud_admin", user="keeper")
        server.sql("REASSIGN OWNED BY zenith_admin TO cloud_admin; DROP ROLE zenith_admin", user="keeper")


async def test_when_neither_superuser_can_log_in_the_error_says_so_without_the_password(
    password_wanted: BarePostgres,
) -> None:
    """K-11, K-33."""
    url = password_wanted.url().replace("cloud_admin@", "cloud_admin:hush-hush@")
    with pytest.raises(PostgresError, match="neither cloud_admin nor zenith_admin can log in") as raised:
        await apply(password_wanted, wanted(), url=url)
    assert "hush-hush" not in str(raised.value)


@pytest.mark.parametrize(
    "setting", ["role = someone_else", "statement_timeout = 1", "search_path = nowhere", "lock_timeout = 1"]
)
async def test_settings_of_the_superuser_itself_do_not_disturb(setting: str, server: BarePostgres) -> None:
    """§2.1."""
    if not server.exists("role", "someone_else"):
        server.sql("CREATE ROLE someone_else")
    role, name = fresh("owner"), fresh("set")
    server.sql(f"ALTER ROLE cloud_admin SET {setting}")
    try:
        await apply(server, wanted([role], [(name, role)]))
    finally:
        # The setting holds for this session too, unless it is told otherwise.
        with server.connect(options="-c role=cloud_admin -c statement_timeout=0 -c lock_timeout=0") as session:
            session.execute("ALTER ROLE cloud_admin RESET ALL")
    assert server.exists("database", name)


async def test_options_of_the_operator_win(server: BarePostgres) -> None:
    """§2.1, D-40, T-01: over our limits, but not over what keeps strangers out."""
    options = "-c%20statement_timeout%3D7s%20-c%20search_path%3Dpublic%20-c%20pgaudit.log%3Dall"
    target = maintenance_target(f"{server.url()}?options={options}", "apply_config", QUICK)
    async with open_maintenance(target, QUICK) as connection:
        cursor = await connection.execute(
            "SELECT current_setting('statement_timeout'), current_setting('search_path'), "
            "current_setting('default_transaction_read_only'), current_setting('application_name'), "
            "current_setting('neon.forward_ddl'), current_setting('pgaudit.log')"
        )
        assert await cursor.fetchall() == [
            ("7s", "pg_catalog,pg_temp", "off", "compute_ctl:apply_config", "false", "none")
        ]


async def test_notices_are_for_who_debugs(server: BarePostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """§2.3."""
    told: list[tuple[str, object]] = []

    def note(event: str, /, **values: object) -> None:
        told.append((event, values["about"]))

    monkeypatch.setattr(maintenance, "log", SimpleNamespace(debug=note, warning=note))
    async with open_maintenance(maintenance_target(server.url(), "x", QUICK), QUICK) as connection:
        await connection.execute("DROP ROLE IF EXISTS nobody_at_all")
    assert told == [("notice", 'role "nobody_at_all" does not exist, skipping')]


async def test_databases_of_every_odd_kind_are_worked_on(server: BarePostgres) -> None:
    """§8: without a free connection for users, a template, without the schema public."""
    owner, names = fresh("owner"), [fresh("odd") for _ in range(3)]
    await apply(server, wanted([owner], [(name, owner) for name in names]))
    server.do("ALTER DATABASE {} CONNECTION LIMIT 0", names[0])
    server.do("ALTER DATABASE {} IS_TEMPLATE true", names[1])
    server.sql("DROP SCHEMA public CASCADE", database=names[2])
    heir = fresh("heir")
    state = wanted([heir], [(name, heir) for name in names], [{"action": "delete_role", "name": owner}])
    await apply(server, state)
    assert not server.exists("role", owner)
    assert (await apply(server, state)).is_empty
    await apply(server, wanted(delta=[{"action": "delete_db", "name": name} for name in names]))
    assert not any(server.exists("database", name) for name in names)


async def test_a_deletion_of_the_database_we_work_from_touches_nothing_in_it(server: BarePostgres) -> None:
    """K-17: it stays, with a warning, and keeps its subscriptions."""
    name = fresh("home")
    server.do("CREATE DATABASE {}", name)
    server.do(
        "CREATE SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect=false, slot_name=NONE)",
        fresh("sub"),
        database=name,
    )
    plan = await apply(server, wanted(delta=[{"action": "delete_db", "name": name}]), url=server.url(name))
    assert any("works from" in warning for warning in plan.warnings)
    query = "SELECT count(*)::int FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid WHERE datname = %s"
    assert server.sql(query, name) == [(1,)]
    await apply(server, wanted(delta=[{"action": "delete_db", "name": name}]))
    assert not server.exists("database", name)


async def test_a_listed_privileged_role_is_passed_over_with_a_warning(server: BarePostgres) -> None:
    """K-17."""
    role = {"name": "neon_superuser", "encrypted_password": "0f" * 16}
    plan = await apply(server, wanted([role]))
    assert any("neon_superuser" in warning for warning in plan.warnings)
    assert server.sql("SELECT rolpassword, rolcanlogin FROM pg_authid WHERE rolname = 'neon_superuser'") == [
        (None, False)
    ]


async def test_nothing_that_a_tenant_can_hold_keeps_us_waiting(server: BarePostgres) -> None:
    """T-14: advisory lock 0x7472696F in both forms, and what members of pg_write_all_data may lock."""
    await apply(server, wanted())
    migrate = partial(run_migrations, server.url(), privileged_role="neon_superuser", deadlines=QUICK)
    await migrate()
    member = fresh("member")
    server.do("CREATE ROLE {} LOGIN IN ROLE pg_write_all_data, pg_read_all_data", member)
    with server.connect(user=member) as holder:
        holder.execute("SELECT pg_advisory_lock(%s), pg_advisory_lock(0, %s)", (0x7472696F, 0x7472696F))
        holder.execute("BEGIN; LOCK TABLE neon_migration.migration_id IN ACCESS EXCLUSIVE MODE")
        with trio.fail_after(5):
            await apply(server, wanted([fresh("beside")]))
            await migrate()
    server.sql("DROP SCHEMA neon_migration CASCADE")
    server.do("DROP ROLE {}", member)


async def test_sessions_that_are_killed_inside_databases_are_failures_of_those_databases(server: BarePostgres) -> None:
    """K-08, K-13: whatever breaks there is a PostgresError, and a repeat converges."""
    owner, names = fresh("owner"), [fresh("killed") for _ in range(3)]
    await apply(server, wanted([owner], [(name, owner) for name in names]))
    heir = fresh("heir")
    state = wanted([owner, heir], [(name, heir) for name in names])
    holders = [server.connect(name) for name in names]
    raised: list[CatalogFailed] = []

    async def fail() -> None:
        try:
            await apply(server, state)
        except CatalogFailed as error:
            raised.append(error)

    with contextlib.ExitStack() as stack:
        for holder in holders:
            stack.enter_context(holder).execute("BEGIN; LOCK TABLE pg_default_acl IN ACCESS EXCLUSIVE MODE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            query = (
                "SELECT pid FROM pg_stat_activity WHERE datname = ANY (%s) AND wait_event_type = 'Lock' "
                "AND application_name = 'compute_ctl:apply_config'"
            )
            while len(pids := server.sql(query, names)) < len(names):
                await trio.sleep(0.01)  # Postgres tells nobody
            for (pid,) in pids:
                server.sql("SELECT pg_terminate_backend(%s)", pid)
    assert {failure.database for failure in raised[0].failures} == {*names}
    await apply(server, state)
    assert (await apply(server, state)).is_empty


@pytest.mark.parametrize("query", ["SELECT %s / 0", "SELECT pg_terminate_backend(pg_backend_pid()) WHERE 0 < %s"])
async def test_a_watcher_whose_own_query_fails_disturbs_nothing(
    query: str, server: BarePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K-12: to see what is waited for is an extra."""
    monkeypatch.setattr("trio_compute.db.watch._BLOCKERS", query)
    watch = LockWatch(Target("127.0.0.1", server.port, SUPERUSER), Deadlines(catalog_lock=0.1))
    watch.begin(1, "postgres")
    with trio.move_on_after(0.4):
        await watch.serve()
    assert (watch.end(1) or "").startswith("an unknown lock")
