"""What an LSN lease must cover, what the answers mean, and when to ask again (contract 07 §8, S-02, S-03, S-05)."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from trio_compute.errors import SpecError
from trio_compute.model.ids import INVALID_LSN, Lsn, TenantId, TimelineId
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.spec import PageserverConnectionInfo, PageserverProtocol

REFUSED_RETRY_SECONDS = 60.0
MIN_RENEWAL_SECONDS = 1.0
_FIRST_RETRY_SECONDS = 0.5
_RETRY_GROWTH = 1.5
_MAX_RETRY_SECONDS = 60.0
_RETRIES_UNTIL_MAX = 12  # 0.5 × 1.5 to the 12 is above 60


class LeaseTerms(Struct, frozen=True, kw_only=True):
    """Hold everything that a request for a lease depends on; a spec with other terms needs another lease (S-04)."""

    tenant_id: TenantId
    timeline_id: TimelineId
    lsn: Lsn
    pageservers: PageserverConnectionInfo
    token: str | None

    def __repr__(self) -> str:
        return f"LeaseTerms(tenant_id={self.tenant_id}, timeline_id={self.timeline_id}, lsn={self.lsn})"


class LeaseTarget(Struct, frozen=True):
    """Name one pageserver that must grant the lease, for one shard."""

    url: str
    shard: str


def lease_terms(parsed: ParsedSpec | None) -> LeaseTerms | None:
    """Return what must be leased for a spec, or None unless its mode is static."""
    if parsed is None or parsed.mode != "static":
        return None
    return LeaseTerms(
        tenant_id=parsed.tenant_id,
        timeline_id=parsed.timeline_id,
        lsn=parsed.pinned_lsn,
        pageservers=parsed.pageservers,
        token=parsed.spec.storage_auth_token,
    )


def lease_targets(terms: LeaseTerms) -> tuple[LeaseTarget, ...]:
    """Return every pageserver of every shard; raise SpecError if one cannot be asked, or there is none (S-05)."""
    if terms.lsn == INVALID_LSN:
        raise SpecError("a static compute needs an LSN other than 0/0")
    targets = tuple(
        LeaseTarget(_url(pageserver.libpq_url, pageserver.grpc_url, terms.pageservers.prefer_protocol, shard), shard)
        for shard, entry in sorted(terms.pageservers.shards.items())
        for pageserver in entry.pageservers
    )
    if not targets:
        raise SpecError("must have at least one pageserver")
    return targets


def _url(libpq_url: str | None, grpc_url: str | None, protocol: PageserverProtocol, shard: str) -> str:
    url = libpq_url if protocol is PageserverProtocol.LIBPQ else grpc_url
    if not url:
        raise SpecError(f"no {protocol.value}_url for shard {shard}")
    return url


def tenant_shard_id(tenant_id: TenantId, shard: str) -> str:
    """Return the name of a tenant's shard; an unsharded tenant has no suffix (contract 07 §1)."""
    return tenant_id if shard.endswith("00") else f"{tenant_id}-{shard}"


def lease_command(terms: LeaseTerms, target: LeaseTarget) -> str:
    """Return the command for a pageserver that speaks libpq."""
    return f"lease lsn {tenant_shard_id(terms.tenant_id, target.shard)} {terms.timeline_id} {terms.lsn}"


def earliest_expiry(answers: Iterable[float | None]) -> float | None:
    """Return when the first of several leases expires, in Unix seconds; None if any pageserver refused."""
    expiries = list(answers)
    known = [expiry for expiry in expiries if expiry is not None]
    return min(known) if known and len(known) == len(expiries) else None


def renewal_delay_seconds(expires_at: float, now: float) -> float:
    """Return how long to wait before a renewal: half of what is left, at least a second (S-02)."""
    return max(MIN_RENEWAL_SECONDS, (expires_at - now) / 2)


def retry_delay_seconds(failures: int) -> float:
    """Return the pause after this many failures in a row, the first being 1: 0.5 s growing by half, at most 60 s."""
    grown = _FIRST_RETRY_SECONDS * _RETRY_GROWTH ** min(failures - 1, _RETRIES_UNTIL_MAX)
    return min(_MAX_RETRY_SECONDS, grown)
