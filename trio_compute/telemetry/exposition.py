"""The Prometheus text format, written by Prometheus' own client from our values (contract 03 §7)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from trio_compute.telemetry.metrics import BUCKETS_SECONDS, Family, Kind, Metrics

CONTENT_TYPE = "text/plain; version=0.0.4"


class _Collector:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        for family in self._metrics.families():
            yield _histogram(family, self._metrics) if family.kind is Kind.HISTOGRAM else _plain(family, self._metrics)


def _plain(family: Family, metrics: Metrics) -> Metric:
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    made = make(family.name, family.help, labels=family.labels)
    for labels, value in metrics.series(family.name).items():
        made.add_metric(labels, value)
    return made


def _histogram(family: Family, metrics: Metrics) -> Metric:
    made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    bounds = [*map(str, BUCKETS_SECONDS), "+Inf"]
    for labels, distribution in metrics.distributions(family.name).items():
        made.add_metric(labels, [*zip(bounds, accumulate(distribution.counts), strict=True)], distribution.total)
    return made


def exposition(metrics: Metrics) -> bytes:
    """Return all families that have something to show; only ever called from a worker thread the first time."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics))
    return generate_latest(registry)
