"""When inherited subscriptions must stand still until they are dropped (contract 04 §6, F-09, F-10)."""

from __future__ import annotations

from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.conf_syntax import effective_settings

_SWITCH = "neon.disable_logical_replication_subscribers"
SUBSCRIBERS_ENABLED = f"{_SWITCH}=false"


def subscriptions_pending(parsed: ParsedSpec, *, dropped: bool | None) -> bool:
    """Tell whether subscriptions are still to be dropped, so that their workers must not run before.

    `dropped` is what the marker of this timeline says, None if it cannot be read, as before the start.
    """
    spec = parsed.spec
    is_wanted = spec.drop_subscriptions_before_start and not spec.skip_pg_catalog_updates and parsed.is_primary
    return is_wanted and dropped is not True


def with_subscribers_enabled(text: str) -> str | None:
    """Return postgresql.conf with subscribers enabled at its end, or None if they are already.

    A line that says so earlier in the file does not count if another one follows (F-09).
    """
    if effective_settings(text).get(_SWITCH) == "false":
        return None
    separator = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{separator}{SUBSCRIBERS_ENABLED}\n"
