"""Small wanted things for unit tests: spec documents, parsed specs, settings."""

from __future__ import annotations

import copy
import datetime as dt
import json
from pathlib import Path
from typing import Any

from trio_compute.model.decode import decode
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.model.spec import ComputeSpec
from trio_compute.settings import Settings

TENANT = "c843bad4370fbb618bae6ba8a9eeb18a"
TIMELINE = "9196e04c00f6ca163c9ce5bac0c9c1b7"
PAGESERVER = "postgresql://no_user@ps-1:6400"
NOON = dt.datetime(2026, 1, 15, 12, tzinfo=dt.UTC)
DATA = Path(__file__).parent.parent / "data"

MINIMAL: dict[str, Any] = {
    "format_version": 1.0,
    "suspend_timeout_seconds": -1,
    "cluster": {"roles": [], "databases": []},
    "tenant_id": TENANT,
    "timeline_id": TIMELINE,
    "pageserver_connstring": PAGESERVER,
    "safekeeper_connstrings": ["sk-1:5454"],
}


def document(*missing: str, **changes: Any) -> dict[str, Any]:
    """Return a spec document: the minimal one without some keys and with others changed."""
    value = copy.deepcopy(MINIMAL) | changes
    for key in missing:
        del value[key]
    return value


def setting(name: str, value: str | None, vartype: str = "string") -> dict[str, Any]:
    return {"name": name, "value": value, "vartype": vartype}


def cluster(*settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"roles": [], "databases": [], "settings": list(settings), **changes}


def wire_spec(*missing: str, **changes: Any) -> ComputeSpec:
    return decode(json.dumps(document(*missing, **changes)).encode(), ComputeSpec)


def parsed_spec(*missing: str, **changes: Any) -> ParsedSpec:
    return parse_spec(wire_spec(*missing, **changes))


def make_settings(**changes: Any) -> Settings:
    required: dict[str, Any] = {
        "compute_id": "compute-1",
        "pgdata": Path("/nowhere/pgdata"),
        "connstr": "postgresql://cloud_admin@127.0.0.1:5432/postgres",
    }
    return Settings(**(required | changes))
