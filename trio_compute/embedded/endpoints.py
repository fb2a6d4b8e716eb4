"""The computes of an embedded world, and the specs that make them primary, replica or static."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import trio
from msgspec import Struct

from trio_compute.db.connection import open_connection
from trio_compute.db.target import Target
from trio_compute.embedded.receiver import APPLICATION_NAME
from trio_compute.embedded.wal import LONG_PAGE_HEADER_BYTES, PAGE_BYTES
from trio_compute.model.ids import UNSHARDED, Lsn
from trio_compute.plan.conf_syntax import quote

MOMENT_POLL_SECONDS = 0.02
STRIPE_PAGES = 2048


class Addresses(Struct, frozen=True):
    """Say where the embedded services listen; `pageservers` are URLs by shard index, for `protocol`."""

    pageservers: dict[str, str]
    protocol: str
    safekeepers: list[str]
    control_plane: str
    endpoint_storage: str

    @property
    def pageserver(self) -> str:
        """Return the URL of shard zero's pageserver, which has the basebackups."""
        return next(iter(self.pageservers.values()))

    def connection_info(self) -> dict[str, Any]:
        """Return the spec's `pageserver_connection_info` (contract 01 §6)."""
        shards = {index: {"pageservers": [{f"{self.protocol}_url": url}]} for index, url in self.pageservers.items()}
        count = 0 if UNSHARDED in shards else len(shards)
        stripe_size = STRIPE_PAGES if count else None
        return {
            "shard_count": count,
            "stripe_size": stripe_size,
            "shards": shards,
            "prefer_protocol": self.protocol,
        }


class Endpoint(Struct, frozen=True):
    """Hold what tells one compute of a world from another; `mode` is as in the spec."""

    name: str
    compute_id: str
    endpoint_id: str
    directory: Path
    mode: str | dict[str, str] = "Primary"

    @property
    def pgdata(self) -> Path:
        """Return the data directory."""
        return self.directory / "pgdata"

    @property
    def config_path(self) -> Path:
        """Return where config.json is."""
        return self.directory / "config.json"

    @property
    def log_path(self) -> Path:
        """Return where the log goes."""
        return self.directory / "compute.log"

    @property
    def is_primary(self) -> bool:
        """Tell whether this compute may write."""
        return self.mode == "Primary"

    @property
    def pinned_lsn(self) -> Lsn | None:
        """Return the LSN of a static compute."""
        return Lsn.parse(self.mode["Static"]) if isinstance(self.mode, dict) else None


async def reach_moment(url: str, lsn: Lsn) -> None:
    """Wait until a static compute has replayed what precedes its LSN; it answers queries before.

    It then pauses, or has come to the end of the WAL; that end may be a page's, before the header of the next.
    """
    header = lsn % PAGE_BYTES
    end = lsn - header if header <= LONG_PAGE_HEADER_BYTES else lsn
    reached = f"SELECT pg_is_wal_replay_paused() OR coalesce(pg_last_wal_replay_lsn() >= '{Lsn(end)}', false)"
    async with open_connection(Target.parse(url)) as connection:
        # Postgres before 18 offers nothing to wait for.
        while await (await connection.execute(reached.encode())).fetchone() != (True,):  # noqa: ASYNC110
            await trio.sleep(MOMENT_POLL_SECONDS)


def static_mode(lsn: Lsn) -> dict[str, str]:
    """Return the mode of a compute that shows one moment for ever."""
    return {"Static": str(lsn)}


def mode_settings(mode: str | dict[str, str], wal: Path, primary_conninfo: str | None) -> dict[str, str]:
    """Return what postgresql.conf needs beyond what a compute writes itself, so that vanilla Postgres follows the mode.

    Neon's Postgres reads pages and WAL from the storage; a vanilla standby restores WAL from the store of the embedded
    safekeepers. It stops before the first record at or after its LSN: what Neon calls the state at that LSN.
    """
    if mode == "Primary":
        return {}
    settings = {"restore_command": quote(_restore_command(wal)), "wal_retrieve_retry_interval": "100ms"}
    if primary_conninfo is not None:
        settings["primary_conninfo"] = quote(primary_conninfo)
    if mode != "Replica":
        settings["recovery_target_inclusive"] = "off"
    return settings


def durable_settings() -> list[dict[str, str]]:
    """Return the managed settings that make a commit wait for the safekeepers (contract 01 §10)."""
    return [{"name": "synchronous_standby_names", "value": APPLICATION_NAME, "vartype": "string"}]


def primary_conninfo(port: int, user: str, name: str) -> str:
    """Return how a replica reaches its primary."""
    return f"host=127.0.0.1 port={port} user={user} application_name={name} sslmode=disable gssencmode=disable"


def _restore_command(wal: Path) -> str:
    # Postgres replaces %f and %p; a percent sign of the path itself must be doubled.
    source = f"{shlex.quote(str(wal).replace('%', '%%'))}/%f"
    return f'test -f {source} && cp {source} "%p"'


def spec_of(
    endpoint: Endpoint,
    *,
    tenant_id: str,
    timeline_id: str,
    addresses: Addresses,
    token: str,
    object_token: str,
    settings: dict[str, str],
    durable: bool,
) -> dict[str, Any]:
    """Return the spec of a compute."""
    return {
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": {
            "cluster_id": "dev",
            "name": "dev",
            "roles": [{"name": "test", "encrypted_password": None, "options": None}],
            "databases": [{"name": "neondb", "owner": "test", "options": None}],
            "postgresql_conf": "".join(f"{name}={value}\n" for name, value in settings.items()),
            "settings": durable_settings() if durable else None,
        },
        "tenant_id": tenant_id,
        "timeline_id": timeline_id,
        "endpoint_id": endpoint.endpoint_id,
        "pageserver_connection_info": addresses.connection_info(),
        "safekeeper_connstrings": addresses.safekeepers,
        "storage_auth_token": token,
        "endpoint_storage_addr": addresses.endpoint_storage,
        "endpoint_storage_token": object_token,
        "mode": endpoint.mode,
    }
