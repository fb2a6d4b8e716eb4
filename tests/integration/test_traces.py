"""Traces of a real compute on real Postgres, configured by the standard variables alone (contract 10 §8)."""

from __future__ import annotations

import signal

import pytest

from tests.fakes.collector import open_collector
from tests.integration.compute import Rig
from tests.unit.test_trace_context import PARENT, TRACE

pytestmark = pytest.mark.postgres


async def test_a_start_reaches_the_collector_in_the_trace_of_the_environment(rig: Rig) -> None:
    async with open_collector() as collector:
        environ = {
            "OTEL_SDK_DISABLED": "TRUE",  # not exactly `true`
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url.removesuffix("/v1/traces"),
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20s3cr3t-token",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
            "TRACEPARENT": PARENT,
        }
        async with rig.compute(rig.config(skip_pg_catalog_updates=False), environ=environ) as child:
            await child.reach("running")
            await child.terminate("immediate")
            assert await child.process.wait() == 0
    spans = collector.by_name()
    wanted = {"start_compute", "prepare_pgdata", "try_get_basebackup", "start_postgres", "apply_spec_sql"}
    assert wanted <= {name for name, span in spans.items() if span.trace_id.hex() == TRACE}
    assert "post /v1/traces" in collector.heads[0]
    assert "authorization: bearer s3cr3t-token" in collector.heads[0]
    assert "OTEL_EXPORTER_OTLP_TIMEOUT is not a positive number of milliseconds" in rig.log()
    assert "s3cr3t" not in rig.log()


async def test_a_stop_signal_leaves_the_collector_alone(rig: Rig) -> None:
    async with open_collector() as collector:
        environ = {"OTEL_SDK_DISABLED": "", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url}
        async with rig.compute(environ=environ) as child:
            await child.reach("running")
            child.process.send_signal(signal.SIGTERM)
            assert await child.process.wait() == 0
    assert collector.heads == []
