"""Every statement that requests send leaves no name to search_path (T-01)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.tenants.sql_reading import unqualified
from trio_compute.db import (
    database_encoding,
    dump_waits,
    grants,
    insights,
    install_extension,
    installed_extensions,
    listing,
    request_session,
)
from trio_compute.plan import extension_script
from trio_compute.plan.extension_script import Facts, ways_to

MODULES = (
    *(database_encoding, dump_waits, grants, insights, install_extension, installed_extensions, listing),
    *(request_session, extension_script),
)
_STATEMENT = re.compile(r"\A(?:SELECT|WITH|LOCK|SET|GRANT|CREATE|ALTER|DROP|INSERT|UPDATE|DELETE) ")


def statements(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield the statements of a module that are constants, by their names; `{}` stands for a quoted schema."""
    for name, value in vars(module).items():
        if isinstance(value, str) and _STATEMENT.match(value):
            yield f"{module.__name__.rpartition('.')[2]}.{name}", value.replace("{schema}", '"x"')


CONSTANTS = dict(pair for module in MODULES for pair in statements(module))


@pytest.mark.parametrize("name", CONSTANTS)
def test_every_name_in_a_constant_statement_is_qualified(name: str) -> None:
    """T-01."""
    assert unqualified(CONSTANTS[name]) == []


def test_the_statements_are_found() -> None:
    """T-01: a module without any would be passed over in silence."""
    assert len(CONSTANTS) >= 20
    assert {name.partition(".")[0] for name in CONSTANTS} >= {
        *("database_encoding", "dump_waits", "grants", "insights", "installed_extensions", "listing"),
        "extension_script",
    }


@pytest.mark.parametrize("version", [None, "1.0"])
@pytest.mark.parametrize("fixed_schema", [None, "house"])
def test_every_name_in_the_statements_around_a_script_is_qualified(
    version: str | None, fixed_schema: str | None
) -> None:
    """T-01: those that are made for one extension."""
    facts = Facts(version, version and "mine", None, True, None, fixed_schema)
    ways = ways_to('na"me', "1.1", facts, "trio_compute_x", ["required"])
    assert ways
    assert [unqualified(statement) for way in ways for statement in way.statements] == [
        [] for way in ways for _ in way.statements
    ]


class TestWays:
    """What runs where, by what is known (T-02)."""

    @pytest.mark.parametrize(
        ("facts", "names"),
        [
            (Facts(), ["isolated", "direct"]),
            (Facts(will_be_relocatable=True), ["isolated", "direct"]),
            (Facts(will_be_relocatable=False), ["direct"]),
            (Facts(will_be_relocatable=False, fixed_schema="house"), ["direct"]),
            (Facts("1.0", "mine", True, True, True), ["isolated", "direct"]),
            (Facts("1.0", "mine", True, True, None), ["isolated", "direct"]),
            (Facts("1.0", "mine", True, True, False), ["direct"]),
            (Facts("1.0", "mine", False, True, True), ["direct"]),
        ],
    )
    def test_what_can_be_moved_gets_a_schema_of_ours(self, facts: Facts, names: list[str]) -> None:
        ways = ways_to("e", "1.1", facts, "w", ["required", "pg_catalog"])
        assert ["isolated" if way.before else "direct" for way in ways] == names
        for way in ways:
            home = facts.schema or facts.fixed_schema or "public"
            expected = {*(["w"] if facts.schema else [])} if way.before else {home}
            assert set(way.watched) == expected | {"required"}

    def test_what_belongs_to_pg_catalog_stays_there(self) -> None:
        ways = ways_to("plpgsql", "1.1", Facts("1.0", "pg_catalog", True, True, True), "w", [])
        assert {way.statements for way in ways} == {('ALTER EXTENSION "plpgsql" UPDATE TO "1.1"',)}
        assert {way.watched for way in ways} == {()}


@pytest.mark.parametrize(
    ("text", "required"),
    [
        (b"", []),
        (b"comment = 'requires = x'\nrelocatable = true", []),
        (b"requires = 'cube, \"earth\"' # two\n", ["cube", "earth"]),
        (b"REQUIRES='plpgsql'", ["plpgsql"]),
        (b"#requires = 'a'\n  requires = 'b'\ncomment = '\xff'", ["b"]),
    ],
)
def test_the_control_file_tells_what_an_extension_requires(text: bytes, required: list[str]) -> None:
    """T-02: where Postgres lists no version, because the scripts are downloaded by the creation."""
    assert extension_script.required_by(text) == required
