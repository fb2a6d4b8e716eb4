"""What each phase of a plan holds, and what it predicts (contract 05 §7 to §14)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from tests.fakes.specs import parsed
from trio_compute.db.maintenance import maintenance_target
from trio_compute.deadlines import Deadlines
from trio_compute.model import catalog_rules
from trio_compute.plan.catalog.operations import Operation, Plan
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.snapshot import DatabaseFacts, RoleFacts, Snapshot, fresh_snapshot
from trio_compute.plan.catalog.wanted import Wanted, wanted_of
from trio_compute.plan.migrations import MIGRATIONS, preparation

P = "neon_superuser"
MD5 = "0f" * 16


def of(roles: Any = (), databases: Any = (), delta: Any = None, privileged: str = P, **changes: Any) -> Wanted:
    cluster = {"roles": list(roles), "databases": list(databases)}
    return wanted_of(parsed(cluster=cluster, delta_operations=delta, **changes), privileged_role=privileged)


def role(name: str, password: str | None = None, *options: str) -> dict[str, Any]:
    listed = [{"name": option, "value": None, "vartype": "bool"} for option in options]
    return {"name": name, "encrypted_password": password, "options": listed}


def settled(roles: tuple[str, ...] = (), databases: dict[str, str] | None = None) -> Snapshot:
    """Return what a plan for these leaves."""
    listed = [{"name": name, "owner": owner} for name, owner in (databases or {}).items()]
    return plan_catalog(of([role(name) for name in roles], listed), fresh_snapshot("cloud_admin", major=17))[1]


def operations(plan: Plan, phase_name: str) -> list[Operation]:
    return [step for _, phase in plan.located() if phase.name == phase_name for step in phase.operations]


def statements(plan: Plan, phase_name: str) -> list[str]:
    return [step.statement for step in operations(plan, phase_name)]


def test_a_rename_happens_once_and_a_stale_one_only_warns() -> None:
    """K-01."""
    rename = [{"action": "rename_role", "name": "a", "new_name": "b"}]
    plan, after = plan_catalog(of(delta=rename), settled(("a",)))
    assert statements(plan, "RenameRoles") == ['ALTER ROLE "a" RENAME TO "b"']
    assert plan_catalog(of(delta=rename), after)[0].is_empty
    for present in ((), ("a", "b")):
        plan, _ = plan_catalog(of(delta=rename), settled(present))
        assert plan.is_empty
        assert len(plan.warnings) == 1


def test_a_renamed_role_is_cleaned_up_under_its_new_name() -> None:
    """K-20: what it owns goes with it."""
    state = settled(("a",))
    state.footholds = state.estates = {"a": frozenset({"postgres"})}
    delta = [{"action": "rename_role", "name": "a", "new_name": "b"}, {"action": "delete_role", "name": "b"}]
    plan, after = plan_catalog(of(delta=delta), state)
    whats = [operation.what for operation in operations(plan, "DeleteDBRoleReferences")]
    assert "give what role b owns to heir_of_deleted_roles_0" in whats
    assert "b" not in after.roles


def test_a_role_is_cleaned_up_in_a_database_that_is_renamed() -> None:
    """K-20: the database is found under its new name."""
    state = settled(("r",))
    state.databases["old"] = DatabaseFacts("cloud_admin")
    state.footholds = {"r": frozenset({"old"})}
    delta = [{"action": "rename_db", "name": "old", "new_name": "new"}, {"action": "delete_role", "name": "r"}]
    plan, _ = plan_catalog(of(delta=delta), state)
    assert [work.database for work in plan.databases] == ["new"]


def test_an_md5_password_is_compared_with_its_prefix_and_options_alter_nothing() -> None:
    """K-16."""
    state = settled()
    state.roles["r"] = RoleFacts(f"md5{MD5}")
    assert plan_catalog(of([role("r", MD5.upper(), "NOCREATEDB")]), state)[0].is_empty
    plan, _ = plan_catalog(of([role("r")]), state)
    assert statements(plan, "CreateAndAlterRoles") == ['ALTER ROLE "r" LOGIN PASSWORD NULL']


def test_an_option_and_its_negation_do_not_collide() -> None:
    """K-04: the first one counts."""
    plan, _ = plan_catalog(of([role("r", None, "NOCREATEDB", "CREATEDB", "login")]), settled())
    words = f'INHERIT CREATEROLE BYPASSRLS REPLICATION IN ROLE "{P}" NOCREATEDB LOGIN PASSWORD NULL'
    assert statements(plan, "CreateAndAlterRoles") == [f'CREATE ROLE "r" {words}']


def test_a_reserved_word_as_privileged_role_is_quoted_and_nothing_names_the_usual_one() -> None:
    """K-05, K-06."""
    plan, _ = plan_catalog(
        of([role("r")], [{"name": "d", "owner": "r"}], privileged="user"), fresh_snapshot("cloud_admin", major=17)
    )
    text = "\n".join(step.statement for _, phase in plan.located() for step in phase.operations)
    text += "\n".join(migration.statement("user", 17) or "" for migration in MIGRATIONS)
    assert P not in text
    assert 'CREATE ROLE "user" CREATEDB' in text
    assert 'ALTER ROLE "user" BYPASSRLS' in text


def test_the_superuser_has_its_name_from_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """K-36."""
    monkeypatch.setattr(catalog_rules, "SUPERUSER", "boss")
    state = fresh_snapshot("boss", major=17)
    state.roles["r"], state.databases["theirs"] = RoleFacts(), DatabaseFacts("r", oid=7)
    state.footholds = {"r": frozenset({"theirs", "postgres"})}
    delta = [{"action": "delete_role", "name": "r"}]
    plan, after = plan_catalog(of([role("boss", MD5)], [{"name": "d", "owner": "boss"}], delta), state)
    text = [step.statement + (step.only_if or "") for _, phase in plan.located() for step in phase.operations]
    assert "cloud_admin" not in "".join([*text, *preparation()])
    assert 'ALTER SCHEMA neon_migration OWNER TO "boss"' in preparation()
    assert after.databases["theirs"].owner == "heir_of_deleted_roles_7"
    assert after.roles["boss"].password == f"md5{MD5}"
    assert "-c role=boss" in maintenance_target("postgresql://h/d", "x", Deadlines()).options


def test_system_roles_are_passed_over() -> None:
    """K-17."""
    listed = [role(name, MD5) for name in ("zenith_admin", P)]
    assert plan_catalog(of(listed), settled())[0].is_empty


def test_templates_of_postgres_are_passed_over() -> None:
    """K-17: neither owner nor privileges change."""
    listed = [{"name": name, "owner": "r"} for name in ("template0", "template1")]
    assert plan_catalog(of(databases=listed), settled(("r",)))[0].is_empty


def test_owners_are_compared_as_they_are() -> None:
    """K-18."""
    state = settled(("abc", '"abc"'), {"d": '"abc"'})
    plan, _ = plan_catalog(of(databases=[{"name": "d", "owner": "abc"}]), state)
    assert statements(plan, "CreateAndAlterDatabases") == ['ALTER DATABASE "d" OWNER TO "abc"']
    assert plan_catalog(of(databases=[{"name": "d", "owner": '"abc"'}]), state)[0].is_empty


def test_a_deleted_role_is_cleaned_up_wherever_it_has_a_foothold() -> None:
    """K-20, K-21, T-03: databases first, explicitly, also those that no spec lists, and never to a superuser."""
    state = settled(("r",))
    state.databases["unlisted"] = DatabaseFacts("r", oid=7)
    state.footholds = {"r": frozenset({"unlisted", "postgres"})}
    plan, after = plan_catalog(of(delta=[{"action": "delete_role", "name": "r"}]), state)
    (gift,) = statements(plan, "TakeDatabasesFromDeletedRoles")
    assert gift == 'ALTER DATABASE "unlisted" OWNER TO "heir_of_deleted_roles_7"'
    places = [place for place, phase in plan.located() if phase.name == "DeleteDBRoleReferences"]
    assert places == [None, "unlisted"]
    assert statements(plan, "DropRoles")[0] == 'DROP ROLE IF EXISTS "r"'
    assert after.databases["unlisted"].owner == "heir_of_deleted_roles_7"


def test_inherited_subscriptions_are_dropped_everywhere_once_per_timeline() -> None:
    """K-22, K-23, K-24."""
    state = settled()
    state.databases["unlisted"] = DatabaseFacts("cloud_admin", subscriptions=2)
    plan, after = plan_catalog(of(drop_subscriptions_before_start=True), state)
    (drop,) = operations(plan, "DropLogicalSubscriptions")
    assert drop.tolerated == {"3D000", "42704"}
    (note,) = statements(plan, "FinalizeDropLogicalSubscriptions")
    assert f"'{after.dropped_subscriptions_of}'" in note
    assert "current_setting" not in note
    after.databases["unlisted"] = DatabaseFacts("cloud_admin", subscriptions=1)
    assert plan_catalog(of(drop_subscriptions_before_start=True), after)[0].is_empty


def test_an_invalid_database_is_dropped_by_force_made_anew_and_noted_anew() -> None:
    """K-25, K-26, K-32: the new one has another oid, so that the old note does not hold for it."""
    state = settled(("o",), {"d": "o"})
    state.databases["d"] = structs.replace(state.databases["d"], invalid=True)
    plan, after = plan_catalog(of(databases=[{"name": "d", "owner": "o"}]), state)
    assert statements(plan, "DropInvalidDatabases") == ['DROP DATABASE IF EXISTS "d" WITH (FORCE)']
    assert operations(plan, "CreateAndAlterDatabases")[0].retried == {"55006"}
    assert operations(plan, "ChangeSchemaPerms")[-1].what == "note that database d is prepared"
    assert plan_catalog(of(databases=[{"name": "d", "owner": "o"}]), after)[0].is_empty


def test_extensions_that_are_missing_or_not_loaded_are_warnings() -> None:
    """K-27, K-35."""
    state = settled()
    state.libraries = ("pg_stat_statements",)
    plan, _ = plan_catalog(of(audit_log_level="Hipaa"), state)
    assert not operations(plan, "HandleOtherExtensions")
    assert len(plan.warnings) == 3
    assert statements(plan, "DisablePostgresDBPgAudit") == ["ALTER DATABASE \"postgres\" SET pgaudit.log = 'none'"]


def test_what_a_crash_left_out_is_made_up_for() -> None:
    """K-29."""
    state = settled(("o",), {"d": "o"})
    state.roles[P] = structs.replace(state.roles[P], attributes=frozenset(), member_of=frozenset())
    state.databases["d"] = structs.replace(state.databases["d"], granted=False)
    plan, _ = plan_catalog(of(databases=[{"name": "d", "owner": "o"}]), state)
    assert len(statements(plan, "CreatePrivilegedRole")) == 3
    assert statements(plan, "CreateAndAlterDatabases") == [f'GRANT ALL PRIVILEGES ON DATABASE "d" TO "{P}"']


def test_a_database_that_is_deleted_and_listed_stays() -> None:
    """K-37."""
    state = settled(("o",), {"d": "o"})
    delta = [{"action": "delete_db", "name": "d"}]
    assert plan_catalog(of(databases=[{"name": "d", "owner": "o"}], delta=delta), state)[0].is_empty
    assert "d" not in plan_catalog(of(delta=delta), state)[1].databases


def test_migrations_are_numbered_by_data_not_by_text() -> None:
    """K-31."""
    assert len(MIGRATIONS) == 12
    assert [n for n, migration in enumerate(MIGRATIONS, 1) if migration.skipped] == [5, 6, 7, 8, 9]
    assert [n for n, m in enumerate(MIGRATIONS, 1) if m.build and m.statement(P, 15) is None] == [3, 10]


def test_planning_leaves_the_snapshot_as_it_was() -> None:
    """K-34."""
    state = settled(("o",), {"d": "o"})
    before = state.copy()
    delta = [{"action": "delete_db", "name": "d"}, {"action": "rename_role", "name": "o", "new_name": "p"}]
    plan_catalog(of([role("x", MD5)], delta=delta), state)
    assert state == before
