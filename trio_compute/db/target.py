"""Where to connect and as whom; without psycopg, so that a connection string can be checked before that is loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

from trio_compute.conninfo import check_values, is_url, read_conninfo
from trio_compute.errors import SpecError

NOWHERE = "/dev/null/none"  # a path that never exists: libpq warns on stderr about /dev/null itself
# What is passed on to libpq, under its own names.
_TUNING = {
    name: "keepalives_count" if name == "keepalives_retries" else name
    for name in (
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "keepalives_retries"),
        *("tcp_user_timeout", "passfile", "require_auth", "requirepeer"),
    )
}


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Say where to connect and as whom; `host` is a name, an address or the directory of a unix socket."""

    host: str
    port: int = 5432
    user: str = "postgres"
    dbname: str = "postgres"
    password: str = dataclasses.field(default="", repr=False)
    options: str = ""
    application_name: str = ""
    encoding: str = "UTF8"
    tuning: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.host or "," in self.host or not 0 < self.port < 65536:
            raise SpecError("Postgres must be at exactly one host and a port from 1 to 65535")
        if any("\0" in value for value in self.conninfo().values()):
            raise SpecError("a parameter of a Postgres connection contains a NUL character")

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target of a connection string, URL or keywords; raise SpecError, which quotes none of its values.

        Defaults: port 5432, user `postgres` (never the operating system's user), dbname as the user.
        What demands more than a plain connection to one host is refused; what only tunes TLS or a choice among hosts
        has no effect.
        """
        said = read_conninfo(text, as_rust=True)
        if is_url(text) and "@" in text.partition("://")[2].partition("/")[2].partition("?")[0]:
            raise SpecError("malformed postgres:// URL: what looks like a database name may be the end of a password")
        check_values(said)
        user = said.get("user") or "postgres"
        return cls(
            host=said.get("hostaddr") or said.get("host", ""),
            port=int(said.get("port") or "5432"),
            user=user,
            dbname=said.get("dbname") or user,
            password=said.get("password", ""),
            options=said.get("options", ""),
            application_name=said.get("application_name") or said.get("fallback_application_name", ""),
            tuning=tuple((_TUNING[name], value) for name, value in sorted(said.items()) if name in _TUNING and value),
        )

    def replace(self, **changes: Any) -> Target:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def conninfo(self) -> dict[str, str]:
        """Return libpq's parameters, password included, with every one that files or variables could set."""
        fields = {name: str(value) for name, value in dataclasses.asdict(self).items() if name != "tuning"}
        encoding = fields.pop("encoding")
        fixed = {"client_encoding": encoding, "sslmode": "disable", "gssencmode": "disable", "passfile": NOWHERE}
        return fields | fixed | dict(self.tuning)


def stated_port(text: str) -> int | None:
    """Return the port that a connection string names itself, None if it names none or is malformed."""
    try:
        return int(read_conninfo(text, as_rust=True)["port"])
    except (SpecError, KeyError, ValueError):
        return None
