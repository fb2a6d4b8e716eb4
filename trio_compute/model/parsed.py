"""The spec after derivation and validation: what the rest of the program works with (contract 01 §9)."""

from __future__ import annotations

import re
from itertools import pairwise

from msgspec import Struct, structs

from trio_compute.errors import SpecError
from trio_compute.model.ids import INVALID_LSN, Lsn, TenantId, TimelineId, is_hex_id, shard_index
from trio_compute.model.spec import (
    ComputeSpec,
    Pageserver,
    PageserverConnectionInfo,
    PageserverProtocol,
    Shard,
    StaticMode,
)

_GENERATION_PREFIX = re.compile(r"\Ag#\d+:")
_HOST = re.compile(r"\A[^\s,/@?#\[\]]+\Z")
_PORT = re.compile(r"\A[0-9]{1,5}\Z")
_U32 = re.compile(r"\A[0-9]{1,10}\Z")
_RENAMES = frozenset({"rename_db", "rename_role"})


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
    pageservers = _pageservers(spec)
    safekeepers = _safekeepers(spec)
    tenant_id = TenantId(_identity(spec.tenant_id, spec.cluster.setting("neon.tenant_id"), "tenant id"))
    timeline_id = TimelineId(_identity(spec.timeline_id, spec.cluster.setting("neon.timeline_id"), "timeline id"))
    if spec.mode == "Primary":
        _validate_safekeepers(safekeepers)
    for entry in safekeepers:
        split_host_port(entry, what="safekeeper_connstrings entry")
    _validate_shards(pageservers)
    _validate_delta_operations(spec)
    _validate_settings(spec)
    return ParsedSpec(
        spec=spec,
        tenant_id=tenant_id,
        timeline_id=timeline_id,
        pageservers=pageservers,
        safekeepers=safekeepers,
        endpoint_storage_addr=spec.endpoint_storage_addr or spec.cluster.setting("neon.endpoint_storage_addr"),
        endpoint_storage_token=spec.endpoint_storage_token or spec.cluster.setting("neon.endpoint_storage_token"),
        warnings=_contradictions(spec, pageservers),
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


def split_host_port(entry: str, *, what: str) -> tuple[str, int]:
    """Split `host:port`, an IPv6 host in brackets; raise SpecError naming the entry (07 S-13)."""
    host, colon, port_text = entry.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    port = int(port_text) if _PORT.match(port_text) else 0
    if not colon or _HOST.match(bare) is None or (":" in bare and bare == host) or not 1 <= port <= 65535:
        raise SpecError(f"{what} {entry[:80]!r} is not host:port")
    return bare, port


def _pageservers(spec: ComputeSpec) -> PageserverConnectionInfo:
    info = spec.pageserver_connection_info
    if info is not None:
        return structs.replace(info, shards={index.lower(): shard for index, shard in info.shards.items()})
    if spec.pageserver_connstring is not None:
        return _pageservers_of_connstring(spec.pageserver_connstring, spec.shard_stripe_size)
    connstring = spec.cluster.setting("neon.pageserver_connstring")
    if connstring is None:
        raise SpecError("pageserver connection information should be provided")
    stripe_text = spec.cluster.setting("neon.stripe_size")
    return _pageservers_of_connstring(connstring, None if stripe_text is None else _stripe_size(stripe_text))


def _contradictions(spec: ComputeSpec, chosen: PageserverConnectionInfo) -> tuple[str, ...]:
    """Compare the two ways of naming pageservers; control planes send both, so a difference is only worth a warning."""
    if spec.pageserver_connection_info is None or not spec.pageserver_connstring:
        return ()
    shards = [chosen.shards[shard_index(n, chosen.shard_count)] for n in range(max(1, chosen.shard_count))]
    first_urls = [shard.pageservers[0].libpq_url for shard in shards]
    if first_urls == [part.strip() for part in spec.pageserver_connstring.split(",")]:
        return ()
    return ("pageserver_connection_info and pageserver_connstring disagree; the former is used",)


def _stripe_size(text: str) -> int:
    if _U32.match(text) is None or int(text) >= 2**32:
        raise SpecError(f"invalid neon.stripe_size: {text[:40]!r} is not a 32-bit integer")
    return int(text)


def _pageservers_of_connstring(connstring: str, stripe_size: int | None) -> PageserverConnectionInfo:
    parts = connstring.split(",")
    if any(not part.strip() for part in parts):
        raise SpecError("empty connection string")
    if len(parts) == 1:
        count, stripe_size = 0, None
    else:
        count = len(parts)
        if stripe_size is None:
            raise SpecError(f"{count} shards but no stripe_size")
        if count > 255:
            raise SpecError(f"{count} shards are more than 255")
    shards = {
        shard_index(number, count): Shard(pageservers=[Pageserver(libpq_url=part.strip())])
        for number, part in enumerate(parts)
    }
    return PageserverConnectionInfo(shard_count=count, stripe_size=stripe_size, shards=shards)


def _safekeepers(spec: ComputeSpec) -> tuple[str, ...]:
    if spec.safekeeper_connstrings:
        return tuple(spec.safekeeper_connstrings)
    if spec.mode != "Primary":
        return ()
    text = spec.cluster.setting("neon.safekeepers")
    if text is None:
        raise SpecError("safekeeper connstrings should be provided")
    text = _GENERATION_PREFIX.sub("", text)
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _identity(text: str | None, setting: str | None, what: str) -> str:
    chosen = setting if text is None else text
    if chosen is None:
        raise SpecError(f"{what} should be provided")
    if not is_hex_id(chosen):
        raise SpecError(f"invalid {what}")
    return chosen.lower()


def _validate_safekeepers(safekeepers: tuple[str, ...]) -> None:
    if not safekeepers:
        raise SpecError("safekeeper_connstrings is empty")
    ordered = sorted(safekeepers)
    for entry, following in pairwise(ordered):
        if entry == following:
            raise SpecError(f"duplicate entry in safekeeper_connstrings: {entry}!")


def _validate_shards(pageservers: PageserverConnectionInfo) -> None:
    for number in range(max(1, pageservers.shard_count)):
        index = shard_index(number, pageservers.shard_count)
        if index not in pageservers.shards:
            raise SpecError(f"shard {index} missing from pageserver_connection_info shard map")
        if not pageservers.shards[index].pageservers:
            raise SpecError("must have at least one pageserver")
        shard_url(pageservers, index, pageservers.prefer_protocol)


def _validate_delta_operations(spec: ComputeSpec) -> None:
    for operation in spec.delta_operations or ():
        if operation.action in _RENAMES and operation.new_name is None:
            raise SpecError(f"delta operation {operation.action} requires new_name")


def _validate_settings(spec: ComputeSpec) -> None:
    for option in spec.cluster.settings or ():
        if option.value is None:
            raise SpecError(f"setting {option.name!r} has no value")
