"""The real host, as far as configuration files go: what is written, in which order, and what stays when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.fakes.certificates import Files, key_text, make_key
from tests.unit.builders import cluster, make_settings, parsed_spec, setting, wire_spec
from trio_compute.deadlines import Deadlines
from trio_compute.errors import HostError, SpecError
from trio_compute.host.run_as import RunAs
from trio_compute.model.spec import TlsConfig
from trio_compute.plan.conf_syntax import effective_settings
from trio_compute.plan.subscriptions import SUBSCRIBERS_ENABLED
from trio_compute.ports import Host

WITH_TLS = {"features": ["tls_experimental"]}
SWITCH = "neon.disable_logical_replication_subscribers"


def make_host(pgdata: Path, tls: TlsConfig | None = None, **changes: Any) -> Host:
    host = Host.__new__(Host)  # without the look for a Postgres
    host.settings = make_settings(pgdata=pgdata, deadlines=Deadlines(certificate=0.1), **changes)
    host.run_as = RunAs()
    host.tls = tls
    return host


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.write("P-256")
    return files


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    directory = tmp_path / "pgdata"
    directory.mkdir()
    return directory


async def test_the_certificate_is_in_place_before_the_file_that_names_it(pgdata: Path, files: Files) -> None:
    """F-02, F-23."""
    await make_host(pgdata, files.tls).write_postgresql_conf(parsed_spec(**WITH_TLS))
    assert sorted(path.name for path in pgdata.iterdir()) == ["postgresql.conf", "server.crt", "server.key"]
    assert {path.stat().st_mode & 0o777 for path in pgdata.iterdir()} == {0o600}
    assert effective_settings((pgdata / "postgresql.conf").read_text())["ssl"] == "on"


async def test_without_the_feature_there_is_no_tls(pgdata: Path, files: Files) -> None:
    """F-28."""
    files.key_path.unlink()
    await make_host(pgdata, files.tls).write_postgresql_conf(parsed_spec())
    assert [path.name for path in pgdata.iterdir()] == ["postgresql.conf"]
    assert "ssl" not in effective_settings((pgdata / "postgresql.conf").read_text())


async def test_a_certificate_that_never_fits_leaves_the_old_file_whole(pgdata: Path, files: Files) -> None:
    """F-01, F-02."""
    (pgdata / "postgresql.conf").write_text("old = 1\n")
    files.key_path.write_bytes(key_text(make_key("P-256")))
    with pytest.raises(HostError, match="no usable key"):
        await make_host(pgdata, files.tls).write_postgresql_conf(parsed_spec(**WITH_TLS))
    assert (pgdata / "postgresql.conf").read_text() == "old = 1\n"


async def test_a_spec_that_cannot_be_rendered_touches_nothing(pgdata: Path, files: Files) -> None:
    """F-01, F-06, F-19."""
    host = make_host(pgdata, files.tls)
    parsed = parsed_spec(**WITH_TLS)
    broken = structs.replace(parsed, spec=wire_spec(**WITH_TLS, cluster=cluster(setting("work_mem", None))))
    with pytest.raises(SpecError, match="'work_mem'"):
        await host.write_postgresql_conf(broken)
    with pytest.raises(SpecError, match="'work_mem'"):
        host.require_startable(broken)
    host.require_startable(parsed)
    assert list(pgdata.iterdir()) == []


async def test_the_port_of_a_lakebase_compute_is_that_of_its_connection_url(pgdata: Path) -> None:
    host = make_host(pgdata, lakebase_mode=True, connstr="postgresql://a@h:4444/p")
    text = host.render_postgresql_conf(parsed_spec(cluster=cluster(setting("port", "1", "integer"))))
    assert effective_settings(text)["port"] == "4444"


async def test_subscribers_run_again_once_subscriptions_are_dropped(pgdata: Path) -> None:
    """F-09: at the start and after each reconfiguration; F-10: they are never stopped without need."""
    host = make_host(pgdata)
    parsed = parsed_spec(cluster=cluster(postgresql_conf=SUBSCRIBERS_ENABLED))
    path = pgdata / "postgresql.conf"
    for _ in range(2):
        await host.write_postgresql_conf(parsed, drop_subscriptions=True)
        assert effective_settings(path.read_text())[SWITCH] == "true"
        assert await host.enable_subscribers() is True
        assert effective_settings(path.read_text())[SWITCH] == "false"
        assert path.stat().st_mode & 0o777 == 0o600
        assert await host.enable_subscribers() is False
    await host.write_postgresql_conf(parsed)
    assert await host.enable_subscribers() is False
    path.unlink()
    with pytest.raises(HostError, match=r"cannot read .*postgresql\.conf"):
        await host.enable_subscribers()
