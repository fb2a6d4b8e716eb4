"""From a spec to a parsed spec: every rule of contract 01 §9, its order and its exact messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builders import DATA, PAGESERVER, TENANT, TIMELINE, cluster, document, parsed_spec, setting
from trio_compute.errors import SpecError
from trio_compute.model.addresses import split_host_port
from trio_compute.model.decode import decode
from trio_compute.model.ids import INVALID_LSN, Lsn
from trio_compute.model.parsed import ParsedSpec, parse_spec, shard_url, shard_zero_url
from trio_compute.model.spec import ComputeSpec, Pageserver, PageserverConnectionInfo, PageserverProtocol, Shard


def info(*pageserver_lists: list[dict[str, Any]], count: int | None = None, **changes: Any) -> dict[str, Any]:
    """Return connection info whose shards have these pageservers."""
    number_of_shards = len(pageserver_lists) if count is None else count
    shards = {f"{n:02x}{number_of_shards:02x}": {"pageservers": entry} for n, entry in enumerate(pageserver_lists)}
    return {"shard_count": number_of_shards, "shards": shards, **changes}


def pageserver(url: str | None, **changes: Any) -> dict[str, Any]:
    return {"libpq_url": url, **changes}


def refusal(*missing: str, **changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parsed_spec(*missing, **changes)
    return str(caught.value)


# Row 1: where the pageservers are.


def test_pageserver_information_is_needed() -> None:
    assert refusal("pageserver_connstring") == "pageserver connection information should be provided"


def test_connection_info_comes_before_the_connection_string() -> None:
    parsed = parsed_spec(pageserver_connection_info=info([pageserver("postgresql://first")], count=0))
    assert shard_zero_url(parsed.pageservers) == "postgresql://first"


def test_the_connection_string_comes_before_the_setting() -> None:
    parsed = parsed_spec(cluster=cluster(setting("neon.pageserver_connstring", "postgresql://setting")))
    assert shard_zero_url(parsed.pageservers) == PAGESERVER


def test_the_setting_is_the_last_resort() -> None:
    parsed = parsed_spec(
        "pageserver_connstring",
        shard_stripe_size=1,
        cluster=cluster(
            setting("neon.pageserver_connstring", "postgresql://a,postgresql://b"),
            setting("neon.stripe_size", "2048", "integer"),
        ),
    )
    assert parsed.pageservers.shard_count == 2
    assert parsed.pageservers.stripe_size == 2048
    assert list(parsed.pageservers.shards) == ["0002", "0102"]


@pytest.mark.parametrize("text", ["", "many", "-1", "1.0", "4294967296", "9" * 5000, "²", " 12 x"])
def test_a_stripe_size_setting_that_is_no_u32_is_refused(text: str) -> None:
    settings_ = cluster(setting("neon.pageserver_connstring", "host=b,host=c"), setting("neon.stripe_size", text))
    message = refusal("pageserver_connstring", cluster=settings_)
    assert "stripe_size" in message
    assert len(message) < 200


def test_settings_are_found_by_exact_name_and_the_first_one_counts() -> None:
    parsed = parsed_spec(
        "pageserver_connstring",
        cluster=cluster(
            setting("NEON.pageserver_connstring", "postgresql://wrong-case"),
            setting("neon.pageserver_connstring", "postgresql://first"),
            setting("neon.pageserver_connstring", "postgresql://second"),
        ),
    )
    assert shard_zero_url(parsed.pageservers) == "postgresql://first"


def test_the_first_setting_of_a_name_counts_as_absent_when_it_is_null() -> None:
    message = refusal(
        "pageserver_connstring",
        cluster=cluster(
            setting("neon.pageserver_connstring", None), setting("neon.pageserver_connstring", "postgresql://second")
        ),
    )
    assert message == "pageserver connection information should be provided"


# Row 1a: splitting the connection string.


def test_one_part_is_unsharded_and_drops_the_stripe_size() -> None:
    pageservers = parsed_spec(shard_stripe_size=2048).pageservers
    assert pageservers == PageserverConnectionInfo(
        shard_count=0, stripe_size=None, shards={"0000": Shard(pageservers=[Pageserver(libpq_url=PAGESERVER)])}
    )
    assert pageservers.prefer_protocol is PageserverProtocol.LIBPQ


def test_each_part_is_one_shard() -> None:
    pageservers = parsed_spec(pageserver_connstring="host=p0,host=p1,host=p2", shard_stripe_size=8).pageservers
    assert (pageservers.shard_count, pageservers.stripe_size) == (3, 8)
    assert pageservers.shards == {
        f"0{n}03": Shard(pageservers=[Pageserver(id=None, libpq_url=f"host=p{n}", grpc_url=None)]) for n in range(3)
    }


def test_several_shards_need_a_stripe_size() -> None:
    assert refusal(pageserver_connstring="host=p0,host=p1") == "2 shards but no stripe_size"


def test_255_shards_fit_and_256_do_not() -> None:
    assert (
        parsed_spec(pageserver_connstring=",".join(["host=px"] * 255), shard_stripe_size=1).pageservers.shard_count
        == 255
    )
    assert "256" in refusal(pageserver_connstring=",".join(["host=px"] * 256), shard_stripe_size=1)


@pytest.mark.parametrize("text", ["", " ", ",", "host=p0,", ",host=p1", "host=p0, ,host=p2", "\t"])
def test_an_empty_part_is_refused(text: str) -> None:
    """B-06: the original accepts an empty connection string as one shard."""
    assert refusal(pageserver_connstring=text, shard_stripe_size=1) == "empty connection string"
    settings_ = cluster(setting("neon.pageserver_connstring", text), setting("neon.stripe_size", "1"))
    assert refusal("pageserver_connstring", cluster=settings_) == "empty connection string"


# Row 2: safekeepers.


def test_safekeepers_of_the_field_win_over_the_setting() -> None:
    parsed = parsed_spec(cluster=cluster(setting("neon.safekeepers", "other:1")))
    assert parsed.safekeepers == ("sk-1:5454",)


def test_safekeepers_of_the_setting_are_split_at_commas() -> None:
    parsed = parsed_spec("safekeeper_connstrings", cluster=cluster(setting("neon.safekeepers", "a:1,b:2,c:3")))
    assert parsed.safekeepers == ("a:1", "b:2", "c:3")


@pytest.mark.parametrize("prefix", ["g#3:", "g#0:", "g#4294967295:"])
def test_a_generation_prefix_in_the_setting_is_stripped(prefix: str) -> None:
    """B-07, S-14: the prefix is not part of the first address."""
    parsed = parsed_spec("safekeeper_connstrings", cluster=cluster(setting("neon.safekeepers", f"{prefix}a:1,b:2")))
    assert parsed.safekeepers == ("a:1", "b:2")


def test_a_primary_needs_safekeepers() -> None:
    assert refusal("safekeeper_connstrings") == "safekeeper connstrings should be provided"
    assert refusal(safekeeper_connstrings=[]) == "safekeeper connstrings should be provided"


@pytest.mark.parametrize("mode", ["Replica", {"Static": "0/1"}])
def test_other_modes_need_none_and_ignore_the_setting(mode: object) -> None:
    parsed = parsed_spec(
        "safekeeper_connstrings", mode=mode, cluster=cluster(setting("neon.safekeepers", "a:1,a:1,nonsense"))
    )
    assert parsed.safekeepers == ()


@pytest.mark.parametrize("mode", ["Replica", {"Static": "0/1"}])
def test_other_modes_keep_the_field_and_tolerate_duplicates(mode: object) -> None:
    assert parsed_spec(mode=mode, safekeeper_connstrings=["a:1", "a:1"]).safekeepers == ("a:1", "a:1")


# Rows 3 and 4: identity.


@pytest.mark.parametrize(("name", "what"), [("tenant_id", "tenant id"), ("timeline_id", "timeline id")])
def test_an_id_comes_from_the_field_else_from_the_setting(name: str, what: str) -> None:
    other = "ABCDEF00" * 4
    setting_ = cluster(setting(f"neon.{name}", other))
    assert getattr(parsed_spec(cluster=setting_), name) == {"tenant_id": TENANT, "timeline_id": TIMELINE}[name]
    assert getattr(parsed_spec(name, cluster=setting_), name) == other.lower()
    assert refusal(name) == f"{what} should be provided"
    for wrong in ("", "abc", "g" * 32, f" {other}", other + "\n"):
        assert refusal(name, cluster=cluster(setting(f"neon.{name}", wrong))) == f"invalid {what}"


def test_ids_are_kept_in_lower_case() -> None:
    parsed = parsed_spec(tenant_id=TENANT.upper(), timeline_id=TIMELINE.upper())
    assert (parsed.tenant_id, parsed.timeline_id) == (TENANT, TIMELINE)


# Row 5: endpoint storage.


def test_endpoint_storage_comes_from_the_fields_else_from_the_settings() -> None:
    both = cluster(setting("neon.endpoint_storage_addr", "s:1"), setting("neon.endpoint_storage_token", "from-setting"))
    parsed = parsed_spec(cluster=both, endpoint_storage_addr="f:1", endpoint_storage_token="from-field")
    assert (parsed.endpoint_storage_addr, parsed.endpoint_storage_token) == ("f:1", "from-field")
    parsed = parsed_spec(cluster=both)
    assert (parsed.endpoint_storage_addr, parsed.endpoint_storage_token) == ("s:1", "from-setting")
    parsed = parsed_spec()
    assert (parsed.endpoint_storage_addr, parsed.endpoint_storage_token) == (None, None)


# Row 6: validation of a primary's safekeepers.


def test_a_duplicate_safekeeper_of_a_primary_is_refused() -> None:
    message = refusal(safekeeper_connstrings=["b:1", "a:1", "c:1", "a:1", "c:1"])
    assert message == "duplicate entry in safekeeper_connstrings: a:1!"


def test_an_empty_list_from_the_setting_is_refused() -> None:
    message = refusal("safekeeper_connstrings", cluster=cluster(setting("neon.safekeepers", "")))
    assert message == "safekeeper_connstrings is empty"


def test_an_even_number_of_safekeepers_is_allowed() -> None:
    assert len(parsed_spec(safekeeper_connstrings=["a:1", "b:1"]).safekeepers) == 2


@pytest.mark.parametrize(
    "entry",
    ["", "host", ":5454", "host:", "host:x", "host:0", "host:65536", "host:-1", "host:1.5", "::1", "fe80::1:5454",
     "[]:5454", "a b:5454", " host:5454", "host:5454 ", "host\n:5454", "host:" + "9" * 5000, "host:²",
     "u@host:5454", "host/x:5454", "a,b:5454"],
)  # fmt: skip
def test_a_safekeeper_that_is_not_host_and_port_is_refused(entry: str) -> None:
    """S-13: an entry that cannot be parsed is found when the spec is accepted."""
    message = refusal(safekeeper_connstrings=["good:5454", entry])
    assert "not host:port" in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [("sk-1.local:5454", "sk-1.local", 5454), ("127.0.0.1:1", "127.0.0.1", 1), ("[::1]:65535", "::1", 65535)],
)
def test_a_host_and_port_are_split(entry: str, host: str, port: int) -> None:
    assert split_host_port(entry, what="x") == (host, port)
    assert parsed_spec(safekeeper_connstrings=[entry]).safekeepers == (entry,)


# The required additions.


def test_every_shard_must_be_present() -> None:
    """B-08: a missing shard is found when the spec is accepted."""
    broken = info([pageserver("host=p0")], [pageserver("host=p1")], count=3)
    assert refusal(pageserver_connection_info=broken) == "shard 0203 missing from pageserver_connection_info shard map"
    empty = {"shard_count": 0, "shards": {}}
    assert refusal(pageserver_connection_info=empty) == "shard 0000 missing from pageserver_connection_info shard map"
    one_of_one = info([pageserver("host=p0")], count=0) | {"shard_count": 1}
    assert refusal(pageserver_connection_info=one_of_one).startswith("shard 0001 missing")


def test_every_shard_must_have_a_pageserver() -> None:
    """B-08."""
    broken = info([pageserver("host=p0")], [])
    assert refusal(pageserver_connection_info=broken) == "must have at least one pageserver"


@pytest.mark.parametrize("url", [None, ""])
def test_the_first_pageserver_must_have_a_url_of_the_preferred_protocol(url: str | None) -> None:
    """B-08: a missing URL is found when the spec is accepted."""
    second = [pageserver(url, grpc_url="grpc://x:1"), pageserver("p://good")]
    broken = info([pageserver("host=p0", grpc_url="grpc://0:1")], second)
    assert refusal(pageserver_connection_info=broken) == "no libpq_url for shard 0102"
    broken = info(
        [pageserver("host=p0", grpc_url="grpc://0:1")],
        [pageserver("host=p1", grpc_url=url)],
        prefer_protocol="grpc",
    )
    assert refusal(pageserver_connection_info=broken) == "no grpc_url for shard 0102"


def test_a_grpc_only_tenant_is_accepted_when_it_prefers_grpc() -> None:
    parsed = parsed_spec(
        pageserver_connection_info=info([pageserver(None, grpc_url="grpc://x:1")], count=0, prefer_protocol="grpc")
    )
    assert shard_zero_url(parsed.pageservers) == "grpc://x:1"


def test_shard_indexes_may_be_in_upper_case() -> None:
    shards = {f"{n:02X}10": {"pageservers": [pageserver(f"host=p{n}")]} for n in range(16)}
    parsed = parsed_spec(pageserver_connection_info={"shard_count": 16, "stripe_size": 1, "shards": shards})
    assert shard_url(parsed.pageservers, "0b10", PageserverProtocol.LIBPQ) == "host=p11"


@pytest.mark.parametrize("action", ["rename_db", "rename_role"])
def test_a_rename_needs_a_new_name(action: str) -> None:
    operations = [{"action": "delete_db", "name": "a"}, {"action": action, "name": "b", "new_name": None}]
    assert refusal(delta_operations=operations) == f"delta operation {action} requires new_name"
    parsed_spec(delta_operations=[{"action": action, "name": "b", "new_name": "c"}])


def test_unknown_delta_operations_are_ignored() -> None:
    parsed_spec(delta_operations=[{"action": "from_the_future", "name": "b"}])


def test_a_setting_without_a_value_is_refused_by_name() -> None:
    """F-06: Postgres would refuse the whole file."""
    assert "'work_mem'" in refusal(cluster=cluster(setting("work_mem", None)))


def test_a_contradiction_between_the_two_forms_is_only_a_warning() -> None:
    agreeing = parsed_spec(pageserver_connection_info=info([pageserver(PAGESERVER)], count=0))
    assert agreeing.warnings == ()
    contradicting = parsed_spec(pageserver_connection_info=info([pageserver("postgresql://other")], count=0))
    assert len(contradicting.warnings) == 1
    assert "disagree" in contradicting.warnings[0]


def test_shards_that_changed_places_are_a_contradiction_too() -> None:
    swapped = info([pageserver("host=p1")], [pageserver("host=p0")], stripe_size=1)
    parsed = parsed_spec(
        pageserver_connection_info=swapped, pageserver_connstring="host=p0,host=p1", shard_stripe_size=1
    )
    assert len(parsed.warnings) == 1


BROKEN_FROM_HERE_ON: list[tuple[dict[str, Any], str]] = [
    ({"pageserver_connstring": ""}, "empty connection string"),
    ({"safekeeper_connstrings": []}, "safekeeper connstrings should be provided"),
    ({"tenant_id": None}, "tenant id should be provided"),
    ({"timeline_id": None}, "timeline id should be provided"),
    ({"safekeeper_connstrings": ["a:1", "a:1"]}, "duplicate entry in safekeeper_connstrings: a:1!"),
]


@pytest.mark.parametrize("first", range(len(BROKEN_FROM_HERE_ON)))
def test_the_first_failure_in_the_order_of_the_contract_wins(first: int) -> None:
    changes: dict[str, Any] = {"delta_operations": [{"action": "rename_db", "name": "x"}]}
    for breakage, _ in reversed(BROKEN_FROM_HERE_ON[first:]):
        changes |= breakage
    assert refusal(**changes) == BROKEN_FROM_HERE_ON[first][1]


def test_mode_and_pinned_lsn() -> None:
    primary, replica = parsed_spec(), parsed_spec(mode="Replica")
    static = parsed_spec(mode={"Static": "1/0000abcd"})
    assert [p.mode for p in (primary, replica, static)] == ["primary", "replica", "static"]
    assert [p.is_primary for p in (primary, replica, static)] == [True, False, False]
    assert [p.pinned_lsn for p in (primary, replica, static)] == [INVALID_LSN, INVALID_LSN, Lsn(0x1_0000_ABCD)]


def test_shard_url_names_what_is_missing() -> None:
    pageservers = PageserverConnectionInfo(
        shard_count=2, shards={"0002": Shard(pageservers=[]), "0102": Shard(pageservers=[Pageserver(grpc_url="g")])}
    )
    for index, message in (
        ("0202", "shard connection info missing for shard 0202"),
        ("0002", "must have at least one pageserver"),
        ("0102", "no libpq_url for shard 0102"),
    ):
        with pytest.raises(SpecError) as caught:
            shard_url(pageservers, index, PageserverProtocol.LIBPQ)
        assert str(caught.value) == message
    assert shard_url(pageservers, "0102", PageserverProtocol.GRPC) == "g"


def test_the_basebackup_uses_shard_zero_of_the_large_example() -> None:
    spec = json.loads((DATA / "config_large.json").read_bytes())["spec"]
    parsed = parse_spec(decode(json.dumps(spec).encode(), ComputeSpec))
    assert shard_zero_url(parsed.pageservers) == "postgresql://no_user@ps-11.local:6400"


# Whatever is done to a spec, the outcome is a parsed spec or a SpecError.

STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(
        ["", ",", "g#1:", "g#1:a:1,", "a:1,b:2", "[::1]:5", "0/0", "F" * 32, "9" * 4400, "\0", "p://a,p://b"]
    ),
    st.just([]),
    st.just({}),
    st.just([{"name": "neon.stripe_size", "value": "9" * 4400, "vartype": "integer"}]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in keys for place in places(inner, (*path, key)))]


LARGE = json.loads((DATA / "config_large.json").read_bytes())["spec"]
FROM_SETTINGS = document(
    "tenant_id", "timeline_id", "pageserver_connstring", "safekeeper_connstrings",
    cluster=cluster(
        setting("neon.tenant_id", TENANT), setting("neon.timeline_id", TIMELINE), setting("neon.stripe_size", "5"),
        setting("neon.pageserver_connstring", "host=p0,host=p1"), setting("neon.safekeepers", "g#1:a:1,b:2"),
    ),
)  # fmt: skip


def mutated(value: Any, place: tuple[Any, ...], replacement: Any, *, delete: bool) -> Any:
    if not place:
        return replacement
    key, *rest = place
    if isinstance(value, list):
        changed = [mutated(v, tuple(rest), replacement, delete=delete) if n == key else v for n, v in enumerate(value)]
        return [v for n, v in enumerate(changed) if not (delete and not rest and n == key)]
    if delete and not rest:
        return {k: v for k, v in value.items() if k != key}
    return {k: mutated(v, tuple(rest), replacement, delete=delete) if k == key else v for k, v in value.items()}


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_spec_is_parsed_or_refused_and_nothing_else(data: st.DataObject) -> None:
    value = data.draw(st.sampled_from([LARGE, FROM_SETTINGS, document()]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(value)))
        value = mutated(value, place, data.draw(STRANGE), delete=data.draw(st.booleans()))
    try:
        parsed = parse_spec(decode(json.dumps(value).encode(), ComputeSpec))
    except SpecError as error:
        assert str(error)  # noqa: PT017
        return
    assert isinstance(parsed, ParsedSpec)
    assert shard_zero_url(parsed.pageservers)
    assert parsed.safekeepers or not parsed.is_primary
