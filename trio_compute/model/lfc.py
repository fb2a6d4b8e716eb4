"""What `/lfc/prewarm` and `/lfc/offload` say: the states of the local file cache (contract 08 §2, §4)."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType


class NotPrewarmed(Struct, frozen=True, tag_field="status", tag="not_prewarmed"):
    """Say that no prewarm was ever asked for."""


class Prewarming(Struct, frozen=True, kw_only=True, tag_field="status", tag="prewarming"):
    """Say that a prewarm runs; how far it is (ours) is only there once Postgres tells."""

    pages_done: int | UnsetType = UNSET
    pages_total: int | UnsetType = UNSET
    pages_per_second: float | UnsetType = UNSET
    estimate_seconds: float | UnsetType = UNSET


class PrewarmCompleted(Struct, frozen=True, kw_only=True, tag_field="status", tag="completed"):
    """Count the pages of a prewarm that ended, and tell its time spans.

    `state_download_time_ms` ends with the response's headers, `uncompress_time_ms` holds the body's download too, and
    `prewarm_time_ms` the connecting to Postgres (contract 08 §3.1).
    """

    total: int
    prewarmed: int
    skipped: int
    state_download_time_ms: int
    uncompress_time_ms: int
    prewarm_time_ms: int


class PrewarmFailed(Struct, frozen=True, tag_field="status", tag="failed"):
    """Say why a prewarm failed; the compute works all the same."""

    error: str


class PrewarmSkipped(Struct, frozen=True, tag_field="status", tag="skipped"):
    """Say that the endpoint storage holds no state to load."""


class PrewarmCancelled(Struct, frozen=True, tag_field="status", tag="cancelled"):
    """Say that somebody cancelled the prewarm; what was loaded by then stays."""


PrewarmState = NotPrewarmed | Prewarming | PrewarmCompleted | PrewarmFailed | PrewarmSkipped | PrewarmCancelled


class NotOffloaded(Struct, frozen=True, tag_field="status", tag="not_offloaded"):
    """Say that the state of the cache was never saved."""


class Offloading(Struct, frozen=True, tag_field="status", tag="offloading"):
    """Say that the state of the cache is being saved."""


class OffloadCompleted(Struct, frozen=True, kw_only=True, tag_field="status", tag="completed"):
    """Tell the time spans of an offload that ended; `state_query_time_ms` holds the connecting to Postgres."""

    state_query_time_ms: int
    compress_time_ms: int
    state_upload_time_ms: int


class OffloadFailed(Struct, frozen=True, tag_field="status", tag="failed"):
    """Say why an offload failed; what was stored before stays."""

    error: str


class OffloadSkipped(Struct, frozen=True, tag_field="status", tag="skipped"):
    """Say that there is no state to save: the cache is off or empty."""


OffloadState = NotOffloaded | Offloading | OffloadCompleted | OffloadFailed | OffloadSkipped


class PrewarmInfo(Struct, frozen=True):
    """Hold what Postgres says of the latest prewarm; a number that it does not know is None (contract 08 §3.3)."""

    total: int | None = None
    prewarmed: int | None = None
    skipped: int | None = None
    workers: int | None = None


def progress(info: PrewarmInfo, elapsed_seconds: float) -> Prewarming | None:
    """Return how far a running prewarm is, None where the numbers cannot be its own.

    All pages done means an earlier run, or one that is about to end.
    """
    total, done = info.total or 0, (info.prewarmed or 0) + (info.skipped or 0)
    if not 0 <= done < total:
        return None
    rate = done / elapsed_seconds if elapsed_seconds > 0 else 0.0
    return Prewarming(
        pages_done=done,
        pages_total=total,
        pages_per_second=round(rate, 1),
        estimate_seconds=round((total - done) / rate, 1) if rate else UNSET,
    )
