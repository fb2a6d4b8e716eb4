"""Counts of what happened, kept without a metrics library so that nothing heavy is on the start path (03 §7)."""

from __future__ import annotations

from collections import Counter

Labels = tuple[tuple[str, str], ...]


class Counters:
    """Count events by metric name and labels."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Labels]] = Counter()

    def increment(self, name: str, **labels: str) -> None:
        """Add one."""
        self._counts[name, tuple(labels.items())] += 1

    def value(self, name: str, **labels: str) -> int:
        """Return a count; 0 for what never happened."""
        return self._counts[name, tuple(labels.items())]


counters = Counters()
CONTROL_PLANE_REQUESTS = "compute_ctl_cplane_requests_total"
PAGESTREAM_REQUEST_ERRORS = "pg_cctl_pagestream_request_errors_total"
DB_MIGRATION_FAILED = "compute_ctl_db_migration_failed_total"
CONFIGURE_STATEMENT_TIMEOUTS = "pg_cctl_configure_statement_timeout_errors_total"
