"""What a spec may say but hardly means: parts that contradict each other. Only `validate` asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trio_compute.model.catalog_rules import is_md5, is_plain
from trio_compute.model.conf_rules import conf_warnings, library_warnings
from trio_compute.model.jwk import key_fault
from trio_compute.model.problems import SETTINGS, Path, Problem, outcome, setting_path
from trio_compute.model.safekeepers import FIELD, SETTING, named_safekeepers, setting_warning, url_warning
from trio_compute.model.spec import ComputeConfig, ComputeSpec, ControlPlaneAnswer

MAX_NAME_BYTES = 63

_FALLBACKS = (
    *("tenant_id", "timeline_id", "pageserver_connstring", "endpoint_storage_addr", "endpoint_storage_token"),
    *("project_id", "branch_id", "endpoint_id"),
)


def contradictions(spec: ComputeSpec) -> Iterator[Problem]:
    """Yield the parts of a spec that contradict each other; all of them are accepted."""
    yield from _pageservers(spec)
    yield from _safekeepers(spec)
    yield from _fallbacks(spec)
    yield from _endpoint_storage(spec)
    yield from _repeated_names(spec)
    yield from _weak_verifiers(spec)
    for warning in conf_warnings(spec):
        hint = "leave one of the two out"
        also: tuple[Path, ...] = (("skip_pg_catalog_updates",),)
        yield Problem(path=("drop_subscriptions_before_start",), message=warning, hint=hint, also=also)
    for warning in library_warnings(spec):
        hint = "list them in cluster.settings, which counts more"
        yield Problem(path=("audit_log_level",), message=warning, hint=hint, also=(("cluster", "postgresql_conf"),))


def unusable_names(spec: ComputeSpec) -> Iterator[Problem]:
    """Yield the names of roles and databases that Postgres cannot hold, which fail a start."""
    roles, databases = spec.cluster.roles, spec.cluster.databases
    names = {"roles": [role.name for role in roles], "databases": [database.name for database in databases]}
    for kind, names_of_kind in names.items():
        for number, name in enumerate(names_of_kind):
            if not 1 <= len(name.encode(errors="replace")) <= MAX_NAME_BYTES or "\0" in name:
                yield Problem(
                    path=("cluster", kind, number, "name"),
                    message=f"the name must have 1 to {MAX_NAME_BYTES} bytes and no NUL",
                    hint="choose another name",
                )


def config_contradictions(config: ComputeConfig | ControlPlaneAnswer) -> Iterator[Problem]:
    """Yield what is doubtful around a spec, keys included; paths begin at the document."""
    for number, jwk in enumerate(config.compute_ctl_config.jwks.keys):
        if fault := key_fault(jwk):
            yield Problem(
                path=("compute_ctl_config", "jwks", "keys", number),
                message=f"the key is skipped: {fault}",
                hint="give an Ed25519 key (kty OKP), or an RSA key of at least 2048 bits with alg RS256",
            )
    tls = config.compute_ctl_config.tls
    if tls is not None and config.spec is not None and "tls_experimental" not in config.spec.features:
        yield Problem(
            path=("compute_ctl_config", "tls"),
            message="TLS files are named, but not used",
            hint="add tls_experimental to the features of the spec",
        )


def _pageservers(spec: ComputeSpec) -> Iterator[Problem]:
    info = spec.pageserver_connection_info
    if info is None or not spec.pageserver_connstring:
        return
    shards = [shard for _, shard in sorted(info.shards.items())]
    urls = [shard.pageservers[0].libpq_url if shard.pageservers else None for shard in shards]
    if urls != [part.strip() for part in spec.pageserver_connstring.split(",")]:
        yield Problem(
            path=("pageserver_connstring",),
            message="pageserver_connection_info and pageserver_connstring disagree; the former is used",
            hint="make them agree, or leave pageserver_connstring out",
        )
    elif info.shard_count and spec.shard_stripe_size not in {None, info.stripe_size}:
        yield Problem(
            path=("shard_stripe_size",),
            message="stripe_size of pageserver_connection_info and shard_stripe_size disagree; the former is used",
            hint="make them agree, or leave shard_stripe_size out",
        )


def _safekeepers(spec: ComputeSpec) -> Iterator[Problem]:
    if warning := setting_warning(spec):
        path = setting_path(spec, SETTING)
        yield Problem(path=path, message=warning, hint="leave the setting out", also=(FIELD,))
    named = outcome(named_safekeepers(spec))
    if named is None:
        return
    entries, path = named
    if warning := url_warning(entries):
        yield Problem(path=path, message=warning, hint="write host:port, which is all that counts")


def _fallbacks(spec: ComputeSpec) -> Iterator[Problem]:
    for name in _FALLBACKS:
        given, setting = getattr(spec, name), spec.cluster.setting(f"neon.{name}")
        if given is not None and setting is not None and given.lower() != setting.lower():
            yield Problem(
                path=setting_path(spec, f"neon.{name}"),
                message=f"{name} and setting neon.{name} disagree: the compute uses the former, Postgres the latter",
                hint="leave the setting out",
                also=((name,),),
            )


def _endpoint_storage(spec: ComputeSpec) -> Iterator[Problem]:
    needs: list[str] = []
    needs += ["autoprewarm"] if spec.autoprewarm else []
    needs += ["offload_lfc_interval_seconds"] if spec.offload_lfc_interval_seconds is not None else []
    parts = ("endpoint_storage_addr", "endpoint_storage_token")
    missing = [name for name in parts if not (getattr(spec, name) or spec.cluster.setting(f"neon.{name}"))]
    missing += [] if spec.endpoint_id else ["endpoint_id"]
    for name in needs if missing else []:
        yield Problem(
            path=(name,),
            message=f"{name} can do nothing without {' and '.join(missing)}",
            hint=f"give {' and '.join(missing)}, or leave {name} out",
            also=tuple((name,) for name in missing),
        )


def _repeated_names(spec: ComputeSpec) -> Iterator[Problem]:
    lists: tuple[tuple[Path, Iterable[str], str], ...] = (
        (("cluster", "roles"), (role.name for role in spec.cluster.roles), "the role"),
        (("cluster", "databases"), (database.name for database in spec.cluster.databases), "the database"),
        (SETTINGS, (option.name for option in spec.cluster.settings or ()), "the setting"),
    )
    for path, names, what in lists:
        seen: set[str] = set()
        for number, name in enumerate(names):
            if name in seen:
                yield Problem(
                    path=(*path, number, "name"),
                    message=f"{what} is listed more than once",
                    hint="keep one entry",
                )
            seen.add(name)


def _weak_verifiers(spec: ComputeSpec) -> Iterator[Problem]:
    """Yield the passwords that whoever reads them can log in with (T-20)."""
    for number, role in enumerate(spec.cluster.roles):
        password = role.encrypted_password or ""
        path = ("cluster", "roles", number, "encrypted_password")
        if is_plain(password):
            message = "the password is plain text: the compute makes a SCRAM verifier of it"
            yield Problem(path=path, message=message, hint="give a SCRAM-SHA-256 verifier")
        elif is_md5(password):
            yield Problem(
                path=path,
                message="the password is an md5 hash: members of pg_read_all_data can read it, and log in with it",
                hint="give a SCRAM-SHA-256 verifier, which shows nobody the way in",
            )
