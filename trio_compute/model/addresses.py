"""Hosts and ports as a spec writes them: `host:port`, or for safekeepers a URL (07 S-13, 11 C-01)."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from trio_compute.errors import SpecError

DEFAULT_PORT = 5432  # libpq's, which is what operators who write URLs expect

_HOST = re.compile(r"\A[^\s,/@?#\[\]]+\Z")
_PORT = re.compile(r"\A[0-9]{1,5}\Z")
_SCHEME = re.compile(r"\A(?:postgres|postgresql)://", re.IGNORECASE)


def split_host_port(entry: str, *, what: str) -> tuple[str, int]:
    """Split `host:port`, an IPv6 host in brackets; raise SpecError naming the entry (07 S-13)."""
    found = _split(entry)
    if found is None:
        raise SpecError(f"{what} {entry[:80]!r} is not host:port")
    return found


def host_port_text(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_url(entry: str) -> bool:
    """Tell whether an entry is a URL of Postgres, not just a host and a port."""
    return _SCHEME.match(entry) is not None


def safekeeper_address(entry: str) -> tuple[str, int]:
    """Return host and port of a safekeeper, given as `host:port` or as a URL; raise SpecError (11 C-01)."""
    scheme = _SCHEME.match(entry)
    if scheme is None:
        return split_host_port(entry, what="safekeeper_connstrings entry")
    authority = re.split("[/?#]", entry[scheme.end() :], maxsplit=1)[0].rpartition("@")[2]
    # Postgres gets the entries joined by commas, as they were written.
    found = None if re.search(r"[\s,]", entry) else _split(authority) or _split(f"{authority}:{DEFAULT_PORT}")
    if found is None:  # the entry is not repeated, since a password may stand in it
        raise SpecError("safekeeper_connstrings entry is a URL that names no single host and port")
    return found


def grpc_address(url: str) -> tuple[str, int]:
    """Return host and port of a `grpc://host:port` URL; raise SpecError, which quotes no user part."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise SpecError("grpc_url is malformed") from None
    # neon_local writes a user, which means nothing here; a password would be a misunderstanding.
    user, _, place = parts.netloc.rpartition("@")
    if parts.scheme != "grpc" or ":" in user or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise SpecError("grpc_url is not grpc://host:port")
    return split_host_port(place, what="grpc_url")


def _split(entry: str) -> tuple[str, int] | None:
    host, colon, port_text = entry.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    port = int(port_text) if _PORT.match(port_text) else 0
    if not colon or _HOST.match(bare) is None or (":" in bare and bare == host) or not 1 <= port <= 65535:
        return None
    return bare, port
