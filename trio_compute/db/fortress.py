"""What keeps strangers out of a superuser's session (contract 11 T-01, T-02, T-06, T-07), without psycopg.

Settings of a database or a role take effect when a session begins, so those that could let a tenant's code run, or end
the session before it can say anything, are fixed by startup options, which win over them. All others are put back
to what Postgres itself has by the first statement (`OPENING`), whatever they are called: a rule, not a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trio_compute.db.target import Target
from trio_compute.deadlines import Deadlines
from trio_compute.model import catalog_rules

# Text passes as the bytes that it is: names need not be text in any encoding, and those of roles and databases have the
# encoding of whichever database they were made in.
ENCODING = "SQL_ASCII"
# Notes of ours are settings of the superuser, for only a superuser can write those (see plan/catalog/notes.py).
OWN_PREFIX = "trio_compute."
EVENT_TRIGGERS_SINCE = 17  # the first major with a switch for them, with login triggers, and with transaction_timeout

# The major of the server at a host and port: from its data directory, or from its first session.
_majors: dict[tuple[str, int], int] = {}

_FIXED = {
    "search_path": "pg_catalog,pg_temp",
    # Triggers, rules and event triggers of others do not fire, unless they are set to fire always.
    "session_replication_role": "replica",
    "row_security": "off",
    "exit_on_error": "off",
    "lc_messages": "C",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "pgaudit.log": "none",
}
_FIXED_SINCE_17 = {"event_triggers": "off", "transaction_timeout": "0"}
# What a setting cannot take although Postgres says that it comes with it.
_NEUTRAL = {"timezone_abbreviations": "Default"}

OPENING = """\
SELECT pg_catalog.set_config('neon.forward_ddl', 'false', false),
       CURRENT_USER::pg_catalog.text,
       EXISTS (SELECT FROM pg_catalog.pg_event_trigger e
               WHERE e.evtenabled OPERATOR(pg_catalog.=) ANY ('{A,R}'::pg_catalog."char"[])),
       ARRAY(SELECT ARRAY[s.name, s.boot_val] FROM pg_catalog.pg_settings s
             WHERE s.source OPERATOR(pg_catalog.=) ANY ('{database,user,"database user"}'::pg_catalog.text[])
               AND NOT pg_catalog.starts_with(s.name, 'trio_compute.')
               AND NOT pg_catalog.starts_with(s.name, 'transaction_'))"""


def fortified(target: Target, purpose: str, deadlines: Deadlines) -> Target:
    """Return where a session of ours goes, with its name and options.

    The operator's own options win over our time limits and lose against all that keeps strangers out.
    """
    limits = {
        "default_transaction_read_only": "off",
        "statement_timeout": str(round(deadlines.catalog_statement * 1000)),
        "lock_timeout": str(round(deadlines.catalog_lock * 1000)),
    }
    fixed = {"role": catalog_rules.SUPERUSER, **_FIXED}
    options = " ".join([_words(limits), target.options, _words(fixed)])
    return target.replace(options=options, application_name=f"compute_ctl:{purpose}", encoding=ENCODING)


def as_former_superuser(target: Target) -> Target:
    """Return the same session as one of the superuser that old clusters have."""
    former = catalog_rules.FORMER_SUPERUSER
    options = target.options.replace(f"-c role={catalog_rules.SUPERUSER} ", f"-c role={former} ")
    return target.replace(user=former, options=options)


def modern(target: Target) -> Target:
    """Return a target with the options that only Postgres since 17 knows."""
    return target.replace(options=f"{target.options} {_words(_FIXED_SINCE_17)}")


def learn_major(target: Target, major: int) -> None:
    """Remember which options the server at a place knows; one that is known is never taken for an older one."""
    _majors[target.host, target.port] = major


def is_modern(target: Target) -> bool | None:
    """Tell whether a server knows them; None while that is not known, and then it has to be tried."""
    major = _majors.get((target.host, target.port))
    return None if major is None else major >= EVENT_TRIGGERS_SINCE


def refuses_modern(target: Target, text: str) -> bool:
    """Tell from libpq's text, the only thing that it tells, that a server does not know the options of 17.

    The name of a setting is in it in every language; a database of such a name must not be taken for it.
    """
    names = [name for name in _FIXED_SINCE_17 if name not in target.dbname and name not in target.user]
    return any(name in text for name in names)


def neutral_values(settings: Iterable[tuple[str, str | None]]) -> list[str]:
    """Return names and values, alternately, that undo settings of others, given with their built-in values."""
    return [word for name, value in settings for word in (name, _neutral(name, value))]


def _neutral(name: str, value: str | None) -> str:
    return _NEUTRAL.get(name) or value or ("C" if name.startswith("lc_") else "")


def setting_statement(count: int) -> str:
    """Return the statement that takes so many pairs of names and values."""
    return f"SELECT {', '.join(['pg_catalog.set_config(%s, %s, false)'] * count)}"


def options_of(pairs: Sequence[str]) -> str:
    """Return names and values, given alternately, as options of a session; blanks and backslashes are escaped."""
    values = (value.replace("\\", "\\\\").replace(" ", "\\ ") for value in pairs[1::2])
    return _words(dict(zip(pairs[::2], values, strict=True)))


def _words(settings: dict[str, str]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in settings.items())
