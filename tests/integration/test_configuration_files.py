"""Configuration files and certificates as real Postgres sees them (contract 04)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from tests.fakes.certificates import Files, key_text, make_key
from tests.integration.compute import Rig
from trio_compute.plan.conf_syntax import effective_settings, read_line

pytestmark = pytest.mark.postgres

ODD = {
    "newline": "one\ntwo\r\nthree",
    "quote": "it's ''quoted''",
    "backslash": "a\\b\\\\n\\",
    "comment": "# not a comment",
    "injection": "x'\nfsync = off\n#",
    "umlaut": "ä€😀",
    "blank": "  ",
}

ODD_NAME = 'an "odd", name #1'


async def show(rig: Rig, sql: Any, name: str) -> str:
    rows = await trio.to_thread.run_sync(sql, rig.connstr, f"SELECT current_setting('{name}')")
    return str(rows[0][0])


async def test_managed_values_arrive_as_they_are(rig: Rig, sql: Any) -> None:
    """F-04, contract 04 §16: newline, quote, backslash, a fraction of a unit; F-23: the file is its owner's."""
    config = rig.config()
    config["spec"]["cluster"]["settings"] = [
        *({"name": f"odd.{name}", "value": value, "vartype": "string"} for name, value in ODD.items()),
        *({"name": f"raw.{name}", "value": value, "vartype": "enum"} for name, value in ODD.items()),
        {"name": "work_mem", "value": "1.5MB", "vartype": "integer"},
    ]
    async with rig.compute(config) as child:
        await child.reach("running")
        for name, value in ODD.items():
            assert await show(rig, sql, f"odd.{name}") == value
            assert await show(rig, sql, f"raw.{name}") == value
        assert await show(rig, sql, "work_mem") == "1536kB"
        for name in ("lc_messages", "lc_monetary", "lc_time", "lc_numeric"):
            assert await show(rig, sql, name) == "C.UTF-8"
        path = rig.world.pgdata / "postgresql.conf"
        assert path.stat().st_mode & 0o777 == 0o600
        errors = "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL"
        assert await trio.to_thread.run_sync(sql, rig.connstr, errors) == [(0,)]
        await child.terminate("immediate")


async def test_we_read_the_file_as_postgres_reads_it(rig: Rig, sql: Any) -> None:
    """F-08: what our parser calls effective is what Postgres applied."""
    config = rig.config()
    config["spec"]["cluster"]["postgresql_conf"] += (
        "WORK_MEM '5MB'\nx.a = 1\nX.A 'q''r\\n\\101' # last\nx.b=a_b-c/d.e:f\nx.c = 0x1F\n \t x.d = .5#c\nx.e = ''\n"
    )
    async with rig.compute(config) as child:
        await child.reach("running")
        text = (rig.world.pgdata / "postgresql.conf").read_text()
        query = "SELECT name, setting FROM pg_file_settings WHERE applied"
        applied = await trio.to_thread.run_sync(sql, rig.connstr, query)
        ours = effective_settings(text)
        assert {name.lower(): value for name, value in applied} == ours
        assert ours["x.a"] == "q'r\nA"
        await child.terminate("immediate")


PIECES = (
    *(
        "x.y",
        "x",
        "=",
        "= ",
        " ",
        "'",
        "''",
        "\\",
        "\\n",
        "\\101",
        "#",
        "1",
        "0x1F",
        "1.5",
        "MB",
        ".",
        "-",
        "+",
        "e5",
        "E-5",
    ),
    *("a", "a_b", "/", ":", "\t", "\r", "$", "é", "%", "\\'", '"', "'q r'", "'a''b'", "\f"),
)


def random_line(chance: random.Random) -> str:
    start = f"x.y{chance.choice([' ', '=', ' = ', ''])}" if chance.random() < 0.6 else ""
    return start + "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 5)))


@pytest.mark.parametrize("seed", range(3))
async def test_any_line_is_read_as_postgres_reads_it(rig: Rig, seed: int) -> None:
    """F-08: the lines that we take for settings are some, with our names and values; each of the others is an error."""
    chance = random.Random(seed)
    lines = [line for line in (random_line(chance) for _ in range(200)) if line.strip(" \t\r")[:1] not in {"", "#"}]
    settings = [(line, setting) for line in lines if (setting := read_line(line)) is not None]
    broken = [line for line in lines if read_line(line) is None]
    assert len(settings) > 10
    async with rig.compute() as child:
        await child.reach("running")
        seen = await trio.to_thread.run_sync(read_by_postgres, rig, [[line for line, _ in settings]])
        assert seen == [[setting for _, setting in settings]]
        # One file for each: this view tells of the first syntax error only.
        assert await trio.to_thread.run_sync(read_by_postgres, rig, [[line] for line in broken]) == [None] * len(broken)
        await child.terminate("immediate")


def read_by_postgres(rig: Rig, files: list[list[str]]) -> list[list[tuple[str, str]] | None]:
    """Return the settings that Postgres finds in each file; None for one with a syntax error."""
    query = "SELECT lower(name), setting, error FROM pg_file_settings ORDER BY seqno"
    results: list[list[tuple[str, str]] | None] = []
    path = rig.world.pgdata / "postgresql.conf"
    original = path.read_text()
    with psycopg.connect(rig.connstr, autocommit=True, sslmode="disable") as connection:
        for lines in files:
            path.write_text("".join(f"{line}\n" for line in lines))
            rows = connection.execute(query).fetchall()
            is_broken = any(error == "syntax error" for _, _, error in rows)
            results.append(None if is_broken else [(name, value) for name, value, _ in rows if name is not None])
    path.write_text(original)  # the final sync reads it
    return results


async def test_a_name_that_would_break_the_file_is_refused(rig: Rig) -> None:
    """F-04: Postgres' lexer knows neither `$` nor a second dot, and would refuse the whole file."""
    async with rig.compute() as child:
        await child.reach("running")
        for name in ("a$b", "a.b.c", "a b"):
            config = rig.config()
            config["spec"]["cluster"]["settings"] = [{"name": name, "value": "1", "vartype": "integer"}]
            answer = await child.configure(config)
            assert answer.status_code == 400
            assert "is not a valid name" in answer.json()["error"]
        await child.terminate("immediate")


def with_tls(rig: Rig, files: Files) -> dict[str, Any]:
    config = rig.config(features=["tls_experimental"])
    config["compute_ctl_config"]["tls"] = files.document
    return config


def encrypted_query(connstr: str) -> tuple[Any, ...] | None:
    """Return what a connection that insists on TLS learns about itself."""
    with psycopg.connect(connstr, autocommit=True, sslmode="require", gssencmode="disable") as connection:
        return connection.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA", "Ed25519"])
async def test_postgres_serves_tls_with_keys_of_any_kind(rig: Rig, sql: Any, public_tmp: Path, kind: str) -> None:
    """F-03."""
    files = Files(public_tmp)
    files.write(kind)
    async with rig.compute(with_tls(rig, files)) as child:
        await child.reach("running")
        assert await show(rig, sql, "ssl") == "on"
        answer = await trio.to_thread.run_sync(encrypted_query, rig.connstr)
        assert answer == (True, "TLSv1.3")
        for name in ("server.key", "server.crt"):
            assert (rig.world.pgdata / name).stat().st_mode & 0o777 == 0o600
        await child.terminate("immediate")


async def test_a_renewed_pair_is_served_after_a_reconfiguration(rig: Rig, public_tmp: Path) -> None:
    """F-03: also one of another kind."""
    files = Files(public_tmp)
    files.write("P-256")
    async with rig.compute(with_tls(rig, files)) as child:
        await child.reach("running")
        files.write("Ed25519")
        config = with_tls(rig, files)
        config["spec"]["cluster"]["settings"] = [{"name": "log_line_prefix", "value": "%m new ", "vartype": "string"}]
        assert (await child.configure(config)).status_code == 200
        assert (rig.world.pgdata / "server.crt").read_bytes() == files.cert_path.read_bytes()
        assert await trio.to_thread.run_sync(encrypted_query, rig.connstr) == (True, "TLSv1.3")
        await child.terminate("immediate")


async def test_a_pair_that_does_not_match_fails_the_start_after_the_bound(rig: Rig, public_tmp: Path) -> None:
    """F-02, D-52: with a clear text and no half-written file; the bound leaves time for one look, on any machine."""
    files = Files(public_tmp)
    files.write("P-256")
    files.key_path.write_bytes(key_text(make_key("RSA")))
    async with rig.compute(with_tls(rig, files), flags={"--certificate-timeout": "3"}) as child:
        status = await child.reach("failed")
        assert "no usable key and certificate within 3 s" in status["error"]
        assert "does not belong to the first certificate" in status["error"]
        assert not (rig.world.pgdata / "postgresql.conf").exists()
        await child.terminate("immediate")


async def test_tls_files_without_the_feature_are_not_even_looked_at(rig: Rig, sql: Any, public_tmp: Path) -> None:
    """F-28: files that do not exist hold nothing up."""
    config = rig.config()
    config["compute_ctl_config"]["tls"] = Files(public_tmp).document
    async with rig.compute(config) as child:
        await child.reach("running")
        assert await show(rig, sql, "ssl") == "off"
        await child.terminate("immediate")


async def test_databricks_access_files_come_before_the_stock_lines(rig: Rig, public_tmp: Path, major: int) -> None:
    """F-17: the included file decides, since the first match wins; key and certificate are copied."""
    if major < 16:
        pytest.skip("needs Postgres 16")
    files = Files(public_tmp)
    files.write("P-256")
    (public_tmp / ODD_NAME).write_text("host all refused_one all reject\n")
    (public_tmp / ODD_NAME).chmod(0o644)
    config = rig.config(databricks_settings=databricks(files, public_tmp))
    async with rig.compute(config, flags={"--lakebase-mode": "true"}) as child:
        await child.reach("running")
        await trio.to_thread.run_sync(look_at_databricks, rig)
        await child.terminate("immediate")


def look_at_databricks(rig: Rig) -> None:
    with psycopg.connect(rig.connstr, autocommit=True, sslmode="disable") as connection:
        connection.execute("CREATE ROLE refused_one LOGIN")
        assert connection.execute("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL").fetchone() == (0,)
        assert connection.execute("SHOW databricks.workspace_url").fetchone() == ("w.example",)
        assert connection.execute("SHOW port").fetchone() == (str(rig.ports.postgres),)
    with pytest.raises(psycopg.OperationalError, match="rejects connection"):
        psycopg.connect(rig.connstr, user="refused_one", sslmode="disable").close()
    assert (rig.world.pgdata / "tls.key").stat().st_mode & 0o777 == 0o600
    assert (rig.world.pgdata / "tls.crt").exists()


async def test_databricks_settings_with_an_older_postgres_are_refused(rig: Rig, public_tmp: Path, major: int) -> None:
    """F-17."""
    if major >= 16:
        pytest.skip("needs Postgres before 16")
    files = Files(public_tmp)
    files.write("P-256")
    async with rig.compute(rig.config(databricks_settings=databricks(files, public_tmp))) as child:
        status = await child.reach("failed")
        assert "databricks_settings need Postgres 16 or newer" in status["error"]
        await child.terminate("immediate")


def databricks(files: Files, directory: Path) -> dict[str, Any]:
    tls = files.document
    return {
        "pg_compute_tls_settings": {"cert_file": tls["cert_path"], "key_file": tls["key_path"], "ca_file": "/no/ca"},
        "databricks_pg_hba": str(directory / ODD_NAME),
        "databricks_pg_ident": str(directory / "no-ident"),
        "databricks_workspace_host": "w.example",
    }
