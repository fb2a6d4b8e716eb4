"""Metrics as Prometheus reads them (contract 03 §7)."""

from __future__ import annotations

import pytest

from trio_compute.telemetry import metrics as names
from trio_compute.telemetry.exposition import exposition
from trio_compute.telemetry.metrics import FAMILIES, Kind, Metrics


def lines(metrics: Metrics) -> list[str]:
    return exposition(metrics).decode().splitlines()


def test_plain_families_are_there_with_0_and_labelled_ones_are_not() -> None:
    """§7: families without samples are omitted, plain ones appear with 0 from the first scrape."""
    shown = [line for line in lines(Metrics()) if not line.startswith("#")]
    plain = [family.name for family in FAMILIES if not family.labels and family.kind is not Kind.HISTOGRAM]
    assert shown == [f"{name} 0.0" for name in plain]


def test_families_are_shown_in_the_order_of_the_contract_with_their_types() -> None:
    metrics = Metrics()
    for family in FAMILIES:
        labels = dict.fromkeys(family.labels, "x")
        if family.kind is Kind.HISTOGRAM:
            metrics.observe(family.name, 0.2, **labels)
        else:
            metrics.increment(family.name, 1, **labels)
    types = [line.split()[2:] for line in lines(metrics) if line.startswith("# TYPE")]
    assert types == [[family.name, family.kind.value] for family in FAMILIES]
    assert not [line for line in lines(metrics) if "_created" in line]


def test_replacing_a_family_lets_old_series_vanish() -> None:
    """R-12: vanished combinations kept their last value."""
    metrics = Metrics()
    metrics.replace(names.INSTALLED_EXTENSIONS, {("plpgsql", "1.0", "1"): 3, ("neon", "1.5", "1"): 1})
    metrics.replace(names.INSTALLED_EXTENSIONS, {("plpgsql", "1.0", "1"): 2})
    shown = [line for line in lines(metrics) if line.startswith(names.INSTALLED_EXTENSIONS)]
    assert shown == ['compute_installed_extensions{extension_name="plpgsql",owned_by_superuser="1",version="1.0"} 2.0']


def test_a_histogram_counts_cumulatively() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.2, 1000.0):
        metrics.observe(names.PHASE_DURATION, seconds, phase="start", outcome="ok")
    shown = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines(metrics) if line[0] != "#"}
    assert shown['compute_ctl_phase_duration_seconds_bucket{le="0.001",outcome="ok",phase="start"}'] == 1
    assert shown['compute_ctl_phase_duration_seconds_bucket{le="0.25",outcome="ok",phase="start"}'] == 2
    assert shown['compute_ctl_phase_duration_seconds_bucket{le="+Inf",outcome="ok",phase="start"}'] == 3
    assert shown['compute_ctl_phase_duration_seconds_sum{outcome="ok",phase="start"}'] == pytest.approx(1000.201)


def test_wrong_labels_are_a_defect() -> None:
    with pytest.raises(AssertionError):
        Metrics().increment(names.CONTROL_PLANE_REQUESTS, rpc="GetConfig")
