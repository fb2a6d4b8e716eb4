"""Small specs for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trio_compute.model.decode import decode, encode
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.model.spec import ComputeConfig, ComputeSpec
from trio_compute.settings import Settings

TENANT = "c843bad4370fbb618bae6ba8a9eeb18a"
TIMELINE = "9196e04c00f6ca163c9ce5bac0c9c1b7"


def spec_dict(**changes: Any) -> dict[str, Any]:
    return {
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": {"roles": [], "databases": []},
        "tenant_id": TENANT,
        "timeline_id": TIMELINE,
        "pageserver_connstring": "postgresql://no_user@127.0.0.1:6400",
        "safekeeper_connstrings": ["127.0.0.1:5454", "127.0.0.1:5455", "127.0.0.1:5456"],
        "skip_pg_catalog_updates": False,
        **changes,
    }


def spec(**changes: Any) -> ComputeSpec:
    return decode(encode(spec_dict(**changes)), ComputeSpec)


def parsed(**changes: Any) -> ParsedSpec:
    return parse_spec(spec(**changes))


def config(spec: dict[str, Any] | None = None, **changes: Any) -> ComputeConfig:
    document = {"spec": spec, "compute_ctl_config": {"jwks": {"keys": []}}, **changes}
    return decode(encode(document), ComputeConfig)


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "compute_id": "test-compute",
        "pgdata": Path("/nonexistent/pgdata"),
        "connstr": "postgresql://cloud_admin@127.0.0.1:5432/postgres",
        "config_path": Path("/nonexistent/config.json"),
    }
    return Settings(**{**values, **changes})
