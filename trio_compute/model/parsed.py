"""The spec after derivation and validation: what the rest of the program works with (contract 01 §9)."""

from __future__ import annotations

import re

from msgspec import Struct, structs

from trio_compute.conninfo import check_values, read_conninfo
from trio_compute.errors import SpecError
from trio_compute.model.addresses import grpc_address
from trio_compute.model.catalog_rules import catalog_problems, catalog_warnings
from trio_compute.model.conf_rules import conf_problems, conf_warnings, library_warnings
from trio_compute.model.ids import INVALID_LSN, Lsn, TenantId, TimelineId, is_hex_id, shard_index
from trio_compute.model.problems import SETTINGS, Path, Problem, Step, json_path, setting_path
from trio_compute.model.safekeepers import check_safekeepers, named_safekeepers, safekeeper_warnings
from trio_compute.model.spec import (
    ComputeSpec,
    Pageserver,
    PageserverConnectionInfo,
    PageserverProtocol,
    Shard,
    StaticMode,
)

_U32 = re.compile(r"\A[0-9]{1,10}\Z")


class ParsedSpec(Struct, frozen=True, kw_only=True):
    """Hold a spec whose identity and storage addresses are known to be complete."""

    spec: ComputeSpec
    tenant_id: TenantId
    timeline_id: TimelineId
    pageservers: PageserverConnectionInfo
    safekeepers: tuple[str, ...]
    endpoint_storage_addr: str | None
    endpoint_storage_token: str | None
    warnings: tuple[str, ...] = ()

    @property
    def mode(self) -> str:
        """Return `primary`, `static` or `replica`, as the setting `neon.compute_mode` spells it."""
        mode = self.spec.mode
        return "static" if isinstance(mode, StaticMode) else mode.lower()

    @property
    def is_primary(self) -> bool:
        """Tell whether this compute may write."""
        return self.spec.mode == "Primary"

    @property
    def pinned_lsn(self) -> Lsn:
        """Return the LSN of a static compute, else the invalid LSN."""
        mode = self.spec.mode
        return Lsn.parse(mode.lsn) if isinstance(mode, StaticMode) else INVALID_LSN


def parse_spec(spec: ComputeSpec) -> ParsedSpec:
    """Derive and validate a spec; raise SpecError with the contract's text at the first failure (contract 01 §9)."""
    steps = derive(spec)
    try:
        problem = next(steps)
    except StopIteration as end:
        parsed: ParsedSpec = end.value
        return parsed
    if problem.is_told_whole:
        raise SpecError(f"{problem.message} (hint: {problem.hint})", path=json_path(problem.path))
    raise SpecError(problem.message)


def problems(spec: ComputeSpec) -> list[Problem]:
    """Return every broken rule, in the order of the contract."""
    return list(derive(spec))


def derive(spec: ComputeSpec) -> Step[ParsedSpec | None]:
    """Yield every broken rule in the order of the contract; return the parsed spec if there is none."""
    pageservers = yield from _pageservers(spec)
    safekeepers = yield from named_safekeepers(spec)
    tenant_id = yield from _identity(spec, "tenant_id")
    timeline_id = yield from _identity(spec, "timeline_id")
    if safekeepers is not None:
        yield from check_safekeepers(spec, *safekeepers)
    if pageservers is not None:
        yield from _check_shards(pageservers, _given_as(spec))
    yield from catalog_problems(spec)
    yield from conf_problems(spec)
    if pageservers is None or safekeepers is None or tenant_id is None or timeline_id is None:
        return None
    return ParsedSpec(
        spec=spec,
        tenant_id=TenantId(tenant_id),
        timeline_id=TimelineId(timeline_id),
        pageservers=pageservers,
        safekeepers=safekeepers[0],
        endpoint_storage_addr=spec.endpoint_storage_addr or spec.cluster.setting("neon.endpoint_storage_addr"),
        endpoint_storage_token=spec.endpoint_storage_token or spec.cluster.setting("neon.endpoint_storage_token"),
        warnings=(
            *_contradictions(spec, pageservers),
            *safekeeper_warnings(spec, safekeepers[0]),
            *catalog_warnings(spec),
            *conf_warnings(spec),
            *library_warnings(spec),
        ),
    )


def shard_url(pageservers: PageserverConnectionInfo, shard: str, protocol: PageserverProtocol) -> str:
    """Return the URL of the first pageserver of a shard; raise SpecError when there is none (contract 01 §9)."""
    entry = pageservers.shards.get(shard)
    if entry is None:
        raise SpecError(f"shard connection info missing for shard {shard}")
    if not entry.pageservers:
        raise SpecError("must have at least one pageserver")
    first = entry.pageservers[0]
    url = first.libpq_url if protocol is PageserverProtocol.LIBPQ else first.grpc_url
    if not url:
        raise SpecError(f"no {protocol.value}_url for shard {shard}")
    return url


def shard_zero_url(pageservers: PageserverConnectionInfo) -> str:
    """Return the URL that serves basebackups, for the preferred protocol."""
    return shard_url(pageservers, shard_index(0, pageservers.shard_count), pageservers.prefer_protocol)


def _pageservers(spec: ComputeSpec) -> Step[PageserverConnectionInfo | None]:
    info = spec.pageserver_connection_info
    if info is not None:
        return structs.replace(info, shards={index.lower(): shard for index, shard in info.shards.items()})
    if spec.pageserver_connstring is not None:
        path: Path = ("pageserver_connstring",)
        return (yield from _pageservers_of_connstring(spec.pageserver_connstring, spec.shard_stripe_size, path))
    connstring = spec.cluster.setting("neon.pageserver_connstring")
    if connstring is None:
        yield Problem(
            path=("pageserver_connection_info",),
            message="pageserver connection information should be provided",
            hint="give pageserver_connection_info, or pageserver_connstring",
            also=(("pageserver_connstring",), SETTINGS),
        )
        return None
    stripe_size = yield from _stripe_size(spec)
    path = setting_path(spec, "neon.pageserver_connstring")
    return (yield from _pageservers_of_connstring(connstring, stripe_size, path))


def _stripe_size(spec: ComputeSpec) -> Step[int | None]:
    text = spec.cluster.setting("neon.stripe_size")
    if text is None:
        return None
    if _U32.match(text) is None or int(text) >= 2**32:
        yield Problem(
            path=setting_path(spec, "neon.stripe_size"),
            message=f"invalid neon.stripe_size: {text[:40]!r} is not a 32-bit integer",
            hint='write the number of pages in decimal, such as "2048"',
        )
        return 0
    return int(text)


def _pageservers_of_connstring(
    connstring: str, stripe_size: int | None, path: Path
) -> Step[PageserverConnectionInfo | None]:
    parts = connstring.split(",")
    count = len(parts) if len(parts) > 1 else 0
    if any(not part.strip() for part in parts):
        hint = "give one postgresql:// URL per shard, joined by single commas"
        yield Problem(path=path, message="empty connection string", hint=hint)
        return None
    if count and stripe_size is None:
        hint = "set shard_stripe_size (beside neon.pageserver_connstring: setting neon.stripe_size)"
        also: tuple[Path, ...] = (("shard_stripe_size",), SETTINGS)
        yield Problem(path=path, message=f"{count} shards but no stripe_size", hint=hint, also=also)
    if count > 255:
        hint = "a tenant has at most 255 shards"
        yield Problem(path=path, message=f"{count} shards are more than 255", hint=hint)
        return None
    shards = {
        shard_index(number, count): Shard(pageservers=[Pageserver(libpq_url=part.strip())])
        for number, part in enumerate(parts)
    }
    return PageserverConnectionInfo(shard_count=count, stripe_size=stripe_size if count else None, shards=shards)


def _contradictions(spec: ComputeSpec, chosen: PageserverConnectionInfo) -> tuple[str, ...]:
    """Compare the two ways of naming pageservers; control planes send both, so a difference is only worth a warning."""
    if spec.pageserver_connection_info is None or not spec.pageserver_connstring:
        return ()
    indexes = [shard_index(number, chosen.shard_count) for number in range(max(1, chosen.shard_count))]
    shards = [chosen.shards.get(index) for index in indexes]
    first_urls = [shard.pageservers[0].libpq_url if shard and shard.pageservers else None for shard in shards]
    if first_urls == [part.strip() for part in spec.pageserver_connstring.split(",")]:
        return ()
    return ("pageserver_connection_info and pageserver_connstring disagree; the former is used",)


def _identity(spec: ComputeSpec, name: str) -> Step[str | None]:
    given: str | None = getattr(spec, name)
    chosen = spec.cluster.setting(f"neon.{name}") if given is None else given
    what = name.replace("_", " ")
    if chosen is None:
        hint = f"give {name}, or setting neon.{name}: 32 hex digits"
        yield Problem(path=(name,), message=f"{what} should be provided", hint=hint, also=(SETTINGS,))
        return None
    if not is_hex_id(chosen):
        path = setting_path(spec, f"neon.{name}") if given is None else (name,)
        yield Problem(path=path, message=f"invalid {what}", hint="it is exactly 32 hex digits")
        return None
    return chosen.lower()


def _check_shards(pageservers: PageserverConnectionInfo, given: Path | None) -> Step[None]:
    root: Path = ("pageserver_connection_info",)
    for number in range(max(1, pageservers.shard_count)):
        index = shard_index(number, pageservers.shard_count)
        path = (*root, "shards", index)
        if index not in pageservers.shards:
            yield Problem(
                path=(*root, "shards"),
                message=f"shard {index} missing from pageserver_connection_info shard map",
                hint=f"add the key {index}, or correct shard_count; a key is number and count, two hex digits each",
                also=((*root, "shard_count"),),
            )
        elif not pageservers.shards[index].pageservers:
            hint = "name the pageserver that serves this shard"
            yield Problem(path=(*path, "pageservers"), message="must have at least one pageserver", hint=hint)
        else:
            yield from _check_url(pageservers, index, (*path, "pageservers", 0), given)


def _check_url(pageservers: PageserverConnectionInfo, index: str, path: Path, given: Path | None) -> Step[None]:
    protocol = pageservers.prefer_protocol
    path = given or (*path, f"{protocol.value}_url")
    try:
        url = shard_url(pageservers, index, protocol)
    except SpecError as error:
        yield Problem(
            path=path,
            message=str(error),
            hint=f"prefer_protocol is {protocol.value}: the first pageserver of each shard needs this URL",
            also=(("pageserver_connection_info", "prefer_protocol"),),
        )
        return
    try:
        if protocol is PageserverProtocol.LIBPQ:
            check_values(read_conninfo(url))
        else:
            grpc_address(url)
    except SpecError as error:
        what = "pageserver connection string" if protocol is PageserverProtocol.LIBPQ else "pageserver connection"
        examples = {"libpq": "postgresql://no_user@host:6400", "grpc": "grpc://host:51051"}
        hint = f"give it as in {examples[protocol.value]}"
        yield Problem(path=path, message=f"{what}: {error}", hint=hint, is_told_whole=True)


def _given_as(spec: ComputeSpec) -> Path | None:
    """Return where the connection string of all shards stands, None if each shard has its own."""
    if spec.pageserver_connection_info is not None:
        return None
    is_field = spec.pageserver_connstring is not None
    return ("pageserver_connstring",) if is_field else setting_path(spec, "neon.pageserver_connstring")
