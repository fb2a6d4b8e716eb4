"""What a replica must be told before it becomes the primary, and what it keeps (contract 08 §6.2, P-03, P-15)."""

from __future__ import annotations

from msgspec import structs

from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.conf_syntax import effective_settings, fold

SAFEKEEPERS = "neon.safekeepers"
STANDBY_NAMES = "synchronous_standby_names"
WALPROPOSER = "walproposer"


def promotion_overrides(parsed: ParsedSpec, postgresql_conf: str) -> dict[str, str]:
    """Return the settings that must be in force before recovery ends.

    The safekeepers are those that postgresql.conf will name, generation and all.
    """
    named = effective_settings(postgresql_conf).get(SAFEKEEPERS)
    return {SAFEKEEPERS: named or ",".join(parsed.safekeepers), STANDBY_NAMES: WALPROPOSER}


def with_port(parsed: ParsedSpec, port: int) -> ParsedSpec:
    """Return a spec whose Postgres stays at a port: that of this node, not of the one that the spec was written for."""
    cluster = parsed.spec.cluster
    text = cluster.postgresql_conf or ""
    line = f"port={port}\n"
    settings = cluster.settings
    if settings is not None:
        settings = [option for option in settings if fold(option.name) != "port"]
    kept = structs.replace(
        cluster, postgresql_conf=text + ("\n" if text and not text.endswith("\n") else "") + line, settings=settings
    )
    return structs.replace(parsed, spec=structs.replace(parsed.spec, cluster=kept))
