"""The lakebase profile (contract 04 §5, §9)."""

from __future__ import annotations

import pytest

from tests.unit.builders import make_settings, parsed_spec, wire_spec
from trio_compute.errors import SpecError
from trio_compute.plan.lakebase import lakebase_environ, lakebase_port
from trio_compute.plan.preconditions import require_startable

DATABRICKS = {
    "pg_compute_tls_settings": {"cert_file": "/t/c.pem", "key_file": "/t/k.pem", "ca_file": "/t/ca.pem"},
    "databricks_pg_hba": "/h",
    "databricks_pg_ident": "/i",
    "databricks_workspace_host": "w.example",
}


@pytest.mark.parametrize(
    ("connstr", "port"),
    [
        ("postgresql://a@h:55432/postgres", 55432),
        ("postgresql://a@[::1]:1/postgres", 1),
        ("postgresql:///postgres?host=/tmp&port=2", 2),
    ],
)
def test_the_port_is_that_of_the_connection_url(connstr: str, port: int) -> None:
    assert lakebase_port(make_settings(connstr=connstr, lakebase_mode=True)) == port
    assert lakebase_port(make_settings(connstr=connstr)) is None


@pytest.mark.parametrize("connstr", ["postgresql://a@h/postgres", "postgresql://a@h:x/p", "postgresql://a@h:0/p"])
def test_a_connection_url_without_a_port_is_refused_in_lakebase_mode(connstr: str) -> None:
    """F-19: before PGDATA is touched."""
    with pytest.raises(SpecError, match="needs a port"):
        require_startable(parsed_spec(), make_settings(connstr=connstr, lakebase_mode=True))
    require_startable(parsed_spec(), make_settings(connstr=connstr))


@pytest.mark.parametrize(
    ("instance_id", "compute_id", "endpoint_id"),
    [(None, "abc/0", "abc"), (None, "abc", "abc"), ("inst", "abc/0", "inst"), ("", "abc/0", "")],
)
def test_postgres_learns_its_endpoint_in_lakebase_mode(
    instance_id: str | None, compute_id: str, endpoint_id: str
) -> None:
    settings = make_settings(lakebase_mode=True, instance_id=instance_id, compute_id=compute_id)
    databricks = wire_spec(databricks_settings=DATABRICKS).databricks_settings
    assert lakebase_environ(settings, databricks) == {
        "DATABRICKS_ENDPOINT_ID": endpoint_id,
        "DATABRICKS_WORKSPACE_HOST": "w.example",
    }
    assert lakebase_environ(settings, None)["DATABRICKS_WORKSPACE_HOST"] == ""
    assert lakebase_environ(make_settings(), databricks) == {}
