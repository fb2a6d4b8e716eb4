"""What the statistics of installed extensions say, and how often they are collected (contract 06 §7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec import Struct

from trio_compute.model.parsed import ParsedSpec

BOOTSTRAP_SUPERUSER_OID = 10
DEFAULT_BASE_SECONDS = 3600
MAX_BASE_SECONDS = 10**9
LONGEST_BACK_OFF = 8


class InstalledExtension(Struct, frozen=True, order=True):
    """Identify what is counted: an extension at a version, and whether the bootstrap superuser owns it."""

    extname: str
    version: str
    owned_by_superuser: str

    @classmethod
    def of(cls, name: str, version: str, owner: int) -> InstalledExtension:
        """Return the key of a row of `pg_extension`; owners are unsigned numbers (R-13)."""
        return cls(name, version, "1" if owner == BOOTSTRAP_SUPERUSER_OID else "0")


class Statistics(Struct, frozen=True):
    """Hold in how many databases each extension is, and how many databases could not be looked at."""

    databases_with: Mapping[InstalledExtension, int]
    failures: int = 0

    @classmethod
    def of(cls, found: Iterable[InstalledExtension], failures: int = 0) -> Statistics:
        """Return the statistics of what was found, one entry for each database and extension."""
        counts = Counter(found)
        return cls({key: counts[key] for key in sorted(counts)}, failures)

    def entries(self) -> list[dict[str, str | int]]:
        """Return the counts as the log line tells them."""
        return [
            {
                "extname": key.extname,
                "version": key.version,
                "n_databases": count,
                "owned_by_superuser": key.owned_by_superuser,
            }
            for key, count in self.databases_with.items()
        ]


def base_seconds(suspend_timeout_seconds: int) -> int:
    """Return the base of the interval that a spec asks for; no time-out, and nonsense, mean an hour (R-12)."""
    if suspend_timeout_seconds <= 0:
        return DEFAULT_BASE_SECONDS
    return min(suspend_timeout_seconds, MAX_BASE_SECONDS)


def base_at_start(spec: ParsedSpec, configured_seconds: int) -> int:
    """Return the base after a start: the spec's where the catalog was applied, else the command line's."""
    if spec.is_primary and not spec.spec.skip_pg_catalog_updates:
        return base_seconds(spec.spec.suspend_timeout_seconds)
    return base_seconds(configured_seconds)


def interval_seconds(base: int, failures_in_a_row: int = 0) -> int:
    """Return the pause between collections: twice the base, longer after collections that failed as a whole."""
    return 2 * base * min(1 << min(failures_in_a_row, 10), LONGEST_BACK_OFF)
