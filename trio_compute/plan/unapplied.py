"""Parts of a spec that this version accepts but does not act upon yet; said in the log instead of being ignored."""

from __future__ import annotations

from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.audit import is_audit_shipped
from trio_compute.settings import Settings

_FIELDS = ("pgbouncer_settings", "local_proxy_config", "logs_export_host")


def unapplied(parsed: ParsedSpec, settings: Settings) -> list[str]:
    """Return the names of spec fields and flags that are set and have no effect yet."""
    spec = parsed.spec
    conditions = {
        "audit_log_level": is_audit_shipped(spec),  # what is missing is the shipping
        "swap_size_bytes": settings.resize_swap_on_bind and spec.swap_size_bytes is not None,
        "disk_quota_bytes": settings.set_disk_quota_for_fs is not None and spec.disk_quota_bytes is not None,
        "vm-monitor": settings.autoscaling,
        **{name: bool(getattr(spec, name)) for name in _FIELDS},
    }
    return [name for name, is_set in conditions.items() if is_set]
