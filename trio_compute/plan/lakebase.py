"""What a lakebase compute writes besides, as a table (contract 04 §5), and the environment of its Postgres (§9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trio_compute.conninfo import read_conninfo
from trio_compute.errors import SpecError
from trio_compute.model.spec import DatabricksSettings
from trio_compute.plan.conf_syntax import quote
from trio_compute.settings import Settings

_ROWS: tuple[tuple[str, Callable[[DatabricksSettings], str]], ...] = (
    ("ssl_ca_file", lambda settings: quote(settings.pg_compute_tls_settings.ca_file)),
    ("databricks.workspace_url", lambda settings: quote(settings.databricks_workspace_host)),
    ("databricks.enable_databricks_identity_login", lambda _: "true"),
    ("databricks.enable_sql_restrictions", lambda _: "true"),
)


def lakebase_lines(port: int, databricks: DatabricksSettings | None) -> Iterator[str]:
    """Yield the lines of lakebase mode; nothing after them may set another port."""
    yield f"port = {port}"
    yield "# Databricks settings start"
    if databricks is not None:
        yield from (f"{name} = {value(databricks)}" for name, value in _ROWS)
        yield ""
    yield "# Databricks settings end"


def lakebase_port(settings: Settings) -> int | None:
    """Return the port that the connection URL names, None outside of lakebase mode; raise SpecError without a port."""
    if not settings.lakebase_mode:
        return None
    try:
        port = int(read_conninfo(settings.connstr, as_rust=True).get("port", "0"))
    except (SpecError, ValueError):
        port = 0
    if not 0 < port < 65536:
        raise SpecError("lakebase mode needs a port in the connection URL (--connstr)")
    return port


def lakebase_environ(settings: Settings, databricks: DatabricksSettings | None) -> dict[str, str]:
    """Return the variables that Postgres gets in lakebase mode; none otherwise."""
    if not settings.lakebase_mode:
        return {}
    instance_id = settings.instance_id
    return {
        "DATABRICKS_ENDPOINT_ID": settings.compute_id.partition("/")[0] if instance_id is None else instance_id,
        "DATABRICKS_WORKSPACE_HOST": "" if databricks is None else databricks.databricks_workspace_host,
    }
