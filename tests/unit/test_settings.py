"""Command line and environment (contract 01 §1 and §2), and the exit codes of a command line that cannot be used."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import pq

from tests.unit.builders import make_settings
from trio_compute.cli import run_compute, run_subcommand
from trio_compute.deadlines import Deadlines
from trio_compute.errors import UsageError
from trio_compute.settings import LIBPQ_VARIABLES, Settings, child_environ, settings_from

REQUIRED = ["-D", "/data", "-C", "postgresql://admin@127.0.0.1:5432/postgres", "-i", "ep-1"]
CONFIG = ["-c", "/config.json"]


def parse(*argv: str, environ: dict[str, str] | None = None, source: bool = True) -> Settings:
    return settings_from([*REQUIRED, *(CONFIG if source else []), *argv], environ or {})


def refusal(*argv: str, source: bool = True) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*argv, source=source)
    return str(caught.value)


@pytest.fixture(autouse=True)
def garbage_is_collected_afterwards() -> Iterator[None]:
    yield
    gc.enable()


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = parse()
    assert settings.pgbin == "postgres"
    assert (settings.external_http_port, settings.internal_http_port) == (3080, 3081)
    assert settings.remote_ext_base_url is None
    assert settings.privileged_role_name == "neon_superuser"
    assert settings.cgroup == "neon-postgres"
    assert settings.filecache_connstr == (
        "host=localhost port=5432 dbname=postgres user=cloud_admin sslmode=disable application_name=vm-monitor"
    )
    assert settings.vm_monitor_addr == "0.0.0.0:10301"
    assert settings.resize_swap_on_bind is False
    assert settings.set_disk_quota_for_fs is None
    assert settings.control_plane_uri is None
    assert settings.installed_extensions_collection_interval == 3600
    assert settings.dev is False
    assert settings.pg_init_timeout == 60
    assert settings.lakebase_mode is False
    assert settings.run_as is None
    assert settings.log_filter == "info"
    assert settings.build_tag == "latest"
    assert settings.otel_disabled is False
    assert settings.autoscaling is False
    assert settings.control_plane_token is None
    assert settings.basebackup_retries == 10


FLAGS: list[tuple[str, str | None, str, Any]] = [
    ("--pgbin", "/opt/pg/bin/postgres", "pgbin", "/opt/pg/bin/postgres"),
    ("-b", "/opt/pg/bin/postgres", "pgbin", "/opt/pg/bin/postgres"),
    ("--remote-ext-base-url", "https://h", "remote_ext_base_url", "https://h/"),
    ("-r", "https://h//", "remote_ext_base_url", "https://h/"),
    ("-r", "https://h/sub", "remote_ext_base_url", "https://h/sub/"),
    ("--external-http-port", "0", "external_http_port", 0),
    ("--external-http-port", "65535", "external_http_port", 65535),
    ("--internal-http-port", "4001", "internal_http_port", 4001),
    ("--privileged-role-name", "a_z", "privileged_role_name", "a_z"),
    ("--cgroup", "group", "cgroup", "group"),
    ("--filecache-connstr", "host=x", "filecache_connstr", "host=x"),
    ("--vm-monitor-addr", "1.2.3.4:5", "vm_monitor_addr", "1.2.3.4:5"),
    ("--resize-swap-on-bind", None, "resize_swap_on_bind", True),
    ("--set-disk-quota-for-fs", "/mnt", "set_disk_quota_for_fs", "/mnt"),
    ("--installed-extensions-collection-interval", "0", "installed_extensions_collection_interval", 0),
    (
        "--installed-extensions-collection-interval",
        str(2**64 - 1),
        "installed_extensions_collection_interval",
        2**64 - 1,
    ),
    ("--dev", None, "dev", True),
    ("--pg-init-timeout", "5", "pg_init_timeout", 5),
    ("--lakebase-mode", "true", "lakebase_mode", True),
    ("--lakebase-mode", "false", "lakebase_mode", False),
]


@pytest.mark.parametrize(("flag", "value", "name", "expected"), FLAGS)
def test_each_flag_sets_its_value(flag: str, value: str | None, name: str, expected: object) -> None:
    assert getattr(parse(flag, *([] if value is None else [value])), name) == expected
    if value is not None and flag.startswith("--"):
        assert getattr(parse(f"{flag}={value}"), name) == expected


@pytest.mark.parametrize(
    ("short", "long", "name"),
    [("-D", "--pgdata", "pgdata"), ("-C", "--connstr", "connstr"), ("-i", "--compute-id", "compute_id")],
)
def test_the_required_flags_have_short_and_long_names(short: str, long: str, name: str) -> None:
    argv = [long if word == short else word for word in REQUIRED]
    assert getattr(settings_from([*argv, *CONFIG], {}), name) == getattr(parse(), name)


@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        (("-c", "--config"), "config_path", Path("/x")),
        (("-p", "--control-plane-uri"), "control_plane_uri", "/x"),
        (("-S", "--spec-path"), "spec_path", Path("/x")),
        (("-s", "--spec"), "spec_json", "/x"),
    ],
)
def test_each_source_of_a_spec_has_a_short_and_a_long_name(flags: tuple[str, str], name: str, expected: object) -> None:
    for flag in flags:
        assert getattr(parse(flag, "/x", source=False), name) == expected


@pytest.mark.parametrize("flag", ["--pgdata", "--connstr", "--compute-id"])
def test_a_missing_required_flag_is_named(flag: str) -> None:
    short = {"--pgdata": "-D", "--connstr": "-C", "--compute-id": "-i"}[flag]
    at = REQUIRED.index(short)
    with pytest.raises(UsageError, match=flag):
        settings_from([*REQUIRED[:at], *REQUIRED[at + 2 :], *CONFIG], {})


def test_a_source_of_the_spec_is_needed() -> None:
    """B-01: the original panics; both flags are named."""
    message = refusal(source=False)
    assert "--config" in message
    assert "--control-plane-uri" in message


@pytest.mark.parametrize("pair", [("-c", "-p"), ("-c", "-S"), ("-c", "-s"), ("-p", "-S"), ("-p", "-s"), ("-S", "-s")])
def test_two_sources_of_the_spec_conflict(pair: tuple[str, str]) -> None:
    assert "not allowed with" in refusal(pair[0], "x", pair[1], "y", source=False)


def test_http_port_counts_in_lakebase_mode_only() -> None:
    lakebase = parse("--http-port", "4000", "--lakebase-mode", "true")
    assert (lakebase.external_http_port, lakebase.internal_http_port) == (4000, 4001)
    ignored = parse("--http-port", "4000")
    assert (ignored.external_http_port, ignored.internal_http_port) == (3080, 3081)


@pytest.mark.parametrize(("flag", "default"), [("--external-http-port", "3080"), ("--internal-http-port", "3081")])
def test_http_port_conflicts_with_an_explicit_port_even_its_default(flag: str, default: str) -> None:
    message = refusal("--http-port", "4000", flag, default)
    assert "--http-port" in message
    assert flag in message


def test_the_highest_http_port_leaves_none_for_the_internal_server() -> None:
    """B-03: the original overflows."""
    assert "65535" in refusal("--http-port", "65535", "--lakebase-mode", "true")


@pytest.mark.parametrize(
    "argv",
    [
        ["--unknown"],
        ["positional"],
        ["--extern", "4000"],
        ["--external-http-port", "65536"],
        ["--external-http-port", "-1"],
        ["--external-http-port", "8o"],
        ["--external-http-port", "9" * 5000],
        ["--external-http-port", "²"],
        ["--external-http-port", ""],
        ["--external-http-port"],
        ["--internal-http-port", "1.0"],
        ["--http-port", "99999"],
        ["--external-http-port", "3081"],
        ["--installed-extensions-collection-interval", "-1"],
        ["--installed-extensions-collection-interval", str(2**64)],
        ["--installed-extensions-collection-interval", "9" * 5000],
        ["--pg-init-timeout", "soon"],
        ["--lakebase-mode"],
        ["--lakebase-mode", "yes"],
        ["--lakebase-mode", "--dev"],
        ["--dev=true"],
        ["--fast-stop-timeout", "0"],
        ["--fast-stop-timeout", "nan"],
        ["-r", "not a url"],
        ["-r", "https://[::1"],
    ],
    ids=lambda argv: " ".join(argv)[:60],
)
def test_a_command_line_that_cannot_be_used_ends_with_2(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_compute([*REQUIRED, *CONFIG, *argv], prog="compute_ctl") == 2
    message = capfd.readouterr().err
    assert message.startswith("compute_ctl: error: ")
    assert argv[0].partition("=")[0] in message
    assert "Traceback" not in message
    assert len(message) < 400


@pytest.mark.parametrize("name", ["", "Neon", "neon superuser", "neon-superuser", "neon1", "neon\n", "név"])
def test_a_privileged_role_name_is_lower_case_letters_and_underscores(name: str) -> None:
    message = refusal("--privileged-role-name", name)
    assert "--privileged-role-name can only contain lowercase letters and underscores" in message


def test_a_privileged_role_name_that_postgres_would_cut_is_refused() -> None:
    assert "longer than 63 bytes" in refusal("--privileged-role-name", "x" * 64)


@pytest.mark.parametrize("url", ["https://h/?a=b", "https://h?a=b", "https://h/x?a"])
def test_the_extension_url_may_have_no_parameters(url: str) -> None:
    assert "parameters detected in remote extensions base URL" in refusal("-r", url)


def test_an_empty_compute_id_is_refused() -> None:
    with pytest.raises(UsageError, match="--compute-id"):
        settings_from(["-D", "/d", "-C", "x", "-i", " ", *CONFIG], {})


def test_help_ends_with_0(capfd: pytest.CaptureFixture[str]) -> None:
    for flag in ("-h", "--help"):
        with pytest.raises(SystemExit) as caught:
            run_compute([flag], prog="compute_ctl")
        assert caught.value.code == 0
    text = capfd.readouterr().out
    for flag in ("--pgdata", "--http-port", "--lakebase-mode", "--set-disk-quota-for-fs"):
        assert flag in text


def test_an_unknown_subcommand_ends_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_subcommand(["nonsense"]) == 2
    assert "nonsense" in capfd.readouterr().err
    assert run_subcommand(["run"]) == 2


def test_a_mistyped_flag_does_not_show_the_spec_that_followed_it(capfd: pytest.CaptureFixture[str]) -> None:
    """01 §1.4: the JSON of a spec is never logged."""
    spec = '{"storage_auth_token": "hunter2hunter2"}'
    for argv in (["--sepc", spec], [spec], [f"--sepc={spec}"], ["--external-http-port", spec]):
        assert run_compute([*REQUIRED, *CONFIG, *argv], prog="compute_ctl") == 2
        assert "hunter2" not in capfd.readouterr().err


ENVIRONMENT: list[tuple[str, str, str, Any]] = [
    ("POSTGRES_PATH", "/pg/bin/postgres", "pgbin", "/pg/bin/postgres"),
    ("RUST_LOG", "debug", "log_filter", "debug"),
    ("TRIO_COMPUTE_LOG", "warn", "log_filter", "warn"),
    ("COMPUTE_CTL_LOG_DIRECTORY", "/logs", "log_directory", Path("/logs")),
    ("OTEL_SDK_DISABLED", "true", "otel_disabled", True),
    ("OTEL_SDK_DISABLED", "1", "otel_disabled", False),
    ("OTEL_SDK_DISABLED", "TRUE", "otel_disabled", False),
    ("TRACEPARENT", "00-a-b-01", "traceparent", "00-a-b-01"),
    ("TRACESTATE", "a=b", "tracestate", "a=b"),
    ("INSTANCE_ID", "inst", "instance_id", "inst"),
    ("NEON_CONTROL_PLANE_TOKEN", "token", "control_plane_token", "token"),
    ("AUTOSCALING", "", "autoscaling", True),
    ("AUTOSCALING", "false", "autoscaling", True),
    ("PGBOUNCER_PASSWORD", "pw", "pgbouncer_password", "pw"),
    ("AUDIT_LOGGING_ENDPOINT", "h:1", "audit_logging_endpoint", "h:1"),
    ("AUDIT_LOGGING_TLS_ENDPOINT", "h:2", "audit_logging_tls_endpoint", "h:2"),
    ("BUILD_TAG", "release-1", "build_tag", "release-1"),
    ("BUILD_TAG", "", "build_tag", "latest"),
]


@pytest.mark.parametrize(("variable", "text", "name", "expected"), ENVIRONMENT)
def test_each_variable_sets_its_value(variable: str, text: str, name: str, expected: object) -> None:
    assert getattr(parse(environ={variable: text}), name) == expected


def test_the_command_line_beats_the_environment() -> None:
    assert parse("--pgbin", "/mine", environ={"POSTGRES_PATH": "/theirs"}).pgbin == "/mine"
    assert parse(environ={"RUST_LOG": "error", "TRIO_COMPUTE_LOG": "debug"}).log_filter == "debug"


def test_failpoints_and_test_variables_count_only_behind_the_test_switch() -> None:
    environ = {"FAILPOINTS": "a=panic", "NEON_COMPUTE_TESTING_BASEBACKUP_RETRIES": "3"}
    assert (parse(environ=environ).failpoints, parse(environ=environ).basebackup_retries) == (None, 10)
    testing = parse("--testing", environ=environ)
    assert (testing.failpoints, testing.basebackup_retries) == ("a=panic", 3)


@pytest.mark.parametrize("text", ["", "x", "-1", "65536", "1.0", "9" * 5000, "²"])
def test_a_bad_number_of_basebackup_retries_is_ignored(text: str) -> None:
    environ = {"NEON_COMPUTE_TESTING_BASEBACKUP_RETRIES": text}
    assert parse("--testing", environ=environ).basebackup_retries == 10


@pytest.mark.parametrize(
    ("lakebase", "instance_id", "bypassed"),
    [
        ("true", "inst", True),
        ("true", "", False),
        ("true", None, False),
        ("false", "inst", False),
        ("false", "", False),
    ],
)
def test_authentication_is_bypassed_only_in_lakebase_mode_with_an_instance_id(
    lakebase: str, instance_id: str | None, bypassed: bool
) -> None:
    """B-04: in the original the mere presence of INSTANCE_ID switches authentication off."""
    environ = {} if instance_id is None else {"INSTANCE_ID": instance_id}
    assert parse("--lakebase-mode", lakebase, environ=environ).auth_bypassed is bypassed


def test_a_control_plane_token_that_is_not_set_is_none() -> None:
    """B-05: without a token there is nothing to put into a header."""
    assert not parse().control_plane_token
    assert not parse(environ={"NEON_CONTROL_PLANE_TOKEN": ""}).control_plane_token


def test_children_get_no_libpq_variables_and_no_failpoints() -> None:
    environ = {"PGOPTIONS": "-c x=y", "PGSERVICE": "s", "PGPASSFILE": "f", "PGTZ": "UTC", "FAILPOINTS": "a=b"}
    kept = {"PATH": "/bin", "PGBOUNCER_PASSWORD": "p", "HOME": "/", "PGDATA": "/d"}
    assert child_environ(environ | kept) == kept
    assert parse(environ=environ | {"PATH": "/bin"}).child_environ == {"PATH": "/bin"}


def test_every_variable_that_libpq_itself_lists_is_dropped() -> None:
    listed = {option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar}
    others = {
        "PGSERVICEFILE",
        "PGSYSCONFDIR",
        "PGLOCALEDIR",
        "PGDATESTYLE",
        "PGTZ",
        "PGGEQO",
        "PGREQUIRESSL",
        "PGSSLCRLDIR",
    }
    assert listed | others <= LIBPQ_VARIABLES
    assert "PGDATA" not in LIBPQ_VARIABLES


def test_secrets_are_known_and_not_in_the_repr() -> None:
    settings = parse(
        environ={"NEON_CONTROL_PLANE_TOKEN": "cp-secret", "PGBOUNCER_PASSWORD": "pgb-secret", "X": "child-secret"}
    )
    settings = make_settings(
        control_plane_token=settings.control_plane_token,
        pgbouncer_password=settings.pgbouncer_password,
        child_environ=settings.child_environ,
        connstr="postgresql://admin:conn%2Dsecret@h/db",
        spec_json='{"storage_auth_token": "json-secret"}',
    )
    assert {"cp-secret", "pgb-secret", "conn%2Dsecret", "conn-secret"} <= set(settings.secrets())
    for text in (repr(settings), str(settings), f"{settings}"):
        assert "secret" not in text


@pytest.mark.parametrize("connstr", ["", "nonsense", "host=h user=u", "postgresql://[::1/db", "postgresql://u:p@[x/db"])
def test_a_strange_connection_string_does_not_stop_us_from_listing_secrets(connstr: str) -> None:
    assert all(make_settings(connstr=connstr).secrets())


def test_the_time_limits_are_those_of_the_contract() -> None:
    limits = Deadlines()
    assert limits.postgres_ready == 60
    assert limits.quit_stop == 5
    assert (limits.signal_stop, limits.signal_kill) == (8, 1)
    assert limits.final_sync == 120
    assert (limits.linger, limits.brief_linger) == (30, 0.3)
    assert limits.safekeeper_check == 0.1
    assert limits.pageserver_connect == 10
    assert limits.pageserver_idle > 300


def test_the_time_limits_can_be_set() -> None:
    """04 F-21: readiness too."""
    argv = ["--postgres-ready-timeout", "1", "--fast-stop-timeout", "2.5", "--quit-stop-timeout", "3"]
    limits = parse(*argv, "--final-sync-timeout", "4", "--certificate-timeout", "5").deadlines
    assert (limits.postgres_ready, limits.fast_stop, limits.quit_stop, limits.final_sync) == (1, 2.5, 3, 4)
    assert limits.certificate == 5


def test_sessions_that_are_no_activity_can_be_added_to() -> None:
    """06 R-07: both flags may be repeated; none are given by default."""
    flags = ["--activity-exclude-user", "exporter", "--activity-exclude-user", "probe"]
    settings = parse(*flags, "--activity-exclude-application", "pg_receivewal")
    assert settings.activity_exclude_users == ("exporter", "probe")
    assert settings.activity_exclude_applications == ("pg_receivewal",)
    assert (parse().activity_exclude_users, parse().activity_exclude_applications) == ((), ())


def test_password_hashes_are_shown_unless_a_flag_hides_them() -> None:
    """03 A-08."""
    assert parse().hide_password_hashes is False
    assert parse("--hide-password-hashes").hide_password_hashes is True


def test_a_relative_data_directory_is_made_absolute() -> None:
    assert settings_from(["-D", "data", *REQUIRED[2:], *CONFIG], {}).pgdata == Path.cwd() / "data"


def test_the_process_drops_libpq_variables_and_maps_errors_to_exit_codes(tmp_path: Path) -> None:
    """01 §2, §3: PG* variables do not reach any connection; a missing Postgres binary ends with 1."""
    script = (
        "import os, sys\n"
        "from trio_compute.cli import run_compute\n"
        "code = run_compute(sys.argv[1:], prog='compute_ctl')\n"
        "print(code, sorted({'PGOPTIONS', 'PGSERVICE', 'PGPASSWORD', 'FAILPOINTS'} & set(os.environ)))\n"
    )
    argv = ["--external-http-port", "0", "--internal-http-port", "0", "--pgbin", str(tmp_path / "nowhere")]
    process = subprocess.run(
        [sys.executable, "-c", script, *REQUIRED, *CONFIG, *argv],
        env=os.environ | {"PGOPTIONS": "-c a=b", "PGSERVICE": "x", "PGPASSWORD": "hunter2hunter2", "FAILPOINTS": "a=b"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert process.stdout == "1 []\n"
    assert "cannot start" in process.stderr
    assert "nowhere" in process.stderr
    assert "hunter2" not in process.stderr
    assert "Traceback" not in process.stderr
