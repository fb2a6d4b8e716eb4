"""Answers of the HTTP API (contract 03 §4)."""

from __future__ import annotations

import datetime as dt
from typing import Any

from msgspec import UNSET, Struct, UnsetType


class PassageResponse(Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """Describe one change of status."""

    at: str
    source: str
    target: str
    event: str


class DatabaseFailureResponse(Struct, frozen=True):
    """Say what failed in one database while the catalog was applied."""

    database: str
    phase: str
    error: str


class StatusResponse(Struct, frozen=True, kw_only=True):
    """Answer `/status` and `/configure`: six keys are always present.

    The others are ours: which change of status this is (`since=` of a long poll), how it came to it, and, only when
    there is something to say, what is being done, what waits for a restart, why migrations or the last check of
    activity failed, and in which databases the last apply did not come through.
    """

    start_time: str
    tenant: str | None
    timeline: str | None
    status: str
    last_active: str | None
    error: str | None
    revision: int
    history: list[PassageResponse]
    phase: str | UnsetType = UNSET
    phase_since: str | UnsetType = UNSET
    restart_required: tuple[str, ...] | UnsetType = UNSET
    pending_restart: tuple[str, ...] | UnsetType = UNSET
    migration_error: str | UnsetType = UNSET
    activity_error: str | UnsetType = UNSET
    databases_failed: list[DatabaseFailureResponse] | UnsetType = UNSET


class HealthResponse(Struct, frozen=True):
    """Answer `/livez`, `/readyz` and `/startupz`."""

    status: str
    reason: str | UnsetType = UNSET


class TerminateResponse(Struct, frozen=True):
    """Answer `/terminate`: the LSN up to which a primary's WAL is safe, null for other modes."""

    lsn: str | None


class CatalogRole(Struct, frozen=True):
    """Describe one role; the password is what Postgres stores, null without one or with `--hide-password-hashes`."""

    name: str
    encrypted_password: str | None = None
    options: None = None


class CatalogDatabase(Struct, frozen=True):
    """Describe one database: whether it takes no connections, and whether its deletion was cut short."""

    name: str
    owner: str
    restrict_conn: bool
    invalid: bool
    options: None = None


class CatalogResponse(Struct, frozen=True):
    """Answer `/dbs_and_roles`: all roles and databases by name, those of the system included."""

    roles: list[CatalogRole]
    databases: list[CatalogDatabase]


class InsightsResponse(Struct, frozen=True):
    """Answer `/insights`: the slowest statements of users, with the columns of the view of that name."""

    pg_stat_statements: list[dict[str, Any]]


class ExtensionResponse(Struct, frozen=True):
    """Answer `/extensions`: the version that is installed now."""

    extension: str
    version: str


class GrantsResponse(Struct, frozen=True):
    """Answer `/grants`: what the role has now."""

    database: str
    schema: str
    privileges: list[str]
    role: str


class ErrorResponse(Struct, frozen=True):
    """Answer any request that failed; `failures` only if objects of the catalog are at fault (ours)."""

    error: str
    failures: list[dict[str, str | None]] | UnsetType = UNSET


class MetricsResponse(Struct, frozen=True, kw_only=True):
    """Answer `/metrics.json`: 13 counters, 0 until measured (contract 02 §4.2)."""

    wait_for_spec_ms: int = 0
    sync_sk_check_ms: int = 0
    sync_safekeepers_ms: int = 0
    pageserver_connect_micros: int = 0
    basebackup_bytes: int = 0
    basebackup_ms: int = 0
    start_postgres_ms: int = 0
    config_ms: int = 0
    total_startup_ms: int = 0
    load_ext_ms: int = 0
    num_ext_downloaded: int = 0
    largest_ext_size: int = 0
    total_ext_download_size: int = 0


def _rfc3339(moment: dt.datetime, suffix: str) -> str:
    moment = moment.astimezone(dt.UTC)
    fraction = moment.microsecond
    if fraction == 0:
        digits = ""
    elif fraction % 1000 == 0:
        digits = f".{fraction // 1000:03d}"
    else:
        digits = f".{fraction:06d}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}{digits}{suffix}"


def start_time_text(moment: dt.datetime) -> str:
    """Return RFC 3339 UTC with `Z`; the fraction has 0, 3 or 6 digits as needed."""
    return _rfc3339(moment, "Z")


def last_active_text(moment: dt.datetime) -> str:
    """Return RFC 3339 UTC with `+00:00`, as the original spells this one field."""
    return _rfc3339(moment, "+00:00")
