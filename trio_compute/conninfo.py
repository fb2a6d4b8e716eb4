"""Read connection strings as libpq does, URLs and keywords, without libpq: it costs a start too much to ask it.

The texts of errors quote no value, and no name that may be the rest of a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn

from trio_compute.errors import SpecError

PARAMETERS = frozenset(
    (
        *("service", "servicefile", "user", "password", "passfile", "channel_binding", "connect_timeout", "dbname"),
        *("host", "hostaddr", "port", "client_encoding", "options", "application_name", "fallback_application_name"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout", "sslmode"),
        *("sslnegotiation", "sslcompression", "sslcert", "sslkey", "sslcertmode", "sslpassword", "sslrootcert"),
        *("sslcrl", "sslcrldir", "sslsni", "sslkeylogfile", "requirepeer", "require_auth", "min_protocol_version"),
        *("max_protocol_version", "ssl_min_protocol_version", "ssl_max_protocol_version", "gssencmode", "krbsrvname"),
        *("gsslib", "gssdelegation", "replication", "target_session_attrs", "load_balance_hosts"),
        *("scram_client_key", "scram_server_key"),
        *("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
    )
)
# What only the driver of the original knows besides.
OF_RUST = frozenset({"keepalives_retries", "max_backend_message_size"})

# What can be asked for, first what we do; libpq fails for any other value.
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "channel_binding": ("disable", "prefer"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
}
_ENCRYPTING = {
    "sslmode": ("require", "verify-ca", "verify-full"),
    "gssencmode": ("require",),
    "channel_binding": ("require",),
}
_NUMBERS = (
    *("port", "connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("keepalives_retries", "tcp_user_timeout"),
)
_NUMBER = re.compile(r"\A\s*[+-]?[0-9]{1,9}\s*\Z", re.ASCII)
_SCHEME = re.compile(r"\Apostgres(?:ql)?://", re.IGNORECASE)  # libpq insists on small letters, the original does not
_SPACE = " \t\n\v\f\r"
_WORD = re.compile(rf"[^={_SPACE}]*")
_PLAIN_NAME = re.compile(r"\A[A-Za-z_]{1,40}\Z")
_BRACKETED = re.compile(r"\[(?P<host>[^\]]+)\](?=[:/?,]|\Z)")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
_PASSWORD_IN_URL = re.compile(r"://[^@/:]*:([^@]*)@")


def read_conninfo(text: str, *, as_rust: bool = False) -> dict[str, str]:
    """Return what a connection string says under libpq's names, of repetitions the last; raise SpecError.

    With `as_rust` what the driver of the original takes besides is taken too, such as a bare `=` in a value of a URL.
    """
    known = PARAMETERS | OF_RUST if as_rust else PARAMETERS
    if "\0" in text:
        raise SpecError("malformed connection string: it contains a NUL character")
    scheme = _SCHEME.match(text)
    pairs = _keyword_pairs(text) if scheme is None else _url_pairs(text[scheme.end() :], as_rust)
    said: dict[str, str] = {}
    for name, value in pairs:
        if name == "requiressl":  # as libpq has it since it knows `sslmode`
            said["sslmode"] = "require" if value.startswith("1") else "prefer"
        elif name in known:
            said[name] = value
        else:
            _refuse_name(name, text, known)
    return said


def check_values(said: dict[str, str]) -> None:
    """Raise SpecError if a connection can never be made with such values: one plain connection to one host."""
    host, port = said.get("hostaddr") or said.get("host", ""), said.get("port") or "5432"
    if not host or "," in host + port:
        raise SpecError("Postgres must be at exactly one host and a port from 1 to 65535")
    for name in _NUMBERS:
        if said.get(name) and _NUMBER.match(said[name]) is None:
            raise SpecError(f"malformed connection string: {name} is not a number")
    if not 0 < int(port) < 65536:
        raise SpecError("malformed connection string: Postgres must be at a port from 1 to 65535")
    if "hostaddr" in said and not _is_address(said["hostaddr"]):
        raise SpecError("malformed connection string: hostaddr is not an IP address")
    for name, choices in _CHOICES.items():
        value = said.get(name) or choices[0]
        if value in _ENCRYPTING.get(name, ()):
            raise SpecError(f"the connection string demands encryption by {name}, which is not supported")
        if value not in choices:
            raise SpecError(f"malformed connection string: {name} is none of {', '.join(choices)}")
    if said.get("service"):
        raise SpecError("the connection string names a service, whose file is not read: name host and port instead")


def _is_address(text: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return not text
    return True


def is_url(text: str) -> bool:
    """Tell whether a connection string is a URL."""
    return _SCHEME.match(text) is not None


def passwords(text: str) -> tuple[str, ...]:
    """Return the password of a connection string, as it is and as it is written; of a malformed one what may be it."""
    found = _PASSWORD_IN_URL.findall(text)
    try:
        said = read_conninfo(text, as_rust=True)
    except SpecError:
        return tuple(found)
    return tuple(value for value in (*found, said.get("password"), said.get("sslpassword")) if value)


def _refuse_name(name: str, text: str, known: frozenset[str]) -> NoReturn:
    import difflib

    close = difflib.get_close_matches(name[:64].lower(), known, n=1, cutoff=0.75)
    hint = f" (did you mean {close[0]}?)" if close else ""
    # A bare `?`, `&` or blank in a password makes names of its parts.
    is_safe = _PLAIN_NAME.match(name) is not None and "password" not in text and "@" not in text.partition("?")[2]
    shown = f": {name}" if is_safe else ""
    raise SpecError(f"the connection string has an unknown parameter{shown}{hint}")


def _keyword_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and values as `conninfo_parse` of libpq finds them."""
    at = _skip(text, 0)
    while at < len(text):
        word = _WORD.match(text, at)
        assert word is not None
        at = _skip(text, word.end())
        if text[at : at + 1] != "=":
            what = "neither a postgres:// URL nor keyword=value" if "=" not in text else "a keyword has no value"
            raise SpecError(f"malformed connection string: {what}")
        value, at = _keyword_value(text, _skip(text, at + 1))
        yield word[0], value
        at = _skip(text, at)


def _keyword_value(text: str, at: int) -> tuple[str, int]:
    """Return a value, quoted or not, and where it ends; a backslash makes an ordinary character of what follows."""
    is_quoted = text[at : at + 1] == "'"
    ends = "'" if is_quoted else _SPACE
    value, at = [], at + is_quoted
    while at < len(text) and text[at] not in ends:
        at += text[at] == "\\"
        value.append(text[at : at + 1])
        at += 1
    if is_quoted and at >= len(text):
        raise SpecError("malformed connection string: a quote is still open")
    return "".join(value), at + is_quoted


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _url_pairs(rest: str, as_rust: bool) -> Iterator[tuple[str, str]]:
    """Yield names and values as `conninfo_uri_parse_options` of libpq finds them, from what follows the scheme."""
    before_path = rest.partition("/")[0]
    if "@" in before_path:  # the first one ends the user, even behind a question mark
        credentials, _, rest = rest.partition("@")
        user, _, password = credentials.partition(":")
        yield from ((name, _decoded(part)) for name, part in (("user", user), ("password", password)) if part)
    hosts, ports, rest = _places(rest)
    yield from ((name, _decoded(part)) for name, part in (("host", hosts), ("port", ports)) if part)
    path, mark, query = rest.partition("?")
    if path[1:]:
        yield "dbname", _decoded(path[1:])
    if mark:
        yield from _query_pairs(query, as_rust)


def _places(rest: str) -> tuple[str, str, str]:
    """Return hosts and ports, each joined by commas, and what follows them."""
    hosts, ports = [], []
    while True:
        if rest.startswith("["):
            bracketed = _BRACKETED.match(rest)
            if bracketed is None:
                raise SpecError("malformed postgres:// URL: brackets enclose an IPv6 address, and nothing else")
            host, rest = bracketed["host"], rest[bracketed.end() :]
        else:
            host, rest = _cut(rest, ":/?,")
        port = ""
        if rest.startswith(":"):
            port, rest = _cut(rest[1:], "/?,")
        hosts.append(host)
        ports.append(port)
        if not rest.startswith(","):
            return ",".join(hosts), ",".join(ports), rest
        rest = rest[1:]


def _cut(text: str, ends: str) -> tuple[str, str]:
    at = next((number for number, character in enumerate(text) if character in ends), len(text))
    return text[:at], text[at:]


def _query_pairs(query: str, as_rust: bool) -> Iterator[tuple[str, str]]:
    parts = query.split("&")
    if not parts[-1]:
        del parts[-1]
    for part in parts:
        if part.count("=") != 1 and not (as_rust and "=" in part):
            raise SpecError("malformed postgres:// URL: a parameter is not name=value")
        name, _, value = part.partition("=")
        name, value = _decoded(name), _decoded(value)
        yield ("sslmode", "require") if (name, value) == ("ssl", "true") else (name, value)


def _decoded(part: str) -> str:
    """Undo %XX; blanks around are dropped and inside refused, as libpq does since version 17."""
    part = part.strip(" ")
    if " " in part:
        raise SpecError("malformed postgres:// URL: write a blank as %20")

    def character(escape: re.Match[bytes]) -> bytes:
        if escape[1] in {None, b"00"}:
            what = "a % is not followed by two hex digits" if escape[1] is None else "it contains a NUL character"
            raise SpecError(f"malformed postgres:// URL: {what}")
        return bytes.fromhex(escape[1].decode())

    try:
        return _ESCAPE.sub(character, part.encode()).decode()
    except UnicodeError:
        raise SpecError("malformed postgres:// URL: it is not UTF-8") from None
