"""Settings of one process: the only reader of argv and of the environment (contract 01 §1 and §2)."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from trio_compute.conninfo import passwords
from trio_compute.deadlines import Deadlines
from trio_compute.errors import UsageError
from trio_compute.trace_settings import TraceSettings, trace_settings

DEFAULT_EXTERNAL_PORT = 3080
DEFAULT_INTERNAL_PORT = 3081
DEFAULT_FILECACHE_CONNSTR = (
    "host=localhost port=5432 dbname=postgres user=cloud_admin sslmode=disable application_name=vm-monitor"
)

# What libpq would read behind our back; every connection of ours names its parameters itself (contract 01 §2).
LIBPQ_VARIABLES = frozenset(
    f"PG{name}"
    for name in (
        *("HOST", "HOSTADDR", "PORT", "DATABASE", "USER", "PASSWORD", "PASSFILE", "SERVICE", "SERVICEFILE", "OPTIONS"),
        *("APPNAME", "SSLMODE", "REQUIRESSL", "SSLNEGOTIATION", "SSLCOMPRESSION", "SSLCERT", "SSLKEY", "SSLCERTMODE"),
        *("SSLROOTCERT", "SSLCRL", "SSLCRLDIR", "SSLSNI", "REQUIREPEER", "REQUIREAUTH", "KRBSRVNAME", "GSSENCMODE"),
        *("GSSLIB", "GSSDELEGATION", "CONNECT_TIMEOUT", "CLIENTENCODING", "TARGETSESSIONATTRS", "LOADBALANCEHOSTS"),
        *("SYSCONFDIR", "LOCALEDIR", "CHANNELBINDING", "MINPROTOCOLVERSION", "MAXPROTOCOLVERSION", "DATESTYLE", "TZ"),
        *("GEQO", "SSLMINPROTOCOLVERSION", "SSLMAXPROTOCOLVERSION"),
    )
)

_NUMBER = re.compile(r"\A[0-9]{1,20}\Z")
_LONGEST_USAGE_ERROR = 300
_PRIVILEGED_ROLE = re.compile(r"\A[a-z_]+\Z")
_LONGEST_ROLE_NAME = 63


class Settings(Struct, frozen=True, kw_only=True):
    """Hold what the command line and the environment said, validated."""

    compute_id: str
    pgdata: Path
    connstr: str
    pgbin: str = "postgres"
    config_path: Path | None = None
    control_plane_uri: str | None = None
    spec_json: str | None = None
    spec_path: Path | None = None
    external_http_port: int = DEFAULT_EXTERNAL_PORT
    internal_http_port: int = DEFAULT_INTERNAL_PORT
    internal_http_bind: tuple[str, ...] = ("127.0.0.1", "::1")
    remote_ext_base_url: str | None = None
    privileged_role_name: str = "neon_superuser"
    cgroup: str = "neon-postgres"
    filecache_connstr: str = DEFAULT_FILECACHE_CONNSTR
    vm_monitor_addr: str = "0.0.0.0:10301"
    resize_swap_on_bind: bool = False
    set_disk_quota_for_fs: str | None = None
    activity_exclude_users: tuple[str, ...] = ()
    activity_exclude_applications: tuple[str, ...] = ()
    hide_password_hashes: bool = False
    installed_extensions_collection_interval: int = 3600
    dev: bool = False
    pg_init_timeout: int = 60
    lakebase_mode: bool = False
    run_as: str | None = None
    testing: bool = False
    log_filter: str = "info"
    log_directory: Path | None = None
    otel_disabled: bool = False
    traceparent: str | None = None
    tracestate: str | None = None
    traces: TraceSettings = TraceSettings()
    instance_id: str | None = None
    control_plane_token: str | None = None
    autoscaling: bool = False
    pgbouncer_password: str | None = None
    audit_logging_endpoint: str | None = None
    audit_logging_tls_endpoint: str | None = None
    build_tag: str = "latest"
    failpoints: str | None = None
    basebackup_retries: int = 10
    pgbouncer_pid_file: Path = Path("/tmp/pgbouncer.pid")  # noqa: S108  (pgbouncer writes it there, contract 02 §10.5)
    local_proxy_pid_file: Path = Path("/etc/local_proxy/pid")
    child_environ: Mapping[str, str] = {}
    deadlines: Deadlines = Deadlines()

    def __repr__(self) -> str:
        return f"Settings(compute_id={self.compute_id!r}, pgdata={str(self.pgdata)!r})"

    @property
    def auth_bypassed(self) -> bool:
        """Tell whether the external API needs no token: lakebase mode with an instance id (contract 01 B-04)."""
        return self.lakebase_mode and bool(self.instance_id)

    def secrets(self) -> tuple[str, ...]:
        """Return the values that must never be printed."""
        known = (self.control_plane_token, self.pgbouncer_password, *passwords(self.connstr), *self.traces.secrets())
        return tuple(secret for secret in known if secret)


class _Parser(argparse.ArgumentParser):
    """Raise instead of printing, so that one place decides how a usage error looks and ends."""

    def error(self, message: str) -> None:  # type: ignore[override]
        # argparse repeats what it does not understand, which may be the JSON of a spec after a mistyped --spec.
        shown, brace, _ = message.partition("{")
        raise UsageError((shown + ("{…" if brace else ""))[:_LONGEST_USAGE_ERROR])


def add_arguments(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Declare the flags of compute_ctl on a parser (contract 01 §1)."""
    add = parser.add_argument
    add("-b", "--pgbin", default=environ.get("POSTGRES_PATH") or "postgres", help="Postgres binary (env POSTGRES_PATH)")
    add("-D", "--pgdata", metavar="DATADIR", type=Path, required=True, help="data directory; wiped on every start")
    add("-C", "--connstr", metavar="DATABASE_URL", required=True, help="superuser connection, as URL or keywords")
    add("-i", "--compute-id", required=True, help="identity of this compute")
    source = parser.add_argument_group("where the spec comes from (one is needed)")
    add = source.add_mutually_exclusive_group().add_argument
    add("-c", "--config", metavar="FILE", type=Path, help="config.json; read again on refresh")
    add("-p", "--control-plane-uri", metavar="CONTROL_PLANE_API_BASE_URL", help="fetch the config from here")
    add("-S", "--spec-path", metavar="FILE", type=Path, help="file with a bare or wrapped spec (older form)")
    add("-s", "--spec", metavar="JSON", help="bare or wrapped spec (older form)")
    http = parser.add_argument_group("HTTP")
    add = http.add_argument
    add("--external-http-port", type=_port, help=f"external server (default {DEFAULT_EXTERNAL_PORT})")
    add("--internal-http-port", type=_port, help=f"internal server (default {DEFAULT_INTERNAL_PORT})")
    add("--http-port", type=_port, help="lakebase mode: external port; internal is the next one")
    add("--internal-http-bind", metavar="ADDR", action="append", help="bind the internal server here, not to loopback")
    add(
        "--hide-password-hashes", action="store_true", help="answer /dbs_and_roles without the password hashes of roles"
    )
    _add_postgres_arguments(parser)
    _add_activity_arguments(parser)
    _add_limit_arguments(parser)


def _add_postgres_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("Postgres and its host").add_argument
    add("-r", "--remote-ext-base-url", metavar="URL", type=_remote_ext_base_url, help="remote extension gateway")
    add("--privileged-role-name", type=_privileged_role_name, default="neon_superuser", help="default neon_superuser")
    add("--cgroup", default="neon-postgres", help="control group of Postgres in a VM (default neon-postgres)")
    add("--filecache-connstr", metavar="CONNINFO", default=DEFAULT_FILECACHE_CONNSTR, help="vm-monitor's connection")
    add("--vm-monitor-addr", metavar="ADDR", default="0.0.0.0:10301", help="default 0.0.0.0:10301")
    add("--resize-swap-on-bind", action="store_true", help="resize swap when a spec with swap_size_bytes arrives")
    add("--set-disk-quota-for-fs", metavar="MOUNTPOINT", help="set the quota when a spec with disk_quota_bytes arrives")
    add(
        "--installed-extensions-collection-interval",
        metavar="SECONDS",
        type=_unsigned,
        default=3600,
        help="default 3600",
    )
    add("--dev", action="store_true", help="leave pgbouncer and local_proxy alone at the end")
    add(
        "--pg-init-timeout",
        metavar="SECONDS",
        type=_unsigned,
        default=60,
        help="lakebase start-up watchdog (default 60)",
    )
    add("--lakebase-mode", metavar="true|false", type=_boolean, default=False, help="default false")
    add("--run-as", metavar="USER", help="user of Postgres when started as root (default: postgres if it exists)")
    add("--testing", action="store_true", help="allow failpoints and test variables")


def _add_activity_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("whose sessions do not keep the compute awake (may be repeated)").add_argument
    add("--activity-exclude-user", metavar="NAME", action="append", help="a role, besides cloud_admin")
    add(
        "--activity-exclude-application",
        metavar="NAME",
        action="append",
        help="an application_name, of clients and of WAL receivers, besides walproposer",
    )


def _add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    limits = Deadlines()
    add = parser.add_argument_group("time limits, in seconds").add_argument
    add("--postgres-ready-timeout", type=_seconds, default=limits.postgres_ready, help="start to ready (default 60)")
    add("--fast-stop-timeout", type=_seconds, default=limits.fast_stop, help="SIGINT to SIGQUIT (default 60)")
    add("--quit-stop-timeout", type=_seconds, default=limits.quit_stop, help="SIGQUIT to SIGKILL (default 5)")
    add("--catalog-lock-timeout", type=_seconds, default=limits.catalog_lock, help="wait for a lock (default 30)")
    add(
        "--catalog-statement-timeout",
        type=_seconds,
        default=limits.catalog_statement,
        help="one statement of the catalog (default 120)",
    )
    add("--final-sync-timeout", type=_seconds, default=limits.final_sync, help="last safekeeper sync (default 120)")
    add("--certificate-timeout", type=_seconds, default=limits.certificate, help="wait for TLS files (default 60)")


def settings_from(
    argv: Sequence[str], environ: Mapping[str, str] | None = None, *, prog: str = "compute_ctl"
) -> Settings:
    """Return the settings that argv and environ describe; raise UsageError naming the flag at fault."""
    environ = os.environ if environ is None else environ
    parser = _Parser(prog=prog, description="Run one Neon compute node.", allow_abbrev=False)
    add_arguments(parser, environ)
    return settings_of(parser.parse_args(list(argv)), environ)


def settings_of(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Turn parsed arguments and the environment into settings; raise UsageError for what argparse cannot see."""
    if not (args.config or args.control_plane_uri or args.spec_path or args.spec):
        raise UsageError("no spec source: give --config FILE or --control-plane-uri URL")
    if not args.compute_id.strip():
        raise UsageError("--compute-id is empty")
    external_port, internal_port = _ports(args)
    testing = args.testing
    return Settings(
        compute_id=args.compute_id,
        pgdata=args.pgdata.absolute(),
        connstr=args.connstr,
        pgbin=args.pgbin,
        config_path=args.config,
        control_plane_uri=args.control_plane_uri,
        spec_json=args.spec,
        spec_path=args.spec_path,
        external_http_port=external_port,
        internal_http_port=internal_port,
        internal_http_bind=tuple(args.internal_http_bind or ("127.0.0.1", "::1")),
        remote_ext_base_url=args.remote_ext_base_url,
        privileged_role_name=args.privileged_role_name,
        cgroup=args.cgroup,
        filecache_connstr=args.filecache_connstr,
        vm_monitor_addr=args.vm_monitor_addr,
        resize_swap_on_bind=args.resize_swap_on_bind,
        set_disk_quota_for_fs=args.set_disk_quota_for_fs,
        activity_exclude_users=tuple(args.activity_exclude_user or ()),
        activity_exclude_applications=tuple(args.activity_exclude_application or ()),
        hide_password_hashes=args.hide_password_hashes,
        installed_extensions_collection_interval=args.installed_extensions_collection_interval,
        dev=args.dev,
        pg_init_timeout=args.pg_init_timeout,
        lakebase_mode=args.lakebase_mode,
        run_as=args.run_as,
        testing=testing,
        log_filter=environ.get("TRIO_COMPUTE_LOG") or environ.get("RUST_LOG") or "info",
        log_directory=Path(environ["COMPUTE_CTL_LOG_DIRECTORY"]) if environ.get("COMPUTE_CTL_LOG_DIRECTORY") else None,
        otel_disabled=environ.get("OTEL_SDK_DISABLED") == "true",
        traceparent=environ.get("TRACEPARENT"),
        tracestate=environ.get("TRACESTATE"),
        traces=trace_settings(environ),
        instance_id=environ.get("INSTANCE_ID"),
        control_plane_token=environ.get("NEON_CONTROL_PLANE_TOKEN"),
        autoscaling="AUTOSCALING" in environ,
        pgbouncer_password=environ.get("PGBOUNCER_PASSWORD"),
        audit_logging_endpoint=environ.get("AUDIT_LOGGING_ENDPOINT"),
        audit_logging_tls_endpoint=environ.get("AUDIT_LOGGING_TLS_ENDPOINT"),
        build_tag=environ.get("BUILD_TAG") or "latest",
        failpoints=environ.get("FAILPOINTS") if testing else None,
        basebackup_retries=_basebackup_retries(environ) if testing else 10,
        child_environ=child_environ(environ),
        deadlines=_deadlines(args),
    )


def _deadlines(args: argparse.Namespace) -> Deadlines:
    return Deadlines(
        postgres_ready=args.postgres_ready_timeout,
        fast_stop=args.fast_stop_timeout,
        quit_stop=args.quit_stop_timeout,
        final_sync=args.final_sync_timeout,
        catalog_lock=args.catalog_lock_timeout,
        catalog_statement=args.catalog_statement_timeout,
        certificate=args.certificate_timeout,
    )


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for children: ours without libpq's variables and without failpoints."""
    return {name: value for name, value in environ.items() if name not in LIBPQ_VARIABLES and name != "FAILPOINTS"}


def _ports(args: argparse.Namespace) -> tuple[int, int]:
    if args.http_port is not None:
        for flag, value in (
            ("--external-http-port", args.external_http_port),
            ("--internal-http-port", args.internal_http_port),
        ):
            if value is not None:
                raise UsageError(f"--http-port cannot be used with {flag}")
        if args.http_port == 65535:
            raise UsageError("--http-port 65535 leaves no port for the internal server")
        if args.lakebase_mode:
            return args.http_port, args.http_port + 1
    external = DEFAULT_EXTERNAL_PORT if args.external_http_port is None else args.external_http_port
    internal = DEFAULT_INTERNAL_PORT if args.internal_http_port is None else args.internal_http_port
    if external == internal and external != 0:
        raise UsageError("--external-http-port and --internal-http-port are the same")
    return external, internal


def _basebackup_retries(environ: Mapping[str, str]) -> int:
    text = environ.get("NEON_COMPUTE_TESTING_BASEBACKUP_RETRIES", "")
    return int(text) if _NUMBER.match(text) and int(text) <= 65535 else 10


def _port(text: str) -> int:
    if _NUMBER.match(text) is None or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _unsigned(text: str) -> int:
    if _NUMBER.match(text) is None or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r} is not an unsigned integer")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _boolean(text: str) -> bool:
    if text not in {"true", "false"}:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def _privileged_role_name(text: str) -> str:
    if _PRIVILEGED_ROLE.match(text) is None:
        raise argparse.ArgumentTypeError("--privileged-role-name can only contain lowercase letters and underscores")
    if len(text) > _LONGEST_ROLE_NAME:
        raise argparse.ArgumentTypeError(f"--privileged-role-name is longer than {_LONGEST_ROLE_NAME} bytes")
    return text


def _remote_ext_base_url(text: str) -> str:
    parts = urlsplit(text)
    if not parts.scheme or not parts.netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL")
    if parts.query:
        raise argparse.ArgumentTypeError("parameters detected in remote extensions base URL")
    return text.rstrip("/") + "/"
