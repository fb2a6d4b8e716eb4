"""Every statement of our own sessions leaves no name to search_path: what is no plan and no request (T-01)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.tenants.sql_reading import findings
from trio_compute.db import (
    activity,
    cache,
    catalog_snapshot,
    event_triggers,
    fortress,
    maintenance,
    migrations,
    occupants,
    own_objects,
    preview,
    promotion,
    reload,
    watch,
    writability,
)
from trio_compute.plan import migrations as migration_plan
from trio_compute.plan.catalog.lakebase import GRANTS

MODULES = (
    *(activity, cache, catalog_snapshot, event_triggers, fortress, maintenance, migrations, occupants, own_objects),
    *(preview, promotion, reload, watch, writability, migration_plan),
)
_STATEMENT = re.compile(r"\A(?:SELECT|WITH|LOCK|SET|GRANT|CREATE|ALTER|DROP|INSERT|UPDATE|DELETE)\b")
HELD = ", ".join(grant.held for grant in GRANTS)


def statements(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield the statements of a module that are constants, by their names."""
    for name, value in vars(module).items():
        text = value.decode() if isinstance(value, bytes) else value
        if isinstance(text, str) and _STATEMENT.match(text) and not name.startswith("_LOOK"):
            yield f"{module.__name__.rpartition('.')[2]}.{name}", text.replace("{grants}", HELD)


CONSTANTS = dict(pair for module in MODULES for pair in statements(module))


@pytest.mark.parametrize("name", CONSTANTS)
def test_every_name_in_a_constant_statement_is_qualified(name: str) -> None:
    """T-01."""
    assert findings(CONSTANTS[name]) == []


def test_no_module_is_passed_over() -> None:
    """T-01: each has statements that were found."""
    found = {name.partition(".")[0] for name in CONSTANTS}
    assert found == {module.__name__.rpartition(".")[2] for module in MODULES}


@pytest.mark.parametrize("major", [14, 15, 16, 17, 18])
@pytest.mark.parametrize("number", range(len(migration_plan.MIGRATIONS)))
def test_every_name_in_a_migration_and_in_what_verifies_it_is_qualified(number: int, major: int) -> None:
    """T-01: the block that alters roles too."""
    migration = migration_plan.MIGRATIONS[number]
    for text in (migration.statement("neon_superuser", major), migration.claimed("neon_superuser", major)):
        assert findings(text or "") == []


def test_the_table_of_the_original_is_made_without_a_bare_name() -> None:
    """T-01, T-04."""
    assert [each for text in migration_plan.preparation() for each in findings(text)] == []


def test_values_of_settings_are_set_by_the_real_function() -> None:
    """T-01, T-07."""
    assert findings(fortress.setting_statement(3)) == []
