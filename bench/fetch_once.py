"""Fetch one basebackup with the production code, in a process of its own whose memory can be measured."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import trio

from bench.probe import memory_megabytes
from trio_compute.deadlines import Deadlines
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import INVALID_LSN
from trio_compute.model.parsed import parse_spec
from trio_compute.model.spec import Cluster, ComputeSpec
from trio_compute.storage.pageserver import fetch_basebackup
from trio_compute.telemetry.spans import Recorder


async def _fetch(url: str, tenant: str, timeline: str, target: Path) -> dict[str, float]:
    import trio_compute.db.connection
    import trio_compute.postgres.unpack  # noqa: F401  (loaded beforehand, as in a pooled compute)

    spec = ComputeSpec(
        format_version=1.0,
        cluster=Cluster(roles=[], databases=[]),
        suspend_timeout_seconds=-1,
        tenant_id=tenant,
        timeline_id=timeline,
        pageserver_connstring=url,
        safekeeper_connstrings=["127.0.0.1:1"],
    )
    parsed = parse_spec(spec)
    idle = memory_megabytes(os.getpid())["rss"]
    began = time.monotonic()
    await fetch_basebackup(parsed, target, INVALID_LSN, run_as=RunAs(), spans=Recorder(), deadlines=Deadlines())
    seconds = time.monotonic() - began
    return {"seconds": seconds, "idle_mb": idle, "peak_mb": memory_megabytes(os.getpid())["peak"]}


def main() -> None:
    """Take url, tenant, timeline and target from argv and print the figures as JSON."""
    url, tenant, timeline, target = sys.argv[1:]
    print(json.dumps(trio.run(_fetch, url, tenant, timeline, Path(target))))


if __name__ == "__main__":
    main()
