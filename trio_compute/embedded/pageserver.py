"""An embedded pageserver: basebackups and leases over libpq in Neon's grammar, with faults on demand (07 §4, §8)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

import trio
from msgspec import Struct

from trio_compute.embedded.snapshots import Snapshots
from trio_compute.embedded.wire import COPY_SLICE_BYTES, Session, WireError
from trio_compute.errors import StorageError
from trio_compute.model.ids import UNSHARDED, Lsn, is_hex_id

FLAGS = frozenset({"--gzip", "--replica"})
SHARD = re.compile(r"[0-9a-fA-F]{4}")


class BasebackupCommand(Struct, frozen=True):
    """Hold a parsed basebackup command."""

    tenant: str
    timeline: str
    lsn: Lsn | None
    gzip: bool
    replica: bool


class Faults(Struct):
    """Hold what shall go wrong; tests change it between requests."""

    fail_connections: int = 0
    fail_commands: int = 0
    error_text: str = "stand-in fault"
    delay_before_copy_seconds: float = 0.0
    stall_at_byte: int | None = None
    error_at_byte: int | None = None
    cut_at_byte: int | None = None
    corrupt_at_byte: int | None = None
    error_before_copy_done: bool = False
    error_after_copy_done: bool = False
    lease_seconds: float = 600.0
    lease_refused: bool = False
    lease_error: bool = False
    lease_delay_seconds: float = 0.0


def has_basebackups(shard: str) -> bool:
    """Tell whether a shard is number zero, which alone has all that is not relation data (contract 07 §4)."""
    return shard.startswith("00")


def parse_basebackup(query: str) -> BasebackupCommand:
    """Return the command; raise WireError as a pageserver would (contract 07 §4.2)."""
    words = query.split()
    if len(words) < 3:
        raise WireError(f"cannot parse query: {query[:100]}")
    _, tenant, timeline, *rest = words
    if not (is_hex_id(tenant) and is_hex_id(timeline)):
        raise WireError("invalid tenant or timeline id")
    lsn = None
    if rest and not rest[0].startswith("--"):
        text = rest.pop(0)
        try:
            lsn = None if text == "latest" else Lsn.parse(text)
        except ValueError as error:
            raise WireError(str(error)) from None
    if len(set(rest)) != len(rest) or not FLAGS.issuperset(rest):
        raise WireError(f"invalid flags: {' '.join(rest)[:100]}")
    return BasebackupCommand(tenant, timeline, lsn, "--gzip" in rest, "--replica" in rest)


class LeaseCommand(Struct, frozen=True):
    """Hold a parsed lease command; `tenant_shard` is the tenant's id with the shard's index, if it has one."""

    tenant_shard: str
    timeline: str
    lsn: Lsn


def parse_lease(query: str) -> LeaseCommand:
    """Return the command; raise WireError (contract 07 §8)."""
    words = query.split()
    if len(words) != 5 or words[1].lower() != "lsn":
        raise WireError(f"cannot parse query: {query[:100]}")
    tenant, _, shard = words[2].partition("-")
    if not (is_hex_id(tenant) and is_hex_id(words[3])) or (shard and SHARD.fullmatch(shard) is None):
        raise WireError("invalid tenant shard or timeline id")
    try:
        return LeaseCommand(words[2].lower(), words[3].lower(), Lsn.parse(words[4]))
    except ValueError as error:
        raise WireError(str(error)) from None


class Leases:
    """Remember until when which LSNs are leased; a longer lease is kept, an LSN that is gone gets none."""

    def __init__(self) -> None:
        self._expiries: dict[tuple[str, str, Lsn], float] = {}

    def held(self) -> set[tuple[str, str, Lsn]]:
        """Return which tenant shards, timelines and LSNs are leased."""
        return {key for key, expiry in self._expiries.items() if expiry > time.time()}

    def grant(self, snapshots: Snapshots, key: tuple[str, str, Lsn], seconds: float) -> float | None:
        """Return until when an LSN is leased, in Unix seconds, or None if it cannot be."""
        oldest = min(snapshots.lsns(), default=None)
        if oldest is None or key[2] < oldest:
            return None
        self._expiries[key] = max(self._expiries.get(key, 0.0), time.time() + seconds)
        return self._expiries[key]


class Pageserver:
    """Serve the snapshots of some timelines."""

    def __init__(self, timelines: Mapping[tuple[str, str], Snapshots]) -> None:
        self._timelines = timelines
        self.leases = Leases()
        self.faults = Faults()
        self.commands: list[str] = []

    def refuses_connection(self) -> bool:
        """Tell whether a connection that has just come shall be dropped."""
        refuses = self.faults.fail_connections > 0
        self.faults.fail_connections -= refuses
        return refuses

    async def handle(self, session: Session, query: str, *, shard: str | None = None) -> None:
        """Answer one query as the pageserver of one shard, such as `0102`, or as one that has them all."""
        self.commands.append(query)
        if self.faults.fail_commands > 0:
            self.faults.fail_commands -= 1
            raise WireError(self.faults.error_text)
        word = (query.split() or [""])[0].lower()
        if word == "basebackup":
            if shard is not None and not has_basebackups(shard):
                raise WireError(f"shard {shard} has no basebackups, shard zero has")
            await self._send_basebackup(session, parse_basebackup(query))
        elif word == "lease":
            command = parse_lease(query)
            if shard is not None and shard != (command.tenant_shard.partition("-")[2] or UNSHARDED):
                raise WireError(f"not found: this is shard {shard}")
            await self._send_lease(session, command)
        elif word == "set" and len(query.split()) > 1:
            await session.send_rows([], [], "SELECT 1")
        else:
            raise WireError(f"cannot parse query: {query[:100]}")

    async def _send_lease(self, session: Session, command: LeaseCommand) -> None:
        await trio.sleep(self.faults.lease_delay_seconds)
        snapshots = self._timelines.get((command.tenant_shard.partition("-")[0], command.timeline))
        if self.faults.lease_error:
            raise WireError(self.faults.error_text)
        if snapshots is None:
            raise WireError("not found")
        key = (command.tenant_shard, command.timeline, command.lsn)
        expiry = None if self.faults.lease_refused else self.leases.grant(snapshots, key, self.faults.lease_seconds)
        milliseconds = None if expiry is None else str(int(expiry * 1000))
        await session.send_rows(["valid_until"], [[milliseconds]], "SELECT 1")

    async def _send_basebackup(self, session: Session, command: BasebackupCommand) -> None:
        snapshots = self._timelines.get((command.tenant.lower(), command.timeline.lower()))
        if snapshots is None:
            raise WireError("not found")
        if not command.gzip:
            raise WireError("only gzip basebackups are kept here")
        try:
            path = snapshots.at(command.lsn)
        except StorageError as error:
            raise WireError(str(error)) from None
        await trio.sleep(self.faults.delay_before_copy_seconds)
        await session.begin_copy()
        await self._send_file(session, path)
        if self.faults.error_before_copy_done:
            raise WireError(self.faults.error_text)
        await session.end_copy()
        if self.faults.error_after_copy_done:
            raise WireError(self.faults.error_text)
        await session.complete("SELECT 1")

    async def _send_file(self, session: Session, path: Path) -> None:
        sent = 0
        with path.open("rb") as file:
            while data := file.read(COPY_SLICE_BYTES):
                await session.send_copy(await self._tampered(session, data, sent))
                sent += len(data)

    async def _tampered(self, session: Session, data: bytes, sent: int) -> bytes:
        faults, end = self.faults, sent + len(data)
        if faults.corrupt_at_byte is not None and sent <= faults.corrupt_at_byte < end:
            at = faults.corrupt_at_byte - sent
            return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        if faults.stall_at_byte is not None and sent <= faults.stall_at_byte < end:
            await session.wait_hung_up()
        if faults.error_at_byte is not None and sent <= faults.error_at_byte < end:
            await session.send_copy(data[: faults.error_at_byte - sent])
            raise WireError(faults.error_text)
        if faults.cut_at_byte is not None and sent <= faults.cut_at_byte < end:
            await session.send_copy(data[: faults.cut_at_byte - sent])
            await session.drop()
        return data
