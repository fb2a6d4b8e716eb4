"""How an extension's script runs so that it finds nothing of a tenant's making: statements and queries alone (T-02).

A script runs as superuser, with a `search_path` of its extension's schema, the schemas of the extensions that it
requires, and `pg_temp`. Who may create in one of them can plant an operator or function that fits a call better than
the one that was meant. So an extension that can be moved gets a schema of our own for as long as its script runs, in
one transaction. Of any other, nothing in those schemas may belong to anybody but a superuser: not even members of the
extension, since the owner of an extension may add what is his to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from trio_compute.plan.catalog.quoting import identifier

DEFAULT_SCHEMA = "public"
# Only superusers create there, and every search_path has it first.
SAFE_SCHEMA = "pg_catalog"
WORKSHOP_PREFIX = "trio_compute_"
MOST_NAMED = 10

# Parameters: name, version.
FACTS = """\
SELECT e.extversion, n.nspname, e.extrelocatable, a.name IS NOT NULL, v.relocatable, v.schema
FROM (SELECT %s::pg_catalog.text AS name, %s::pg_catalog.text AS version) wanted
LEFT JOIN pg_catalog.pg_extension e ON e.extname OPERATOR(pg_catalog.=) wanted.name
LEFT JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
LEFT JOIN pg_catalog.pg_available_extensions a ON a.name OPERATOR(pg_catalog.=) wanted.name
LEFT JOIN pg_catalog.pg_available_extension_versions v
       ON v.name OPERATOR(pg_catalog.=) wanted.name AND v.version OPERATOR(pg_catalog.=) wanted.version"""
# Parameter: name. Of all versions, since an update may go through several.
REQUIRED = """\
SELECT required::pg_catalog.text
FROM pg_catalog.pg_available_extension_versions v, pg_catalog.unnest(v.requires) AS required
WHERE v.name OPERATOR(pg_catalog.=) %s"""
# Parameter: name. For an extension whose scripts are downloaded by its creation, so that no version is listed yet.
CONTROL_FILE = """\
SELECT pg_catalog.pg_read_binary_file(
    pg_catalog.concat(c.setting, '/extension/', %s::pg_catalog.text, '.control'), 0, 100000, true)
FROM pg_catalog.pg_config c WHERE c.name OPERATOR(pg_catalog.=) 'SHAREDIR'"""
INSTALLED = "SELECT extname::pg_catalog.text FROM pg_catalog.pg_extension"
# Parameter: names of extensions.
SCHEMAS_OF = """\
SELECT DISTINCT n.nspname::pg_catalog.text FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
WHERE e.extname OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[])"""
# Parameter: names of schemas. What could be called from a script and is not a superuser's.
FOREIGN_OBJECTS = """\
SELECT pg_catalog.pg_describe_object(o.class, o.oid, 0)
FROM (SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid AS class, oid, pronamespace AS schema,
             proowner AS owner FROM pg_catalog.pg_proc
      UNION ALL
      SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass::pg_catalog.oid, oid, oprnamespace, oprowner
      FROM pg_catalog.pg_operator) o
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.schema
JOIN pg_catalog.pg_authid owner ON owner.oid OPERATOR(pg_catalog.=) o.owner
WHERE n.nspname OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[]) AND NOT owner.rolsuper
ORDER BY 1 LIMIT 11"""
# Parameter: names of extensions. Members that are not a superuser's; triggers on members, and tables that refer to
# members, whose own triggers then run with the rights of who writes to those (but in 18).
FOREIGN_MEMBERS = """\
WITH member AS (
    SELECT d.classid, d.objid FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
    WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid
      AND d.deptype OPERATOR(pg_catalog.=) 'e'
      AND e.extname OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.text[]))
SELECT pg_catalog.pg_describe_object(m.classid, m.objid, 0)
FROM member m
JOIN pg_catalog.pg_shdepend s
  ON s.classid OPERATOR(pg_catalog.=) m.classid AND s.objid OPERATOR(pg_catalog.=) m.objid
 AND s.deptype OPERATOR(pg_catalog.=) 'o'
 AND s.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_authid'::pg_catalog.regclass::pg_catalog.oid
JOIN pg_catalog.pg_database here
  ON here.oid OPERATOR(pg_catalog.=) s.dbid AND here.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
JOIN pg_catalog.pg_authid owner ON owner.oid OPERATOR(pg_catalog.=) s.refobjid AND NOT owner.rolsuper
UNION
SELECT pg_catalog.pg_describe_object('pg_catalog.pg_trigger'::pg_catalog.regclass::pg_catalog.oid, t.oid, 0)
FROM member m
JOIN pg_catalog.pg_trigger t
  ON t.tgrelid OPERATOR(pg_catalog.=) m.objid AND NOT t.tgisinternal
 AND m.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid
JOIN pg_catalog.pg_authid owner ON owner.oid OPERATOR(pg_catalog.=) p.proowner AND NOT owner.rolsuper
UNION
SELECT pg_catalog.pg_describe_object('pg_catalog.pg_constraint'::pg_catalog.regclass::pg_catalog.oid, c.oid, 0)
FROM member m
JOIN pg_catalog.pg_constraint c
  ON c.confrelid OPERATOR(pg_catalog.=) m.objid AND c.contype OPERATOR(pg_catalog.=) 'f'
 AND m.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
JOIN pg_catalog.pg_class referring ON referring.oid OPERATOR(pg_catalog.=) c.conrelid
JOIN pg_catalog.pg_authid owner ON owner.oid OPERATOR(pg_catalog.=) referring.relowner AND NOT owner.rolsuper
ORDER BY 1 LIMIT 11"""
# Nobody can create or rename a function, operator, trigger or schema while this is held; reading goes on.
LOCK_MAKERS = """\
LOCK TABLE pg_catalog.pg_namespace, pg_catalog.pg_proc, pg_catalog.pg_operator, pg_catalog.pg_trigger
IN SHARE ROW EXCLUSIVE MODE"""
# Who may have made something before that lock, and has not committed it yet.
OPEN_WRITERS = """\
SELECT a.backend_xid::pg_catalog.text,
       pg_catalog.concat('pid ', a.pid, ' of ', a.usename, ', application ',
                         pg_catalog.quote_literal(a.application_name))
FROM pg_catalog.pg_stat_activity a
WHERE a.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() AND a.backend_xid IS NOT NULL
  AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
UNION ALL
SELECT p.transaction::pg_catalog.text,
       pg_catalog.concat('prepared transaction ', pg_catalog.quote_literal(p.gid), ' of ', p.owner)
FROM pg_catalog.pg_prepared_xacts p
WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database()"""
# Postgres keeps what it once showed of other sessions for the rest of a transaction.
LOOK_ANEW = "SELECT pg_catalog.pg_stat_clear_snapshot()"


class Facts(Struct, frozen=True):
    """Hold what is known of an extension in one database before anything is done."""

    version: str | None = None  # None: it is not installed
    schema: str | None = None
    is_relocatable: bool | None = None
    is_available: bool = True
    will_be_relocatable: bool | None = None  # None: Postgres does not list the version
    fixed_schema: str | None = None  # the only one that its control file allows


class Way(Struct, frozen=True):
    """Be one way to run a script: statements for one transaction, and the schemas to look into before `script`.

    In those of `watched` that are not `own` others may be at work: they must be kept out and awaited first.
    """

    script: str
    watched: tuple[str, ...] = ()
    own: str | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def shared(self) -> tuple[str, ...]:
        """Return the watched schemas that others see."""
        return tuple(schema for schema in self.watched if schema != self.own)

    @property
    def statements(self) -> tuple[str, ...]:
        """Return all statements in order."""
        return (*self.before, self.script, *self.after)


def isolated_creation(
    name: str, workshop: str, *, version: str | None = None, schema: str = DEFAULT_SCHEMA, required: Sequence[str] = ()
) -> Way:
    """Return how to create a relocatable extension in a schema of ours and move it to where it belongs."""
    return Way(
        before=(f"CREATE SCHEMA {identifier(workshop)}",),
        watched=_watched(required),
        script=f"CREATE EXTENSION {identifier(name)} WITH SCHEMA {identifier(workshop)}{_version(version)}",
        after=_return(name, schema, workshop),
    )


def isolated_update(name: str, workshop: str, *, version: str | None, schema: str, required: Sequence[str] = ()) -> Way:
    """Return how to update a relocatable extension in a schema of ours, between its way in and its way back."""
    place, extension = identifier(workshop), identifier(name)
    to = "" if version is None else f" TO {identifier(version)}"
    return Way(
        before=(f"CREATE SCHEMA {place}", f"ALTER EXTENSION {extension} SET SCHEMA {place}"),
        watched=_watched((workshop, *required)),
        own=workshop,
        script=f"ALTER EXTENSION {extension} UPDATE{to}",
        after=_return(name, schema, workshop),
    )


def ways_to(
    name: str, version: str, facts: Facts, workshop: str, required: Sequence[str], *, home: str = DEFAULT_SCHEMA
) -> tuple[Way, ...]:
    """Return how to bring an extension to a version, the next way for when Postgres does not support the one before.

    It may not support to move one that says it can be moved, or one whose control file it has not got yet.
    """
    isolated, direct = (_update_ways if facts.version is not None else _creation_ways)(
        name, version, facts, workshop, required, home
    )
    can_move = facts.fixed_schema is None and facts.will_be_relocatable is not False
    return (isolated, direct) if can_move and facts.is_relocatable is not False else (direct,)


def _creation_ways(
    name: str, version: str, facts: Facts, workshop: str, required: Sequence[str], home: str
) -> tuple[Way, Way]:
    schema = facts.fixed_schema or home
    # An extension whose control file names its schema makes it if it is missing, and takes no other.
    clause = "" if facts.fixed_schema else f" WITH SCHEMA {identifier(home)}"
    direct = Way(
        script=f"CREATE EXTENSION {identifier(name)}{clause}{_version(version)}", watched=_watched((schema, *required))
    )
    return isolated_creation(name, workshop, version=version, schema=home, required=required), direct


def _update_ways(
    name: str, version: str, facts: Facts, workshop: str, required: Sequence[str], home: str
) -> tuple[Way, Way]:
    schema = facts.schema or home
    statement = f"ALTER EXTENSION {identifier(name)} UPDATE TO {identifier(version)}"
    direct = Way(script=statement, watched=_watched((schema, *required)))
    if schema == SAFE_SCHEMA:
        return direct, direct
    return isolated_update(name, workshop, version=version, schema=schema, required=required), direct


def required_by(control_file: bytes) -> list[str]:
    """Return the extensions that a control file requires."""
    for line in control_file.decode(errors="replace").splitlines():
        key, _, value = line.partition("#")[0].partition("=")
        if key.strip().lower() == "requires":
            return [name.strip().strip('"') for name in value.strip().strip("'").split(",") if name.strip()]
    return []


def _return(name: str, schema: str, workshop: str) -> tuple[str, str]:
    return (
        f"ALTER EXTENSION {identifier(name)} SET SCHEMA {identifier(schema)}",
        f"DROP SCHEMA {identifier(workshop)}",
    )


def _watched(schemas: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(schema for schema in schemas if schema != SAFE_SCHEMA))


def _version(version: str | None) -> str:
    return "" if version is None else f" VERSION {identifier(version)}"
