"""Examples for the description of the API, by type; a test holds them against the schemas."""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, Any] = {
    "ConfigureRequest": {
        "spec": {
            "format_version": 1.0,
            "operation_uuid": "0f657b36-4b0f-4a2d-9c2e-1dcd615e7d8b",
            "suspend_timeout_seconds": -1,
            "cluster": {"cluster_id": "quiet-meadow-51", "name": "neondb", "roles": [], "databases": []},
            "tenant_id": "3bb1a0bbb5b0cdc2d4e75c8a5b1e5d8f",
            "timeline_id": "e4f8a9a7cfb1d1a0b2c3d4e5f6a7b8c9",
            "pageserver_connstring": "postgresql://no_user@127.0.0.1:6400",
            "safekeeper_connstrings": ["127.0.0.1:5454", "127.0.0.1:5455", "127.0.0.1:5456"],
        },
        "compute_ctl_config": {"jwks": {"keys": []}},
    },
    "StatusResponse": {
        "start_time": "2026-03-04T05:06:07Z",
        "tenant": "3bb1a0bbb5b0cdc2d4e75c8a5b1e5d8f",
        "timeline": "e4f8a9a7cfb1d1a0b2c3d4e5f6a7b8c9",
        "status": "running",
        "last_active": "2026-03-04T05:09:00+00:00",
        "error": None,
        "revision": 2,
        "history": [
            {"at": "2026-03-04T05:06:08Z", "from": "empty", "to": "init", "event": "SpecKnown"},
            {"at": "2026-03-04T05:06:09Z", "from": "init", "to": "running", "event": "Started"},
        ],
    },
    "TerminateResponse": {"lsn": "0/169AD58"},
    "ErrorResponse": {"error": "invalid compute status: init"},
    "HealthResponse": {"status": "unavailable", "reason": "compute is init"},
    "ExtensionRequest": {"extension": "pg_session_jwt", "database": "neondb", "version": "0.3.1"},
    "GrantsRequest": {"database": "neondb", "schema": "auth", "privileges": ["USAGE"], "role": "authenticated"},
    "FailpointRequest": {"name": "compute-prewarm", "actions": "off"},
}

# For the lines of curl: bodies that are too long for one, queries, what follows a prefix.
BODY_FILES = {"/configure": "config.json", "/promote": "promote.json"}
QUERIES = {
    ("GET", "/status"): "wait_for=running&timeout=60s",
    ("GET", "/database_schema"): "database=neondb",
    ("POST", "/terminate"): "mode=immediate",
}
PATHS = {"/extension_server/": "postgis"}
