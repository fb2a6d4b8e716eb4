"""Statements for roles and databases (contract 05 §4, §5, §7; this part plans roles and databases only)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.errors import SpecError
from trio_compute.model.decode import decode
from trio_compute.model.spec import Cluster, Role
from trio_compute.plan.catalog import Catalog, plan_catalog, stored_password

PRIVILEGED = "neon_superuser"
SCRAM = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"
MD5 = "6b1d16b78004bbd51fa06af9eda75972"
NOTHING = Catalog(role_passwords={PRIVILEGED: None}, database_owners={})


def option(name: str, value: str | None, vartype: str = "string") -> dict[str, Any]:
    return {"name": name, "value": value, "vartype": vartype}


def make_cluster(roles: list[dict[str, Any]] | None = None, databases: list[dict[str, Any]] | None = None) -> Cluster:
    return decode(json.dumps({"roles": roles or [], "databases": databases or []}).encode(), Cluster)


def statements(
    roles: list[dict[str, Any]] | None = None,
    databases: list[dict[str, Any]] | None = None,
    catalog: Catalog = NOTHING,
) -> list[str]:
    """Return the plan as SQL with single spaces."""
    plan = plan_catalog(make_cluster(roles, databases), PRIVILEGED, catalog)
    return [" ".join(statement.query.as_string(None).split(" ")).replace("  ", " ") for statement in plan]


ATTRIBUTES = f'INHERIT CREATEROLE CREATEDB BYPASSRLS REPLICATION IN ROLE "{PRIVILEGED}"'


def test_nothing_wanted_means_nothing_to_do() -> None:
    assert statements() == []


def test_the_privileged_role_is_created_when_it_is_absent() -> None:
    assert statements(catalog=Catalog({}, {})) == [
        (
            f'CREATE ROLE "{PRIVILEGED}" CREATEDB CREATEROLE NOLOGIN REPLICATION BYPASSRLS '
            "IN ROLE pg_read_all_data, pg_write_all_data"
        )
    ]


@pytest.mark.parametrize(
    ("password", "clause"),
    [(MD5, f"PASSWORD 'md5{MD5}'"), (SCRAM, f"PASSWORD '{SCRAM}'"), (None, "PASSWORD NULL"), ("", "PASSWORD 'md5'")],
)
def test_the_password_clause(password: str | None, clause: str) -> None:
    """05 §5 vectors."""
    assert statements([{"name": "r", "encrypted_password": password}]) == [
        f'CREATE ROLE "r" {ATTRIBUTES} LOGIN {clause}'
    ]
    changed = Catalog({PRIVILEGED: None, "r": "other"}, {})
    assert statements([{"name": "r", "encrypted_password": password}], catalog=changed) == [
        f'ALTER ROLE "r" LOGIN {clause}'
    ]


def test_the_options_of_a_role_stand_before_login() -> None:
    role = {"name": "report er", "encrypted_password": None, "options": [option("CONNECTION LIMIT", "5", "integer")]}
    assert statements([role]) == [f'CREATE ROLE "report er" {ATTRIBUTES} CONNECTION LIMIT 5 LOGIN PASSWORD NULL']


def test_the_vector_of_database_options() -> None:
    """05 §5 vector, and the grant that follows a creation (§7)."""
    database = {
        "name": "d",
        "owner": "alexk",
        "options": [option("LC_COLLATE", "C"), option("LC_CTYPE", "C"), option("TEMPLATE", "template0", "enum")],
    }
    assert statements(databases=[database]) == [
        """CREATE DATABASE "d" LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0 OWNER "alexk\"""",
        f'GRANT ALL PRIVILEGES ON DATABASE "d" TO "{PRIVILEGED}"',
    ]


def test_an_option_without_a_value_is_its_name() -> None:
    assert statements(databases=[{"name": "d", "owner": "o", "options": [option("IS_TEMPLATE", None)]}])[0] == (
        'CREATE DATABASE "d" IS_TEMPLATE OWNER "o"'
    )


@pytest.mark.parametrize(
    ("value", "literal"), [("test", "'test'"), ("test'", "'test'''"), ("test\\'", "E'test\\\\'''")]
)
def test_literals_are_quoted_as_the_vectors_say(value: str, literal: str) -> None:
    """05 §4."""
    assert statements(databases=[{"name": "d", "owner": "o", "options": [option("X", value)]}])[0] == (
        f'CREATE DATABASE "d" X {literal} OWNER "o"'
    )


def test_identifiers_are_quoted_as_the_vector_says() -> None:
    """05 §4: with a literal backslash-n in the name."""
    assert statements(databases=[{"name": '"name";\\n select 1;', "owner": "o"}])[0] == (
        'CREATE DATABASE """name"";\\n select 1;" OWNER "o"'
    )


def test_an_existing_role_is_altered_only_when_its_password_differs() -> None:
    roles = [
        {"name": "same", "encrypted_password": SCRAM, "options": [option("CONNECTION LIMIT", "1", "integer")]},
        {"name": "md5", "encrypted_password": MD5},
        {"name": "lost", "encrypted_password": None},
        {"name": "new", "encrypted_password": SCRAM},
    ]
    catalog = Catalog({PRIVILEGED: None, "same": SCRAM, "md5": f"md5{MD5}", "lost": SCRAM, "new": None}, {})
    assert statements(roles, catalog=catalog) == [
        'ALTER ROLE "lost" LOGIN PASSWORD NULL',
        f"ALTER ROLE \"new\" LOGIN PASSWORD '{SCRAM}'",
    ]


def test_an_alter_never_adds_privileges() -> None:
    """05 §7: users' own roles pass through it."""
    (statement,) = statements(
        [{"name": "r", "encrypted_password": MD5}], catalog=Catalog({PRIVILEGED: None, "r": None}, {})
    )
    for word in ("CREATEROLE", "CREATEDB", "BYPASSRLS", "REPLICATION", "SUPERUSER", "IN ROLE"):
        assert word not in statement


def test_an_existing_database_changes_only_its_owner_and_is_never_granted_again() -> None:
    databases = [{"name": "same", "owner": "o"}, {"name": "other", "owner": "new owner", "options": [option("X", "1")]}]
    catalog = Catalog({PRIVILEGED: None}, {"same": "o", "other": "old"})
    assert statements(databases=databases, catalog=catalog) == ['ALTER DATABASE "other" OWNER TO "new owner"']


def test_roles_come_before_databases_and_both_in_their_order() -> None:
    roles = [{"name": "b"}, {"name": "a"}]
    databases = [{"name": "z", "owner": "a"}, {"name": "y", "owner": "b"}]
    words = [statement.split()[:3] for statement in statements(roles, databases, Catalog({}, {}))]
    assert words == [
        ["CREATE", "ROLE", f'"{PRIVILEGED}"'],
        ["CREATE", "ROLE", '"b"'],
        ["CREATE", "ROLE", '"a"'],
        ["CREATE", "DATABASE", '"z"'],
        ["GRANT", "ALL", "PRIVILEGES"],
        ["CREATE", "DATABASE", '"y"'],
        ["GRANT", "ALL", "PRIVILEGES"],
    ]


INJECTIONS = [
    "5--", "5; DROP ROLE x",
    "5/*", "-- x", "1 SUPERUSER", "1\nSUPERUSER", "1'", '1"', "$$", "E'x'", "a b", "1)", "²", "1--1", "",
]  # fmt: skip


@pytest.mark.parametrize("value", INJECTIONS)
@pytest.mark.parametrize("vartype", ["integer", "enum", "bool", "string"])
def test_the_value_of_an_option_cannot_leave_its_place(value: str, vartype: str) -> None:
    role = {"name": "r", "encrypted_password": MD5, "options": [option("CONNECTION LIMIT", value, vartype)]}
    (statement,) = statements([role])
    quoted = value.replace("'", "''")
    assert statement == f"CREATE ROLE \"r\" {ATTRIBUTES} CONNECTION LIMIT '{quoted}' LOGIN PASSWORD 'md5{MD5}'"


@pytest.mark.parametrize("value", ["5", "-1", "0.5", "template0", "true", "C_UTF8"])
def test_a_bare_word_or_number_stays_bare_unless_it_is_a_string(value: str) -> None:
    def rendered(vartype: str) -> str:
        return statements(databases=[{"name": "d", "owner": "o", "options": [option("X", value, vartype)]}])[0]

    assert rendered("enum") == f'CREATE DATABASE "d" X {value} OWNER "o"'
    assert rendered("string") == f'CREATE DATABASE "d" X \'{value}\' OWNER "o"'


@pytest.mark.parametrize("name", ["", " ", "a;b", "a--", "a'b", 'a"b', "a\nb", "a(b", "a=b", "a\0"])
def test_the_name_of_an_option_is_words_only(name: str) -> None:
    with pytest.raises(SpecError, match="not a valid name"):
        statements([{"name": "r", "options": [option(name, "1")]}])


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 64, "ü" * 32])
def test_a_name_that_postgres_would_cut_or_refuse_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="name"):
        statements([{"name": name}])
    with pytest.raises(SpecError, match="name"):
        statements(databases=[{"name": name, "owner": "o"}])


def test_a_name_of_63_bytes_is_accepted() -> None:
    assert statements([{"name": "x" * 63}])


def test_the_owner_of_a_database_is_a_name_too() -> None:
    for owner in ("", "a\0b", "x" * 64):
        with pytest.raises(SpecError, match="owner"):
            statements(databases=[{"name": "d", "owner": owner}])


@pytest.mark.parametrize(
    "roles", [[{"name": "r", "encrypted_password": "a\0b"}], [{"name": "r", "options": [option("X", "\0")]}]]
)
def test_a_nul_in_a_value_is_an_error_of_the_spec(roles: list[dict[str, Any]]) -> None:
    with pytest.raises(SpecError, match="NUL"):
        statements(roles)


def test_reasons_can_be_logged() -> None:
    roles = [{"name": "r", "encrypted_password": MD5}]
    plan = plan_catalog(make_cluster(roles, [{"name": "d", "owner": "r"}]), PRIVILEGED, Catalog({}, {}))
    assert all(MD5 not in statement.why and statement.why for statement in plan)


NAMES = st.text(min_size=1, max_size=8).filter(lambda name: "\0" not in name)
PASSWORDS = st.none() | st.just(SCRAM) | st.just(MD5) | st.text(max_size=5).filter(lambda text: "\0" not in text)


@given(
    st.lists(
        st.fixed_dictionaries({"name": NAMES, "encrypted_password": PASSWORDS}),
        max_size=5,
        unique_by=lambda r: r["name"],
    ),
    st.lists(st.fixed_dictionaries({"name": NAMES, "owner": NAMES}), max_size=5, unique_by=lambda d: d["name"]),
)
def test_planning_again_over_what_was_wanted_yields_nothing(
    roles: list[dict[str, Any]], databases: list[dict[str, Any]]
) -> None:
    """Design §5."""
    wanted = make_cluster(roles, databases)
    reached = Catalog(
        {PRIVILEGED: None} | {role.name: stored_password(role) for role in wanted.roles},
        {database.name: database.owner for database in wanted.databases},
    )
    if PRIVILEGED not in {role.name for role in wanted.roles}:
        assert plan_catalog(wanted, PRIVILEGED, reached) == []


def test_the_stored_form_of_a_password() -> None:
    assert stored_password(Role(name="r")) is None
    assert stored_password(Role(name="r", encrypted_password=SCRAM)) == SCRAM
    assert stored_password(Role(name="r", encrypted_password=MD5)) == f"md5{MD5}"
