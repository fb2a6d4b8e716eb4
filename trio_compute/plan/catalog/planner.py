"""The order of all phases, and what comes out of them (contract 05 §6)."""

from __future__ import annotations

from collections.abc import Iterable

from trio_compute.plan.catalog import databases, departures, extensions, inside, lakebase, roles
from trio_compute.plan.catalog.operations import DatabaseWork, Operation, Phase, Plan
from trio_compute.plan.catalog.snapshot import Snapshot
from trio_compute.plan.catalog.wanted import Wanted


def plan_catalog(wanted: Wanted, snapshot: Snapshot) -> tuple[Plan, Snapshot]:
    """Return what must be done, and what will exist afterwards; planning again over the latter finds nothing."""
    state, warnings = snapshot.copy(), list(wanted.warnings)
    databases.as_before_reservation(state)
    first = _phases({"OpenClosedDatabases": databases.open_closed_databases(wanted, state)})
    clean_up = _clean_up(wanted, state)
    before = _phases(_before(wanted, state, warnings))
    inner = [work for name in _visited(wanted, state) if (work := _inside(name, wanted, state, warnings)).phases]
    after = _phases(_after(wanted, state, snapshot, warnings))
    plan = Plan(
        first=first,
        clean_up=clean_up,
        before=before,
        databases=tuple(inner),
        after=after,
        warnings=tuple(dict.fromkeys(warnings)),
    )
    return plan, state


def _before(wanted: Wanted, state: Snapshot, warnings: list[str]) -> dict[str, Iterable[Operation]]:
    return {
        "CreatePrivilegedRole": roles.create_privileged_role(wanted, state),
        "CreateDatabricksRoles": lakebase.create_roles(wanted, state, warnings),
        "AlterDatabricksRoles": lakebase.alter_roles(wanted, state),
        "DropInvalidDatabases": databases.drop_invalid_databases(wanted, state),
        "RenameRoles": roles.rename_roles(wanted, state, warnings),
        "CreateAndAlterRoles": roles.create_and_alter_roles(wanted, state),
        "RevokeServerAccess": roles.revoke_server_access(wanted, state, warnings),
        "RenameAndDeleteDatabases": databases.rename_and_delete_databases(wanted, state, warnings),
        "CreateAndAlterDatabases": databases.create_and_alter_databases(wanted, state),
        "ShutOutDeletedRoles": departures.shut_out(wanted, state),
        "CreateHeirs": departures.make_heirs(wanted, state),
        "TakeDatabasesFromDeletedRoles": departures.give_databases_away(wanted, state),
        "CreateSchemaNeon": extensions.create_schema_neon(wanted, state, warnings),
        "NoteInheritedSubscriptions": inside.note_inherited_subscriptions(wanted, state),
        # First and alone: what a role has of shared objects would else be taken from several databases at once.
        "DeleteDBRoleReferences": departures.role_references(state.system_database, wanted, state),
    }


def _after(wanted: Wanted, state: Snapshot, snapshot: Snapshot, warnings: list[str]) -> dict[str, Iterable[Operation]]:
    return {
        "HandleOtherExtensions": extensions.handle_other_extensions(wanted, state, warnings),
        "HandleNeonExtension": extensions.handle_neon_extension(wanted, state, warnings),
        "HandleDatabricksAuthExtension": lakebase.handle_auth_extension(wanted, state, warnings),
        "CreateAvailabilityCheck": extensions.create_availability_check(wanted, state, warnings),
        "ReleaseDatabases": databases.release_databases(wanted, state),
        "DropRoles": departures.drop_roles(wanted, state),
        "AddDatabricksGrants": lakebase.add_grants(wanted, state, snapshot, warnings),
        "CreateDatabricksMisc": lakebase.create_misc(wanted, state, warnings),
        "FinalizeDropLogicalSubscriptions": extensions.finalize_drop_subscriptions(state, snapshot),
        "DropFormerTables": extensions.drop_former_tables(wanted, state),
        "CreateAuditExtensions": extensions.create_audit_extensions(wanted, state, warnings),
        "DisablePostgresDBPgAudit": extensions.silence_audit(wanted, state),
    }


def _phases(planned: dict[str, Iterable[Operation]]) -> tuple[Phase, ...]:
    """Plan each phase in turn, for the later ones rest on the state that the earlier ones leave."""
    phases = [Phase(name, tuple(operations)) for name, operations in planned.items()]
    return tuple(phase for phase in phases if phase.operations)


def _clean_up(wanted: Wanted, state: Snapshot) -> tuple[DatabaseWork, ...]:
    """Plan the end of subscriptions in databases that will be dropped, which could not be dropped with them."""
    deleted = databases.to_be_deleted(wanted, state)
    found = ((name, inside.drop_subscriptions(name, state, "the database is to be dropped")) for name in deleted)
    works = [DatabaseWork(name, (phase,)) for name, phase in found if phase is not None]
    owned = ((name, departures.drop_subscriptions(name, wanted, state)) for name in list(state.databases))
    return (*works, *(DatabaseWork(name, (phase,)) for name, phase in owned if phase is not None))


def _visited(wanted: Wanted, state: Snapshot) -> list[str]:
    """Return the databases in which there may be something to do: those of the spec first, then all others (K-20)."""
    listed = [database.name for database in wanted.databases]
    return list(dict.fromkeys([*listed, state.system_database, *state.databases]))


def _inside(name: str, wanted: Wanted, state: Snapshot, warnings: list[str]) -> DatabaseWork:
    facts = state.databases.get(name)
    if not inside.is_open(facts):
        if wanted.owner_of(name) is not None or (facts is not None and facts.subscriptions_pending is not None):
            warnings.append(f"database {name!r} allows no connections; nothing is done inside it")
        return DatabaseWork(name, ())
    is_pending = wanted.drop_subscriptions and facts is not None and facts.subscriptions_pending == wanted.timeline_id
    phases = (
        departures.delete_role_references(name, wanted, state),
        inside.change_schema_permissions(name, wanted, state),
        inside.drop_subscriptions(name, state, "inherited from the parent branch") if is_pending else None,
    )
    return DatabaseWork(name, tuple(phase for phase in phases if phase is not None))
