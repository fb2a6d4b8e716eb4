"""What a spec may not say about configuration files (contract 04 F-04, F-06, F-19)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.unit.builders import cluster, parsed_spec, setting, wire_spec
from tests.unit.test_lakebase import DATABRICKS
from trio_compute.errors import SpecError
from trio_compute.model.parsed import problems


@pytest.mark.parametrize(
    ("option", "place", "text"),
    [
        (setting("a b", "1"), "name", "'a b' is not a valid name"),
        (setting("x" * 200 + "=", "1"), "name", "is not a valid name"),
        (setting("work_mem", None), "value", "'work_mem' has no value"),
        (setting("work_mem", "1\0"), "value", "'work_mem' holds a NUL"),
    ],
)
def test_a_setting_that_cannot_be_written_is_refused_with_its_place(
    option: dict[str, Any], place: str, text: str
) -> None:
    """F-04, F-06."""
    changes = {"cluster": cluster(setting("a", "1"), option)}
    with pytest.raises(SpecError, match=text):
        parsed_spec(**changes)
    found = problems(wire_spec(**changes))
    assert [problem.path for problem in found] == [("cluster", "settings", 1, place)]
    assert len(found[0].message) < 200


@pytest.mark.parametrize("line", ["include 'x.conf'", " INCLUDE_DIR='d'", "a = 1\ninclude_if_exists = 'x'\n"])
def test_libraries_that_an_included_file_may_name_are_warned_about(line: str) -> None:
    """F-08: rendering reads no files, so that the list of the audit level takes the place of such a list."""
    with_include = {**cluster(), "postgresql_conf": line}
    (warning,) = parsed_spec(cluster=with_include, audit_log_level="Base").warnings
    assert "takes its place" in warning
    assert parsed_spec(cluster=with_include).warnings == ()
    listed = {**cluster(setting("Shared_Preload_Libraries", "neon")), "postgresql_conf": line}
    assert parsed_spec(cluster=listed, audit_log_level="Base").warnings == ()
    other = {**cluster(), "postgresql_conf": "# include 'x'\nincluded.by = 'y'"}
    assert parsed_spec(cluster=other, audit_log_level="Base").warnings == ()


@pytest.mark.parametrize("path", ["", "/", "/etc/", "/etc/..", ".", "/a\nlocal all all trust", "/a\0", "/a\rb"])
@pytest.mark.parametrize("place", ["cert_file", "key_file", "ca_file", "databricks_pg_hba", "databricks_pg_ident"])
def test_a_path_that_would_break_a_file_is_refused(path: str, place: str) -> None:
    """F-04, F-19."""
    databricks: dict[str, Any] = copy.deepcopy(DATABRICKS)
    tls = databricks["pg_compute_tls_settings"]
    (tls if place in tls else databricks)[place] = path
    with pytest.raises(SpecError, match=f"{place} is not the path of a file"):
        parsed_spec(databricks_settings=databricks)


def test_a_workspace_host_with_a_line_break_is_refused() -> None:
    """F-04."""
    with pytest.raises(SpecError, match="databricks_workspace_host"):
        parsed_spec(databricks_settings={**DATABRICKS, "databricks_workspace_host": "a\nb"})
    parsed_spec(databricks_settings=DATABRICKS)
