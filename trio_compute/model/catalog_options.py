"""Which options a spec may give to roles and databases, and what their values look like (contract 05 K-04)."""

from __future__ import annotations

import enum
import re

from trio_compute.model.spec import GenericOption


class Kind(enum.Enum):
    """Say what follows the name of an option."""

    NOTHING = "no value"
    TEXT = "a text"
    NAME = "a name"
    INTEGER = "a whole number"
    BOOLEAN = "true or false"
    WORD = "a single word"


MAX_NAME_BYTES = 63
_FLAGS = ("SUPERUSER", "CREATEDB", "CREATEROLE", "INHERIT", "REPLICATION", "BYPASSRLS", "LOGIN")
ROLE_OPTIONS = {
    **{f"{prefix}{flag}": Kind.NOTHING for flag in _FLAGS for prefix in ("", "NO")},
    "CONNECTION LIMIT": Kind.INTEGER,
    "VALID UNTIL": Kind.TEXT,
    **dict.fromkeys(("IN ROLE", "ROLE", "ADMIN"), Kind.NAME),
}
DATABASE_OPTIONS = {
    **dict.fromkeys(("OWNER", "TEMPLATE", "TABLESPACE"), Kind.NAME),
    **dict.fromkeys(("ENCODING", "LOCALE", "LC_COLLATE", "LC_CTYPE", "BUILTIN_LOCALE", "ICU_LOCALE"), Kind.TEXT),
    **dict.fromkeys(("ICU_RULES", "COLLATION_VERSION"), Kind.TEXT),
    **dict.fromkeys(("STRATEGY", "LOCALE_PROVIDER"), Kind.WORD),
    **dict.fromkeys(("ALLOW_CONNECTIONS", "IS_TEMPLATE"), Kind.BOOLEAN),
    **dict.fromkeys(("CONNECTION LIMIT", "OID"), Kind.INTEGER),
}
_PATTERNS = {
    Kind.INTEGER: re.compile(r"\A-?[0-9]{1,10}\Z"),
    Kind.BOOLEAN: re.compile(r"\A(?:true|false|on|off|yes|no|1|0)\Z", re.IGNORECASE),
    Kind.WORD: re.compile(r"\A[A-Za-z_][A-Za-z0-9_]*\Z"),
    Kind.NAME: re.compile(r"\A[^\0]+\Z"),
    Kind.TEXT: re.compile(r"\A[^\0]*\Z"),
}


def canonical(name: str) -> str:
    """Return the name of an option in capitals, its words one blank apart."""
    return " ".join(name.upper().split())


def option_fault(option: GenericOption, allowed: dict[str, Kind]) -> str | None:
    """Say what is wrong with an option, or None; the text does not repeat its value."""
    name = canonical(option.name)
    kind = allowed.get(name)
    if kind is None:
        return f"option {option.name[:80]!r} is not known"
    if kind is Kind.NOTHING:
        return None if not option.value else f"option {name} takes no value"
    if option.value is None or _PATTERNS[kind].match(option.value) is None:
        return f"option {name} needs {kind.value}"
    if kind is Kind.NAME and len(option.value.encode()) > MAX_NAME_BYTES:
        return f"option {name} needs {kind.value} of 1 to {MAX_NAME_BYTES} bytes"
    return None
