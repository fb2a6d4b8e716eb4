"""Who has which rights, before and after: what only a spec may have changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.integration.bare_postgres import PRIVILEGED
from tests.tenants.ground import WORD, Ground, named
from trio_compute.model.catalog_rules import SUPERUSER

_RIGHTS = """
SELECT rolname, concat_ws(' ', CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
    CASE WHEN rolcreatedb THEN 'CREATEDB' END, CASE WHEN rolreplication THEN 'REPLICATION' END,
    CASE WHEN rolbypassrls THEN 'BYPASSRLS' END) FROM pg_catalog.pg_authid"""
_MEMBERSHIPS = """
SELECT g.rolname, m.rolname FROM pg_catalog.pg_auth_members a
JOIN pg_catalog.pg_authid g ON g.oid = a.roleid JOIN pg_catalog.pg_authid m ON m.oid = a.member"""
_PLATFORM = frozenset({SUPERUSER, "databricks_control_plane"})


class Judge:
    """Remember how things stand on a server, and tell what a tenant has gained since."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._log = ground.log_end()
        self._rights, self._memberships = _rights(ground), _memberships(ground)

    def traps(self) -> list[str]:
        """Return which traps have sprung with rights that are not the tenant's, each once."""
        lines = self._ground.log_since(self._log).splitlines()
        found = (line.partition(f"{WORD} ")[2] for line in lines if f"LOG:  {WORD} " in line)
        return sorted({text for text in found if text and ": " not in text.partition(" by ")[2]})

    def gains(self, asked: Iterable[str] = ()) -> list[str]:
        """Return which rights and memberships are new, but for members of the privileged role that were `asked` for."""
        return [*self._new_rights(set(asked)), *self._new_memberships(set(asked))]

    def crimes(self, asked: Iterable[str] = ()) -> list[str]:
        """Return all that must not have happened."""
        return [*self.traps(), *self.gains(asked)]

    def _new_rights(self, asked: set[str]) -> Iterator[str]:
        for role, rights in _rights(self._ground).items():
            if role in _PLATFORM or role == PRIVILEGED:
                continue
            may = frozenset({"CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS"} if role in asked else ())
            if more := rights - self._rights.get(role, frozenset()) - may:
                yield f"{role} is {', '.join(sorted(more))}"

    def _new_memberships(self, asked: set[str]) -> Iterator[str]:
        for group, member in sorted(_memberships(self._ground) - self._memberships):
            is_platform = member in {PRIVILEGED, *_PLATFORM} and group.startswith("pg_")
            if not (is_platform or (group == PRIVILEGED and member in asked) or self._is_heir(group)):
                yield f"{member} is a member of {group}"

    def _is_heir(self, group: str) -> bool:
        """Tell whether a role is new and can do nothing; who owns a database may act for such a one."""
        query = "SELECT 1 FROM pg_roles r WHERE rolname = %s AND NOT rolcanlogin AND NOT EXISTS (SELECT FROM "
        query += "pg_auth_members m WHERE m.member = r.oid OR (m.roleid = r.oid AND m.member NOT IN (SELECT datdba "
        query += "FROM pg_database)))"
        is_powerless = not _rights(self._ground).get(group)
        return group not in self._rights and is_powerless and bool(self._ground.sql(query, group))

    def punish(self) -> None:
        """Take from all tenants what they have gained, so that the next test begins as this one did."""
        for role, rights in _rights(self._ground).items():
            if "SUPERUSER" in rights and role not in _PLATFORM:
                self._ground.do("ALTER ROLE {} NOSUPERUSER", role)
        for group, member in _memberships(self._ground) - self._memberships:
            if group.startswith("pg_") and member not in {PRIVILEGED, *_PLATFORM}:
                with self._ground.connect() as session:
                    session.execute(named("REVOKE {} FROM {} CASCADE", group, member))


def _rights(ground: Ground) -> dict[str, frozenset[str]]:
    return {name: frozenset(rights.split()) for name, rights in _pairs(ground, _RIGHTS)}


def _memberships(ground: Ground) -> set[tuple[str, str]]:
    return set(_pairs(ground, _MEMBERSHIPS))


def _pairs(ground: Ground, query: str) -> list[tuple[str, str]]:
    """Return two columns as texts; bytes that are none are escaped."""
    with ground.connect(client_encoding="SQL_ASCII") as session:
        found = session.execute(query).fetchall()
    return [(one.decode(errors="backslashreplace"), two.decode(errors="backslashreplace")) for one, two in found]
