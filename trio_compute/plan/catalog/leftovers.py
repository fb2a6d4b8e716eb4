"""The SQL that takes a deleted role out of one database and drops nothing that is data (contract 11 T-03, T-10).

`DROP OWNED` is not among it: it would drop what somebody who acts as the role makes in the meantime. Roles are named
by their number, since their names need not be text in the encoding of the database.
"""

from __future__ import annotations

from trio_compute.model import catalog_rules
from trio_compute.plan.catalog.blocks import block, each_of, run_all, warning
from trio_compute.plan.catalog.quoting import literal

LARGEST_BATCH = 500
_OWNED_RELATIONS = """\
SELECT c.oid, n.nspname, c.relname
FROM pg_catalog.pg_shdepend s
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) s.objid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE s.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_authid'::pg_catalog.regclass
  AND s.refobjid OPERATOR(pg_catalog.=) {role} AND s.deptype OPERATOR(pg_catalog.=) 'o'
  AND s.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
  AND s.dbid OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d
                                     WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
  AND c.relkind OPERATOR(pg_catalog.=) ANY ('{{r,p,v,m,f}}'::pg_catalog."char"[])
  AND c.relpersistence OPERATOR(pg_catalog.<>) 't'"""
# A table takes a lock for itself, its indexes, its TOAST table and its sequences; all of a transaction must fit the
# table of locks, which others use as well (T-12).
_BATCH = """\
greatest(10, least(500,
    pg_catalog.current_setting('max_locks_per_transaction')::int OPERATOR(pg_catalog.*)
    (pg_catalog.current_setting('max_connections')::int OPERATOR(pg_catalog.+)
     pg_catalog.current_setting('max_prepared_transactions')::int) OPERATOR(pg_catalog./) 32))"""
_DEFINERS = """\
SELECT p.oid::pg_catalog.regprocedure::pg_catalog.text FROM pg_catalog.pg_proc p
WHERE p.prosecdef AND p.proowner OPERATOR(pg_catalog.=) {role}"""
# Kinds that a superuser alone may own. An event trigger is nothing but code, which must not go to one; it goes.
_FOR_SUPERUSERS = """\
SELECT pg_catalog.format('event trigger %I', t.evtname),
       pg_catalog.format('DROP EVENT TRIGGER %I', t.evtname)
FROM pg_catalog.pg_event_trigger t WHERE t.evtowner OPERATOR(pg_catalog.=) {role}
UNION ALL
SELECT pg_catalog.format('foreign data wrapper %I', w.fdwname),
       pg_catalog.format('ALTER FOREIGN DATA WRAPPER %I OWNER TO %I', w.fdwname, {superuser})
FROM pg_catalog.pg_foreign_data_wrapper w WHERE w.fdwowner OPERATOR(pg_catalog.=) {role}"""
_SUBSCRIPTIONS = """\
SELECT pg_catalog.format('subscription %I', u.subname),
       pg_catalog.format('ALTER SUBSCRIPTION %1$I DISABLE; ALTER SUBSCRIPTION %1$I SET (slot_name = NONE); '
                         'DROP SUBSCRIPTION %1$I', u.subname)
FROM pg_catalog.pg_subscription u
JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) u.subdbid
WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() AND u.subowner OPERATOR(pg_catalog.=) {role}"""
_POLICIES = """\
SELECT CASE WHEN pg_catalog.cardinality(p.polroles) OPERATOR(pg_catalog.=) 1
       THEN pg_catalog.format('DROP POLICY %I ON %s', p.polname, p.polrelid::pg_catalog.regclass)
       ELSE pg_catalog.format('ALTER POLICY %I ON %s TO %s', p.polname, p.polrelid::pg_catalog.regclass,
                              (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(r.rolname), ', ')
                               FROM pg_catalog.pg_authid r
                               WHERE r.oid OPERATOR(pg_catalog.=) ANY (p.polroles)
                                 AND r.oid OPERATOR(pg_catalog.<>) {role}))
       END
FROM pg_catalog.pg_policy p WHERE {role} OPERATOR(pg_catalog.=) ANY (p.polroles)"""
_USER_MAPPINGS = """\
SELECT pg_catalog.format('DROP USER MAPPING FOR %I SERVER %I', {name}, v.srvname)
FROM pg_catalog.pg_user_mapping m
JOIN pg_catalog.pg_foreign_server v ON v.oid OPERATOR(pg_catalog.=) m.umserver
WHERE m.umuser OPERATOR(pg_catalog.=) {role}"""
# An entry goes when it says what would hold without it: nothing in a schema, else everything for the owner and what
# everybody may do with functions and types.
_DEFAULT_PRIVILEGES = """\
SELECT pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I%s %s', owner, place, command)
FROM (SELECT d.oid, o.rolname AS owner, k.command, k.step,
             CASE WHEN n.oid IS NULL THEN '' ELSE pg_catalog.format(' IN SCHEMA %I', n.nspname) END AS place
      FROM pg_catalog.pg_default_acl d
      JOIN pg_catalog.pg_authid o ON o.oid OPERATOR(pg_catalog.=) d.defaclrole
      LEFT JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) d.defaclnamespace
      JOIN (VALUES ('r', 'TABLES'), ('S', 'SEQUENCES'), ('f', 'FUNCTIONS'), ('T', 'TYPES'), ('n', 'SCHEMAS'),
                   ('L', 'LARGE OBJECTS')) AS kind (letter, word)
           ON kind.letter::pg_catalog."char" OPERATOR(pg_catalog.=) d.defaclobjtype
      CROSS JOIN LATERAL (
          SELECT 1, pg_catalog.format('REVOKE ALL ON %s FROM %s', kind.word, coalesce(
                     (SELECT pg_catalog.quote_ident(r.rolname) FROM pg_catalog.pg_authid r
                      WHERE r.oid OPERATOR(pg_catalog.=) entry.grantee), 'PUBLIC'))
          FROM pg_catalog.aclexplode(d.defaclacl) AS entry
          WHERE d.defaclrole OPERATOR(pg_catalog.=) {role} OR entry.grantee OPERATOR(pg_catalog.=) {role}
          UNION
          SELECT 2, pg_catalog.format('GRANT ALL ON %s TO %I', kind.word, o.rolname)
          WHERE d.defaclrole OPERATOR(pg_catalog.=) {role} AND n.oid IS NULL
          UNION
          SELECT 2, pg_catalog.format('GRANT ALL ON %s TO PUBLIC', kind.word)
          WHERE d.defaclrole OPERATOR(pg_catalog.=) {role} AND n.oid IS NULL
            AND d.defaclobjtype OPERATOR(pg_catalog.=) ANY ('{{f,T}}'::pg_catalog."char"[])
      ) AS k (step, command)) AS entries
ORDER BY oid, step"""


def prepared_transactions(role: int | None) -> str:
    """Return the query for statements that end prepared transactions of this database, of one role or of all."""
    whose = "" if role is None else f" AND p.owner OPERATOR(pg_catalog.=) {_name_of(role)}"
    return (
        "SELECT pg_catalog.format('ROLLBACK PREPARED %L', p.gid) FROM pg_catalog.pg_prepared_xacts p "
        f"WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database(){whose}"
    )


def many_relations(role: int) -> str:
    """Return the query that has a row while a role owns more relations here than one transaction should move."""
    owned = f"{_OWNED_RELATIONS.format(role=role)} LIMIT {LARGEST_BATCH + 1}"
    return f"SELECT 1 FROM ({owned}) o HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) {_BATCH}"


def move_relations(role: int, heir: str) -> str:
    """Return the statement that gives the next so many relations of a role to the heir, an expression for its name."""
    return run_all(
        f"SELECT pg_catalog.format('ALTER TABLE %I.%I OWNER TO %I', o.nspname, o.relname, {heir}) "
        f"FROM ({_OWNED_RELATIONS.format(role=role)} LIMIT {_BATCH}) o"
    )


def drop_subscriptions(role: int) -> str:
    """Return the statement that drops the subscriptions of a role in this database, and says so."""
    body = _one_by_one(_SUBSCRIPTIONS.format(role=role), "%s was dropped, and its slot left: its owner was deleted")
    return block(body, "item pg_catalog.text", "command pg_catalog.text")


def make_harmless(role: int) -> str:
    """Return the statement that lets the routines of a role run with the rights of who calls them, and says so."""
    return block(f"    {_harmless(str(role))}", "item pg_catalog.text")


def move_all(role: int, heir: str, *, is_powerless: bool) -> str:
    """Return the statement that gives all else that a role owns to the heir, routines without SECURITY DEFINER (T-03).

    What an heir without any power gets is made harmless after the move too: somebody may have made more of it just now.
    """
    superuser = f"{literal(catalog_rules.SUPERUSER)}::pg_catalog.text"
    stranded = _FOR_SUPERUSERS.format(role=role, superuser=superuser)
    told = "%s can belong to a superuser only and is of no use any more: its owner was deleted"
    heirs = f"(SELECT r.oid FROM pg_catalog.pg_authid r WHERE r.rolname OPERATOR(pg_catalog.=) {heir})"
    body = f"""\
{_one_by_one(stranded, told)}
    {_harmless(str(role))}
    EXECUTE pg_catalog.format('REASSIGN OWNED BY %I TO %I', {_name_of(role)}, {heir});
    {_harmless(heirs) if is_powerless else ""}"""
    return block(body, "item pg_catalog.text", "command pg_catalog.text")


def _one_by_one(query: str, told: str) -> str:
    return f"""\
    FOR item, command IN SELECT * FROM ({query}) AS found LOOP
        EXECUTE command;
        {warning(told, "item")}
    END LOOP;"""


def _harmless(owner: str) -> str:
    return f"""\
FOREACH item IN ARRAY ARRAY({_DEFINERS.format(role=owner)}) LOOP
        EXECUTE pg_catalog.format('ALTER ROUTINE %s SECURITY INVOKER', item);
        {warning("%s is not SECURITY DEFINER any more: its owner was deleted", "item")}
    END LOOP;"""


def drop_mentions(role: int) -> str:
    """Return the statement that takes a role out of policies, user mappings and default privileges."""
    name = _name_of(role)
    body = "\n    ".join(
        each_of(query.format(role=role, name=name)) for query in (_POLICIES, _USER_MAPPINGS, _DEFAULT_PRIVILEGES)
    )
    return block(f"    {body}", "command pg_catalog.text")


def owner_of_database() -> str:
    """Return the expression for the name of the owner of the database at hand."""
    return (
        "(SELECT pg_catalog.pg_get_userbyid(d.datdba) FROM pg_catalog.pg_database d "
        "WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"
    )


def _name_of(role: int) -> str:
    return f"(SELECT r.rolname FROM pg_catalog.pg_authid r WHERE r.oid OPERATOR(pg_catalog.=) {role})"
