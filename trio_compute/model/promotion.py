"""What `/promote` says (contract 08 §6.1)."""

from __future__ import annotations

from msgspec import Struct


class PromoteCompleted(Struct, frozen=True, kw_only=True, tag_field="status", tag="completed"):
    """Say that this compute is the primary now, and tell the time spans of the way there."""

    lsn_wait_time_ms: int
    pg_promote_time_ms: int
    reconfigure_time_ms: int


class PromoteFailed(Struct, frozen=True, tag_field="status", tag="failed"):
    """Say why the promotion failed; another call tries again."""

    error: str


PromoteState = PromoteCompleted | PromoteFailed
