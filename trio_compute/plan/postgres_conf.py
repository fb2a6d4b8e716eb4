"""The text of postgresql.conf, a pure function of its inputs (contract 04 §3)."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from trio_compute.errors import SpecError
from trio_compute.model.conf_rules import is_setting_name, shown_name
from trio_compute.model.ids import shard_index
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.spec import ComputeSpec, GenericOption, PageserverConnectionInfo
from trio_compute.plan.audit import audit_lines
from trio_compute.plan.conf_syntax import is_bare, quote
from trio_compute.plan.lakebase import lakebase_lines
from trio_compute.plan.tls import TLS_LINES

OVERRIDE_TEXT = "neon.max_cluster_size=-1\n"

_LOCALE_SETTINGS = ("lc_messages", "lc_monetary", "lc_time", "lc_numeric")
_IDENTITY_FIELDS = ("tenant_id", "timeline_id", "project_id", "branch_id", "endpoint_id")


class ConfContext(Struct, frozen=True, kw_only=True):
    """Hold what the file depends on besides the spec; `lakebase_port` is set in lakebase mode only."""

    privileged_role_name: str
    internal_http_port: int
    strict_overcommit: bool = False
    drop_subscriptions: bool = False
    tls: bool = False
    lakebase_port: int | None = None


def render_postgresql_conf(parsed: ParsedSpec, context: ConfContext) -> str:
    """Return the whole file; raise SpecError naming a setting that cannot be written."""
    spec = parsed.spec
    lines = [
        *([spec.cluster.postgresql_conf] if spec.cluster.postgresql_conf is not None else []),
        "# Neon storage settings",
        "",
        *_storage_lines(spec),
        *(TLS_LINES if context.tls else ()),
        *(f"{name}='C.UTF-8'" for name in _LOCALE_SETTINGS),
        *_mode_lines(parsed),
        *(["dynamic_shared_memory_type = mmap"] if context.strict_overcommit else []),
        f"neon.privileged_role_name={quote(context.privileged_role_name)}",
        *_managed_lines(spec.cluster.settings),
        *audit_lines(spec),
        f"neon.extension_server_port={context.internal_http_port}",
        f"neon.disable_logical_replication_subscribers={'true' if context.drop_subscriptions else 'false'}",
        *(["log_destination='stderr,syslog'"] if spec.logs_export_host is not None else []),
        *_lakebase_lines(spec, context.lakebase_port),
        "include_if_exists = 'compute_ctl_temp_override.conf'",
    ]
    text = "\n".join(lines) + "\n"
    if "\0" in text:
        raise SpecError("postgresql.conf would hold a NUL character")
    return text


def _storage_lines(spec: ComputeSpec) -> Iterator[str]:
    info = spec.pageserver_connection_info
    stripe_size = info.stripe_size if info is not None else spec.shard_stripe_size
    if stripe_size is not None:
        yield "# pages per stripe; must stand before the pageservers"
        yield f"neon.stripe_size={stripe_size}"
    if info is not None:
        urls = _libpq_urls(info)
        if urls is None:
            yield "# no neon.pageserver_connstring"
        else:
            yield "# from pageserver_connection_info"
            yield f"neon.pageserver_connstring={quote(','.join(urls))}"
    elif spec.pageserver_connstring is not None:
        yield "# from pageserver_connstring"
        yield f"neon.pageserver_connstring={quote(spec.pageserver_connstring)}"
    if spec.safekeeper_connstrings:
        generation = "" if spec.safekeepers_generation is None else f"g#{spec.safekeepers_generation}:"
        yield f"neon.safekeepers={quote(generation + ','.join(spec.safekeeper_connstrings))}"
    for name in _IDENTITY_FIELDS:
        value = getattr(spec, name)
        if value is not None:
            yield f"neon.{name}={quote(value)}"


def _libpq_urls(info: PageserverConnectionInfo) -> list[str] | None:
    shards = {index.lower(): shard for index, shard in info.shards.items()}
    urls = []
    for number in range(max(1, info.shard_count)):
        index = shard_index(number, info.shard_count)
        if index not in shards or not shards[index].pageservers:
            raise SpecError(f"shard {index} missing from pageserver_connection_info shard map")
        url = shards[index].pageservers[0].libpq_url
        if url is None:
            return None
        urls.append(url)
    return urls


def _mode_lines(parsed: ParsedSpec) -> Iterator[str]:
    yield f"neon.compute_mode={parsed.mode}"
    if not parsed.is_primary:
        yield "hot_standby=on"
    if parsed.mode == "static":
        yield f"recovery_target_lsn='{parsed.pinned_lsn}'"


def _managed_lines(settings: list[GenericOption] | None) -> Iterator[str]:
    if settings is None:
        return
    yield "# Managed by compute_ctl: begin"
    yield from [_managed_line(option) for option in settings] or [""]
    yield "# Managed by compute_ctl: end"


def _managed_line(option: GenericOption) -> str:
    if not is_setting_name(option.name):
        raise SpecError(f"setting {shown_name(option.name)} is not a valid name")
    if option.value is None:
        raise SpecError(f"setting {option.name!r} has no value")
    plain = option.vartype != "string" and is_bare(option.value)
    return f"{option.name} = {option.value if plain else quote(option.value)}"


def _lakebase_lines(spec: ComputeSpec, port: int | None) -> Iterator[str]:
    return iter(()) if port is None else lakebase_lines(port, spec.databricks_settings)
