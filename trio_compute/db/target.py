"""Where to connect and as whom; without psycopg, so that a connection URL can be checked before that is loaded."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from trio_compute.errors import SpecError

NOWHERE = "/dev/null/none"  # a path that never exists: libpq warns on stderr about /dev/null itself


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

    def __post_init__(self) -> None:
        if not self.host or "," in self.host or not 0 < self.port < 65536:
            raise SpecError("Postgres must be at exactly one host and a port from 1 to 65535")
        if any("\0" in str(value) for value in dataclasses.astuple(self)):
            raise SpecError("a parameter of a Postgres connection contains a NUL character")

    @classmethod
    def parse(cls, url: str) -> Target:
        """Return the target of a `postgres://` URL; raise SpecError, whose text quotes none of the URL's values.

        Defaults: port 5432, user `postgres` (never the operating system's user), dbname as the user.
        `sslmode` and `gssencmode` may only allow what we do, a plain connection; `connect_timeout` has no effect.
        """
        if not url.lower().startswith(("postgres://", "postgresql://")):
            raise SpecError("not a postgres:// URL")
        try:
            given = _url_parameters(url)
            port = int(given.pop("port", "5432"))
        except ValueError:  # its text may quote the password
            raise SpecError("malformed postgres:// URL") from None
        for name in ("sslmode", "gssencmode"):
            if given.pop(name, "disable") not in ("disable", "allow", "prefer"):
                raise SpecError(f"Postgres URL demands encryption by {name}, which is not supported")
        given.pop("connect_timeout", None)
        if unknown := given.keys() - ({field.name for field in dataclasses.fields(cls)} - {"encoding"}):
            # A password with a bare `?` in it is read as parameters too: then do not repeat them.
            names = "" if "@" in url.partition("?")[2] else f": {', '.join(sorted(unknown))}"
            raise SpecError(f"Postgres URL has an unknown parameter{names}")
        user = given.pop("user", "") or "postgres"
        return cls(given.pop("host", ""), port, user, given.pop("dbname", "") or user, **given)

    def replace(self, **changes: Any) -> Target:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def conninfo(self) -> dict[str, str]:
        """Return libpq's parameters, password included, with every one that files or variables could set."""
        fields = {name: str(value) for name, value in dataclasses.asdict(self).items()}
        encoding = fields.pop("encoding")
        fixed = {"client_encoding": encoding, "sslmode": "disable", "gssencmode": "disable", "passfile": NOWHERE}
        return fields | fixed


def stated_port(url: str) -> int | None:
    """Return the port that a URL names itself, None if it names none or is malformed."""
    try:
        port = _url_parameters(url).get("port")
        return None if port is None else int(port)
    except ValueError:
        return None


def _url_parameters(url: str) -> dict[str, str]:
    """Return what a URL says under libpq's names, decoded; the query wins. Raise ValueError if it is malformed."""
    parts = urlsplit(url, allow_fragments=False)
    if "@" in parts.path or parts.path[:1] not in ("", "/"):
        raise ValueError("what looks like a database name may be the end of a password")
    located = {"host": parts.hostname, "port": parts.port, "user": parts.username, "password": parts.password}
    located["dbname"] = parts.path[1:]
    named = {name: unquote(str(value), errors="strict") for name, value in located.items() if value is not None}
    if query := parts.query.replace("+", "%2B"):  # in these URLs a plus sign is no blank
        named |= parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    return named
