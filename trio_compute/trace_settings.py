"""How traces are exported: the standard variables `OTEL_*` (contract 01 §2, 10 §8); `settings.py` hands them in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from msgspec import Struct

DEFAULT_ENDPOINT = "http://localhost:4318"
PATH = "/v1/traces"
SERVICE_NAME = "compute_ctl"
TIMEOUT_SECONDS = 10.0

_PREFIX = "OTEL_EXPORTER_OTLP_"
# Compiled when first needed: no start waits for it.
_MILLISECONDS = r"\A[0-9]{1,9}\Z"
_HEADER_NAME = r"\A[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z"
_HEADER_VALUE = r"\A[\x20-\x7e]*\Z"
_NAMES_OF_SECRETS = r"(?i)auth|token|key|secret|password|cookie|credential"
_UNSUPPORTED = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")


class TraceSettings(Struct, frozen=True, kw_only=True):
    """Hold where spans go and how; `warnings` tell which variables were not usable, never their values."""

    url: str = DEFAULT_ENDPOINT + PATH
    headers: tuple[tuple[str, str], ...] = ()
    timeout_seconds: float = TIMEOUT_SECONDS
    gzip: bool = False
    service_name: str = SERVICE_NAME
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"TraceSettings(service_name={self.service_name!r})"

    def secrets(self) -> tuple[str, ...]:
        """Return what must never be printed: values of headers that carry credentials, the password of the URL."""
        values = [value for name, value in self.headers if re.search(_NAMES_OF_SECRETS, name)]
        words = [value.rpartition(" ")[2] for value in values]
        password = urlsplit(self.url).password or ""
        return (*values, *words, password, unquote(password))


def trace_settings(environ: Mapping[str, str]) -> TraceSettings:
    """Return what the variables say; one that is not usable counts as unset and leaves a warning."""
    warnings: list[str] = []
    return TraceSettings(
        url=_url(environ, warnings),
        headers=_headers(environ, warnings),
        timeout_seconds=_timeout(environ, warnings),
        gzip=_gzip(environ, warnings),
        service_name=environ.get("OTEL_SERVICE_NAME") or SERVICE_NAME,
        warnings=(*warnings, *_left_out(environ)),
    )


def _set(environ: Mapping[str, str], what: str) -> list[tuple[str, str]]:
    """Return the variables for traces alone and for everything that are not empty, the one that counts first."""
    names = (f"{_PREFIX}TRACES_{what}", f"{_PREFIX}{what}")
    return [(name, value.strip()) for name in names if (value := environ.get(name, "")).strip()]


def _url(environ: Mapping[str, str], warnings: list[str]) -> str:
    for name, value in _set(environ, "ENDPOINT"):
        if _is_url(value):
            # Only the general one is a base (OTLP exporter specification).
            parts = urlsplit(value)
            general = not name.startswith(f"{_PREFIX}TRACES_")
            path = parts.path.rstrip("/") + PATH if general else parts.path or "/"
            return parts._replace(path=path, fragment="").geturl()
        warnings.append(f"{name} is not an http or https URL")
    return DEFAULT_ENDPOINT + PATH


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    return plain and parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0


def _headers(environ: Mapping[str, str], warnings: list[str]) -> tuple[tuple[str, str], ...]:
    for name, text in _set(environ, "HEADERS"):
        headers, usable = [], True
        for part in filter(None, map(str.strip, text.split(","))):
            key, equals, value = part.partition("=")
            header = (key.strip().lower(), unquote(value.strip()).strip())
            usable &= bool(equals and re.match(_HEADER_NAME, header[0]) and re.match(_HEADER_VALUE, header[1]))
            headers.append(header)
        if usable:
            return tuple(headers)
        warnings.append(f"{name} is not a list of key=value pairs, separated by commas")
    return ()


def _timeout(environ: Mapping[str, str], warnings: list[str]) -> float:
    for name, text in _set(environ, "TIMEOUT"):
        if re.match(_MILLISECONDS, text) and int(text) > 0:
            return int(text) / 1000
        warnings.append(f"{name} is not a positive number of milliseconds")
    return TIMEOUT_SECONDS


def _gzip(environ: Mapping[str, str], warnings: list[str]) -> bool:
    for name, text in _set(environ, "COMPRESSION"):
        if text in {"gzip", "none"}:
            return text == "gzip"
        warnings.append(f"{name} is neither gzip nor none")
    return False


def _left_out(environ: Mapping[str, str]) -> list[str]:
    protocols = [name for name, text in _set(environ, "PROTOCOL") if text != "http/protobuf"]
    unsupported = [name for what in _UNSUPPORTED for name, _ in _set(environ, what)]
    return [
        *(f"{name} asks for what is not supported; traces go out as http/protobuf" for name in protocols),
        *(f"{name} is not supported" for name in unsupported),
    ]
