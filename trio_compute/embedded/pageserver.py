"""An embedded pageserver: basebackups and leases over libpq in Neon's grammar, with faults on demand (07 §4, §8)."""

from __future__ import annotations

import time
from collections.abc import Mapping

import trio
from msgspec import Struct

from trio_compute.embedded.page_commands import ID_DIGITS, BasebackupCommand, LeaseCommand, SetCommand, parse_command
from trio_compute.embedded.snapshots import Snapshots
from trio_compute.embedded.tokens import Service
from trio_compute.embedded.wire import Session, WireError
from trio_compute.model.ids import UNSHARDED, Lsn

COPY_SIZES = (8192, 8192, 8192, 1500, 8192, 40)
"""How long the pieces of a copy are, one after another; where they end means nothing, and clients must not mind."""

LSN_POLL_SECONDS = 0.02
WAIT_LSN_SECONDS = 300.0


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


def not_found(what: str) -> WireError:
    """Return what is said about a tenant or timeline that is not there."""
    return WireError("not found", prepared=f"Not found: {what}")


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


async def reaches(snapshots: Snapshots, lsn: Lsn, seconds: float) -> bool:
    """Wait until the log reaches an LSN, but no longer than so many seconds; tell whether it did."""
    with trio.move_on_after(seconds):
        while not snapshots.have(lsn):  # noqa: ASYNC110  (other threads and processes make it grow)
            await trio.sleep(LSN_POLL_SECONDS)
    return snapshots.have(lsn)


def late(snapshots: Snapshots, lsn: Lsn) -> str:
    """Return what is said when the log did not reach an LSN in time."""
    return (
        f"Timed out while waiting for WAL record at LSN {lsn} to arrive, last_record_lsn {snapshots.last()} "
        f"disk consistent LSN={snapshots.newest_at(None)}, WalReceiver status: Not active"
    )


def collected(snapshots: Snapshots, lsn: Lsn) -> str:
    """Return what is said about an LSN whose state is gone."""
    return (
        f"LSN {lsn} is earlier than latest GC cutoff {snapshots.lsns()[0]} "
        "(we might've already garbage collected needed data)"
    )


class Pageserver:
    """Serve the snapshots of some timelines; `wait_lsn_seconds` and `copy_sizes` are as in Neon's own."""

    def __init__(self, timelines: Mapping[tuple[str, str], Snapshots]) -> None:
        self._timelines = timelines
        self.leases = Leases()
        self.faults = Faults()
        self.commands: list[str] = []
        self.wait_lsn_seconds = WAIT_LSN_SECONDS
        self.copy_sizes = COPY_SIZES

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
        command = parse_command(query)
        if isinstance(command, SetCommand):
            await session.complete("SELECT 1")
            return
        session.require(command.tenant, Service.PAGESERVER)
        if isinstance(command, BasebackupCommand):
            await self._send_basebackup(session, command, shard)
        elif isinstance(command, LeaseCommand):
            await self._send_lease(session, command, shard)
        else:
            raise WireError("pages are not served here: vanilla Postgres has its own")

    async def _send_lease(self, session: Session, command: LeaseCommand, shard: str | None) -> None:
        await trio.sleep(self.faults.lease_delay_seconds)
        if self.faults.lease_error:
            raise WireError(self.faults.error_text)
        wanted = command.tenant_shard.partition("-")[2] or UNSHARDED
        try:
            snapshots = self._find(command.tenant_shard, command.timeline, shard in {None, wanted})
        except WireError as error:
            raise WireError(error.prepared) from None  # of a lease all is told
        key = (command.tenant_shard, command.timeline, command.lsn)
        expiry = None if self.faults.lease_refused else self.leases.grant(snapshots, key, self.faults.lease_seconds)
        milliseconds = None if expiry is None else str(int(expiry * 1000))
        await session.send_rows(["valid_until"], [[milliseconds]], "SELECT 1")

    def _find(self, tenant_shard: str, timeline: str, has_shard: bool) -> Snapshots:
        """Return a timeline's snapshots; raise WireError for what is not here."""
        tenant = tenant_shard[:ID_DIGITS]
        if not has_shard or tenant not in {known for known, _ in self._timelines}:
            raise not_found(f"Tenant {tenant_shard} not found")
        snapshots = self._timelines.get((tenant, timeline))
        if snapshots is None:
            raise not_found(f"Timeline {tenant}/{timeline} was not found")
        return snapshots

    async def _send_basebackup(self, session: Session, command: BasebackupCommand, shard: str | None) -> None:
        snapshots = self._find(command.tenant, command.timeline, shard is None or has_basebackups(shard))
        if command.lsn is not None:
            await self._await_lsn(snapshots, command.lsn)
        await trio.sleep(self.faults.delay_before_copy_seconds)
        await session.begin_copy()
        await self._send_archive(session, snapshots, command)
        if self.faults.error_before_copy_done:
            raise WireError(self.faults.error_text)
        await session.end_copy()
        if self.faults.error_after_copy_done:
            raise WireError(self.faults.error_text)
        await session.complete("SELECT 1")

    async def _await_lsn(self, snapshots: Snapshots, lsn: Lsn) -> None:
        """Wait until the log reaches an LSN; raise WireError when it does not, or when the state there is gone."""
        if not await reaches(snapshots, lsn, self.wait_lsn_seconds):
            raise WireError(late(snapshots, lsn))
        if lsn < snapshots.lsns()[0]:
            raise WireError(f"invalid basebackup lsn: {collected(snapshots, lsn)}", prepared="invalid basebackup lsn")

    async def _send_archive(self, session: Session, snapshots: Snapshots, command: BasebackupCommand) -> None:
        pieces, sent = snapshots.serve(command.lsn, gzip=command.gzip), 0
        while data := await trio.to_thread.run_sync(next, pieces, b""):
            await session.send_copy(await self._tampered(session, data, sent), self.copy_sizes)
            sent += len(data)

    async def _tampered(self, session: Session, data: bytes, sent: int) -> bytes:
        faults, end = self.faults, sent + len(data)
        if faults.corrupt_at_byte is not None and sent <= faults.corrupt_at_byte < end:
            at = faults.corrupt_at_byte - sent
            return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        if faults.stall_at_byte is not None and sent <= faults.stall_at_byte < end:
            await session.wait_hung_up()
        if faults.error_at_byte is not None and sent <= faults.error_at_byte < end:
            await session.send_copy(data[: faults.error_at_byte - sent], self.copy_sizes)
            raise WireError(faults.error_text)
        if faults.cut_at_byte is not None and sent <= faults.cut_at_byte < end:
            await session.send_copy(data[: faults.cut_at_byte - sent], self.copy_sizes)
            await session.drop()
        return data
