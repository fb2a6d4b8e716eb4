"""Audit levels: the list of libraries and what a start needs (contract 04 §4)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.builders import cluster, make_settings, parsed_spec, setting, wire_spec
from tests.unit.test_lakebase import DATABRICKS
from trio_compute.errors import SpecError
from trio_compute.plan.audit import audit_lines, is_audit_shipped
from trio_compute.plan.preconditions import require_startable
from trio_compute.plan.unapplied import unapplied

LIBRARIES = "shared_preload_libraries"


def libraries_line(level: str = "Base", **changes: Any) -> str:
    lines = [line for line in audit_lines(wire_spec(audit_log_level=level, **changes)) if line.startswith("shared")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("neon", "'neon,pgaudit'"),
        ("neon,pg_stat_statements", "'neon,pg_stat_statements,pgaudit'"),
        ("neon, pgaudit", "'neon,pgaudit'"),
        ("", "'pgaudit'"),
        (",neon,", "'neon,pgaudit'"),
        ("neon,pgauditlogtofile", "'neon,pgauditlogtofile,pgaudit'"),
        ("my_pgaudit_fork", "'my_pgaudit_fork,pgaudit'"),
        ("$libdir/pgaudit", "'$libdir/pgaudit'"),
        ("o'clock", "'o''clock,pgaudit'"),
        ("'\nfsync = off\n#", "'''\\nfsync = off\\n#,pgaudit'"),
        ('"a,b"', "'\"a,b\",pgaudit'"),
    ],
)
def test_the_libraries_are_a_list(given: str, line: str) -> None:
    """F-05, F-07: nothing is added twice, nothing is mistaken for another, no member is empty."""
    assert libraries_line(cluster=cluster(setting(LIBRARIES, given))) == f"shared_preload_libraries={line}"


@pytest.mark.parametrize("level", ["Hipaa", "Extended", "Full"])
@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("neon", "'neon,pgaudit,pgauditlogtofile'"),
        ("pgauditlogtofile", "'pgauditlogtofile,pgaudit'"),
        ("pgaudit,x", "'pgaudit,x,pgauditlogtofile'"),
    ],
)
def test_the_higher_levels_need_a_second_library(level: str, given: str, line: str) -> None:
    """F-07."""
    changes = {"cluster": cluster(setting(LIBRARIES, given))}
    assert libraries_line(level, **changes) == f"shared_preload_libraries={line}"
    assert libraries_line(level) == "shared_preload_libraries='neon,pgaudit,pgauditlogtofile'"


@pytest.mark.parametrize(
    ("conf", "settings", "line"),
    [
        ("shared_preload_libraries=neon,x", [], None),  # a comma without quotes is a syntax error
        ("shared_preload_libraries='neon,x'", [], "'neon,x,pgaudit'"),
        ("shared_preload_libraries='a'\nShared_Preload_Libraries 'b' # last\n", [], "'b,pgaudit'"),
        ("shared_preload_libraries='a'\n#shared_preload_libraries='b'", [], "'a,pgaudit'"),
        ("shared_preload_libraries='a'", [("shared_preload_libraries", "b")], "'b,pgaudit'"),
        ("", [("shared_preload_libraries", "a"), ("SHARED_preload_libraries", "b")], "'b,pgaudit'"),
        ("include 'x'\nport=1", [("work_mem", "1")], None),
    ],
)
def test_the_effective_list_is_completed(conf: str, settings: list[tuple[str, str]], line: str | None) -> None:
    """F-08: the last one counts, first of the settings, then of the verbatim text; else it is `neon`."""
    options = [setting(name, value) for name, value in settings]
    found = libraries_line(cluster=cluster(*options, postgresql_conf=conf))
    assert found == f"shared_preload_libraries={line or chr(39) + 'neon,pgaudit' + chr(39)}"


def test_without_auditing_nothing_is_written() -> None:
    assert list(audit_lines(wire_spec())) == []
    assert list(audit_lines(wire_spec(audit_log_level="Disabled"))) == []


@pytest.mark.parametrize(
    ("level", "shipped"),
    [("Disabled", False), ("Log", False), ("Base", False), ("Hipaa", True), ("Extended", True), ("Full", True)],
)
def test_the_higher_levels_need_an_endpoint_at_the_start(level: str, shipped: bool) -> None:
    parsed = parsed_spec(audit_log_level=level)
    assert is_audit_shipped(parsed.spec) is shipped
    for name in ("audit_logging_endpoint", "audit_logging_tls_endpoint"):
        require_startable(parsed, make_settings(**{name: "logs:514"}))
    for changes in ({}, {"audit_logging_endpoint": "", "audit_logging_tls_endpoint": ""}):
        if shipped:
            with pytest.raises(SpecError, match="AUDIT_LOGGING_ENDPOINT and AUDIT_LOGGING_TLS_ENDPOINT are both empty"):
                require_startable(parsed, make_settings(**changes))
        else:
            require_startable(parsed, make_settings(**changes))


def test_only_the_shipping_of_the_log_is_still_missing() -> None:
    settings = make_settings()
    assert "audit_log_level" not in unapplied(parsed_spec(audit_log_level="Base"), settings)
    assert "audit_log_level" in unapplied(parsed_spec(audit_log_level="Full"), settings)
    assert unapplied(parsed_spec(databricks_settings=DATABRICKS), settings) == []
