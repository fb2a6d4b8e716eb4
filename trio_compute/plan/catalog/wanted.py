"""The wanted state of the catalog, taken from a spec that has been checked (contract 05 §6, §16)."""

from __future__ import annotations

from msgspec import Struct

from trio_compute.errors import SpecError
from trio_compute.model import catalog_rules
from trio_compute.model.catalog_rules import ACTIONS, TEMPLATES, is_system_role
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.spec import ComputeAudit, Database, DeltaOp, Role


class Wanted(Struct, frozen=True, kw_only=True):
    """Hold what shall be; what belongs to the system and repetitions are left out already."""

    privileged_role: str
    timeline_id: str
    roles: tuple[Role, ...] = ()
    databases: tuple[Database, ...] = ()
    delta: tuple[DeltaOp, ...] = ()
    jwks_roles: frozenset[str] = frozenset()
    drop_subscriptions: bool = False
    audit: ComputeAudit = ComputeAudit.DISABLED
    lakebase: bool = False
    reader_statement_timeout: str | None = None
    warnings: tuple[str, ...] = ()

    def subjects(self, action: str) -> list[str]:
        """Return the names that delta operations of one kind are about, in order, each once."""
        return list(dict.fromkeys(operation.name for operation in self.delta if operation.action == action))

    def owner_of(self, database: str) -> str | None:
        """Return the wanted owner of a database, or None if the spec does not list it."""
        return next((entry.owner for entry in self.databases if entry.name == database), None)


def wanted_of(parsed: ParsedSpec, *, privileged_role: str, lakebase: bool = False) -> Wanted:
    """Return what a spec wants; raise SpecError if it would rename or delete the privileged role (K-17)."""
    spec = parsed.spec
    delta = tuple(operation for operation in spec.delta_operations or () if operation.action in ACTIONS)
    for operation in delta:
        if operation.action.endswith("_role") and privileged_role in {operation.name, operation.new_name}:
            raise SpecError(f"delta operation {operation.action} may not touch the privileged role {privileged_role!r}")
    roles, databases = dict[str, Role](), dict[str, Database]()
    for role in spec.cluster.roles:
        may_change = role.name == catalog_rules.SUPERUSER or not is_system_role(role.name)
        if may_change and role.name != privileged_role:
            roles.setdefault(role.name, role)
    for database in spec.cluster.databases:
        if database.name not in TEMPLATES:
            databases.setdefault(database.name, database)
    is_listed = any(role.name == privileged_role for role in spec.cluster.roles)
    told = f"role {privileged_role!r} is the privileged role and stays as it is"
    jwks = spec.local_proxy_config.jwks if spec.local_proxy_config is not None else None
    return Wanted(
        privileged_role=privileged_role,
        timeline_id=str(parsed.timeline_id),
        roles=tuple(roles.values()),
        databases=tuple(databases.values()),
        delta=delta,
        jwks_roles=frozenset(name for provider in jwks or () for name in provider.role_names or ()),
        drop_subscriptions=bool(spec.drop_subscriptions_before_start),
        audit=spec.audit_log_level,
        lakebase=lakebase,
        reader_statement_timeout=spec.cluster.setting("databricks.reader_statement_timeout") or None,
        warnings=(told,) if is_listed else (),
    )
