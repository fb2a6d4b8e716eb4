"""How many databases to work on at the same time (contract 05 §9)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trio_compute.model.spec import ComputeSpec, GenericOption

DEFAULT_CONNECTIONS = 10
_UNSIGNED = re.compile(r"\A[0-9]{1,9}\Z")


def workers_at_start(spec: ComputeSpec) -> int:
    """Return the number for a start: a share of max_connections, at least 1 (K-09).

    The maintenance session is one of them (K-10).
    """
    text = _setting(spec.cluster.settings, "max_connections")
    if text is None:
        text = _first_line(spec.cluster.postgresql_conf or "", "max_connections")
    return max(1, _share(_number(text)) - 1)


def workers_when_running(spec: ComputeSpec) -> int:
    """Return the number for a reconfiguration: what the spec says, within the reserved connections (K-10)."""
    reserved = _number(_setting(spec.cluster.settings, "superuser_reserved_connections"))
    bound = 3 if reserved is None else max(1, reserved - 1)
    return max(1, min(spec.reconfigure_concurrency, bound))


def _share(connections: int | None) -> int:
    if connections is None:
        return DEFAULT_CONNECTIONS
    if connections < 10:
        return connections
    if connections < 30:
        return 10
    return min(connections // 3, 100)


def _setting(settings: Sequence[GenericOption] | None, name: str) -> str | None:
    return next((option.value for option in settings or () if option.name == name), None)


def _first_line(text: str, name: str) -> str | None:
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator and key.strip() == name and _UNSIGNED.match(value.strip()):
            return value.strip()
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and _UNSIGNED.match(text.strip()) else None
