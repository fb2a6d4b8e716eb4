"""What `/metrics` counts, kept without a metrics library so that none is on the start path (contract 03 §7)."""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from msgspec import Struct

Labels = tuple[str, ...]

UP = "compute_ctl_up"
INSTALLED_EXTENSIONS = "compute_installed_extensions"
CONTROL_PLANE_REQUESTS = "compute_ctl_cplane_requests_total"
REMOTE_EXTENSION_REQUESTS = "compute_ctl_remote_ext_requests_total"
DATABASES_FAILED = "compute_ctl_databases_failed"
DB_MIGRATION_FAILED = "compute_ctl_db_migration_failed_total"
AUDIT_LOG_DIR_SIZE = "compute_audit_log_dir_size"
CURRENT_DOWNTIME = "compute_pg_current_downtime_ms"
TOTAL_DOWNTIME = "compute_pg_downtime_ms_total"
LFC_PREWARMS = "compute_ctl_lfc_prewarms_total"
LFC_PREWARM_ERRORS = "compute_ctl_lfc_prewarm_errors_total"
LFC_OFFLOADS = "compute_ctl_lfc_offloads_total"
LFC_OFFLOAD_ERRORS = "compute_ctl_lfc_offload_errors_total"
PAGESTREAM_REQUEST_ERRORS = "pg_cctl_pagestream_request_errors_total"
CONFIGURE_STATEMENT_TIMEOUTS = "pg_cctl_configure_statement_timeout_errors_total"
ATTACHED = "pg_cctl_attached"
PROMOTIONS = "compute_ctl_promotions_total"
PROMOTION_ERRORS = "compute_ctl_promotion_errors_total"
PHASE_DURATION = "compute_ctl_phase_duration_seconds"
ACTIVITY_CHECK_AGE = "compute_ctl_activity_check_age_seconds"
ACTIVITY_CHECK_DURATION = "compute_ctl_activity_check_duration_seconds"
WRITES_REFUSED_BY_FULL_DISK = "compute_ctl_writability_disk_full_total"
DB_MIGRATION_ID = "compute_ctl_db_migration_id"
EVENTS_DROPPED = "compute_ctl_log_records_dropped_total"

BUCKETS_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Kind(enum.Enum):
    """Name the type of a family, as `# TYPE` does."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(Struct, frozen=True):
    """Describe all series of one name; one without labels has a value from the first scrape on."""

    name: str
    kind: Kind
    help: str
    labels: Labels = ()


# In the order of the contract, ours last.
FAMILIES = (
    Family(UP, Kind.GAUGE, "Whether compute_ctl is running, and in which status.", ("build_tag", "status")),
    Family(
        INSTALLED_EXTENSIONS,
        Kind.GAUGE,
        "Number of databases in which an extension is installed.",
        ("extension_name", "version", "owned_by_superuser"),
    ),
    Family(CONTROL_PLANE_REQUESTS, Kind.COUNTER, "Requests to the control plane.", ("rpc", "http_status")),
    Family(REMOTE_EXTENSION_REQUESTS, Kind.COUNTER, "Requests for extension archives.", ("http_status", "filename")),
    Family(DB_MIGRATION_FAILED, Kind.COUNTER, "Migrations of the catalog that failed.", ("migration_id",)),
    Family(AUDIT_LOG_DIR_SIZE, Kind.GAUGE, "Bytes of audit logs."),
    Family(CURRENT_DOWNTIME, Kind.GAUGE, "Milliseconds since Postgres last answered; 0 while it answers."),
    Family(TOTAL_DOWNTIME, Kind.COUNTER, "Milliseconds in which Postgres did not answer, all in all."),
    Family(LFC_PREWARMS, Kind.COUNTER, "Prewarms that were begun."),
    Family(LFC_PREWARM_ERRORS, Kind.COUNTER, "Prewarms that failed."),
    Family(LFC_OFFLOADS, Kind.COUNTER, "Offloads of the cache's state that were begun."),
    Family(LFC_OFFLOAD_ERRORS, Kind.COUNTER, "Offloads of the cache's state that failed."),
    Family(PAGESTREAM_REQUEST_ERRORS, Kind.COUNTER, "Requests to refresh the configuration."),
    Family(CONFIGURE_STATEMENT_TIMEOUTS, Kind.COUNTER, "Statements cancelled by a timeout while applying a spec."),
    Family(
        ATTACHED,
        Kind.GAUGE,
        "Whether the compute has a tenant.",
        ("pg_compute_id", "pg_instance_id", "tenant_id", "timeline_id"),
    ),
    Family(PROMOTIONS, Kind.COUNTER, "Promotions of this replica that were begun."),
    Family(PROMOTION_ERRORS, Kind.COUNTER, "Promotions of this replica that failed."),
    Family(PHASE_DURATION, Kind.HISTOGRAM, "How long each phase of the compute took.", ("phase", "outcome")),
    Family(ACTIVITY_CHECK_AGE, Kind.GAUGE, "Seconds since the last successful check of activity."),
    Family(ACTIVITY_CHECK_DURATION, Kind.HISTOGRAM, "How long a check of activity took."),
    Family(WRITES_REFUSED_BY_FULL_DISK, Kind.COUNTER, "Write checks that found the disk full."),
    Family(
        DATABASES_FAILED,
        Kind.GAUGE,
        "Databases in which the last apply of the catalog did not come through, by phase.",
        ("phase",),
    ),
    Family(DB_MIGRATION_ID, Kind.GAUGE, "Number of the last migration that the catalog has on record."),
    Family(EVENTS_DROPPED, Kind.COUNTER, "Log records dropped since nobody read stderr in time."),
)
_BY_NAME = {family.name: family for family in FAMILIES}


class Distribution(Struct):
    """Hold a histogram: how many observations fell into each bucket, and their sum."""

    counts: list[int]
    total: float = 0.0

    def observe(self, value: float) -> None:
        """Add an observation."""
        self.counts[bisect_left(BUCKETS_SECONDS, value)] += 1
        self.total += value


class Metrics:
    """Hold the values of all families of one process."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {family.name: {} for family in FAMILIES}
        self._distributions: dict[str, dict[Labels, Distribution]] = {family.name: {} for family in FAMILIES}

    def increment(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Add to a counter."""
        key = _key(name, labels)
        self._values[name][key] = self._values[name].get(key, 0) + amount

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        self._values[name][_key(name, labels)] = value

    def replace(self, name: str, series: Mapping[Labels, float]) -> None:
        """Set all series of a family at once; those that are not named vanish. The labels are in the family's order."""
        assert all(len(labels) == len(_BY_NAME[name].labels) for labels in series), f"{name} has other labels"
        self._values[name] = dict(series)

    def observe(self, name: str, seconds: float, /, **labels: str) -> None:
        """Add an observation to a histogram."""
        key = _key(name, labels)
        if key not in self._distributions[name]:
            self._distributions[name][key] = Distribution([0] * (len(BUCKETS_SECONDS) + 1))
        self._distributions[name][key].observe(seconds)

    def value(self, name: str, /, **labels: str) -> float:
        """Return the value of one series; 0 for what never happened."""
        return self._values[name].get(_key(name, labels), 0)

    def series(self, name: str) -> dict[Labels, float]:
        """Return the series of a counter or gauge; one without labels is always there."""
        values = self._values[name]
        return values or ({} if _BY_NAME[name].labels else {(): 0})

    def distributions(self, name: str) -> dict[Labels, Distribution]:
        """Return the series of a histogram."""
        return self._distributions[name]

    def families(self) -> Iterator[Family]:
        """Return the families that have something to show, in order."""
        for family in FAMILIES:
            if self.distributions(family.name) if family.kind is Kind.HISTOGRAM else self.series(family.name):
                yield family


def _key(name: str, labels: Mapping[str, str]) -> Labels:
    names = _BY_NAME[name].labels
    assert labels.keys() == set(names), f"{name} has the labels {names}"
    return tuple(labels[label] for label in names)


metrics = Metrics()
