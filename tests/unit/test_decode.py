"""JSON in, wire structs or one located error out (contract 01 §4, §5, §6, §7, §11)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import NODEFAULT, structs

from tests.unit.builders import DATA, document
from trio_compute.errors import SpecError
from trio_compute.model import requests, spec
from trio_compute.model.decode import MalformedJson, decode, encode
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.model.spec import (
    ComputeAudit,
    ComputeConfig,
    ComputeSpec,
    PageserverProtocol,
    StaticMode,
    Wire,
)

OPTION = {"name": "a", "vartype": "string"}
TLS = {"key_path": "/k", "cert_path": "/c"}
JWKS = {"id": "i", "role_names": [], "jwks_url": "u", "provider_name": "p"}
LAKEBASE_TLS = {"cert_file": "/c", "key_file": "/k", "ca_file": "/a"}
CTL = {"jwks": {"keys": []}}
BARE_SPEC = {"format_version": 1, "suspend_timeout_seconds": 0, "cluster": {"roles": [], "databases": []}}

# One document for each wire struct, with its required keys only.
SMALLEST: dict[type[Wire], dict[str, Any]] = {
    spec.StaticMode: {"Static": "0/1"},
    spec.GenericOption: OPTION,
    spec.Role: {"name": "r"},
    spec.Database: {"name": "d", "owner": "o"},
    spec.DeltaOp: {"action": "delete_db", "name": "d"},
    spec.Cluster: {"roles": [], "databases": []},
    spec.Pageserver: {},
    spec.Shard: {"pageservers": []},
    spec.PageserverConnectionInfo: {"shard_count": 0, "shards": {}},
    spec.ExtensionData: {"control_data": {}, "archive_path": ""},
    spec.RemoteExtSpec: {"library_index": {}, "extension_data": {}},
    spec.TlsConfig: TLS,
    spec.JwksSettings: JWKS,
    spec.LocalProxySpec: {},
    spec.PgComputeTlsSettings: LAKEBASE_TLS,
    spec.DatabricksSettings: {
        "pg_compute_tls_settings": LAKEBASE_TLS,
        "databricks_pg_hba": "h",
        "databricks_pg_ident": "i",
        "databricks_workspace_host": "w",
    },
    spec.ComputeSpec: BARE_SPEC,
    spec.Jwks: {"keys": []},
    spec.ComputeCtlConfig: CTL,
    spec.ComputeConfig: {"compute_ctl_config": CTL},
    spec.ControlPlaneAnswer: {"status": "empty", "compute_ctl_config": CTL},
    requests.ConfigureRequest: {"spec": BARE_SPEC},
}

FIELDS = [(wire, field) for wire in SMALLEST for field in structs.fields(wire)]
REQUIRED = [pair for pair in FIELDS if pair[1].required]
OPTIONAL = [pair for pair in FIELDS if pair[1].default is None]
DEFAULTED = [pair for pair in FIELDS if not pair[1].required and pair[1].default is not None]


def name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else value.encode_name


def parse(value: object, wire: type[Any] = ComputeSpec) -> Any:
    return decode(json.dumps(value).encode(), wire)


def test_the_samples_here_cover_every_wire_struct() -> None:
    assert set(SMALLEST) == set(Wire.__subclasses__())


@pytest.mark.parametrize("wire", SMALLEST, ids=name_of)
def test_a_document_with_the_required_keys_only_is_accepted(wire: type[Wire]) -> None:
    assert isinstance(parse(SMALLEST[wire], wire), wire)


@pytest.mark.parametrize("wire", SMALLEST, ids=name_of)
def test_unknown_keys_are_ignored_at_every_level(wire: type[Wire]) -> None:
    assert parse(SMALLEST[wire] | {"timestamp": {"x": [None]}}, wire) == parse(SMALLEST[wire], wire)


@pytest.mark.parametrize(("wire", "field"), REQUIRED, ids=name_of)
def test_a_required_key_must_be_there_and_must_not_be_null(wire: type[Wire], field: structs.FieldInfo) -> None:
    name = field.encode_name
    without = {key: value for key, value in SMALLEST[wire].items() if key != name}
    with pytest.raises(SpecError, match=f"missing required field `{name}`"):
        parse(without, wire)
    with pytest.raises(SpecError) as caught:
        parse(without | {name: None}, wire)
    assert caught.value.path == f"$.{name}"


@pytest.mark.parametrize(("wire", "field"), OPTIONAL, ids=name_of)
def test_an_optional_key_may_be_missing_or_null(wire: type[Wire], field: structs.FieldInfo) -> None:
    missing = parse(SMALLEST[wire], wire)
    null = parse(SMALLEST[wire] | {field.encode_name: None}, wire)
    assert getattr(missing, field.name) is None
    assert missing == null


@pytest.mark.parametrize(("wire", "field"), DEFAULTED, ids=name_of)
def test_a_defaulted_key_may_be_missing_but_not_null(wire: type[Wire], field: structs.FieldInfo) -> None:
    default = field.default_factory() if field.default is NODEFAULT else field.default
    assert getattr(parse(SMALLEST[wire], wire), field.name) == default
    with pytest.raises(SpecError) as caught:
        parse(SMALLEST[wire] | {field.encode_name: None}, wire)
    assert caught.value.path == f"$.{field.encode_name}"


def test_the_defaults_are_those_of_the_contract() -> None:
    value = parse(BARE_SPEC)
    assert value.features == []
    assert value.safekeeper_connstrings == []
    assert value.mode == "Primary"
    assert value.reconfigure_concurrency == 1
    assert value.audit_log_level is ComputeAudit.DISABLED
    assert (value.skip_pg_catalog_updates, value.drop_subscriptions_before_start, value.autoprewarm) == (False,) * 3
    info = parse({"shard_count": 0, "shards": {}}, spec.PageserverConnectionInfo)
    assert info.prefer_protocol is PageserverProtocol.LIBPQ


INTEGERS = {
    "swap_size_bytes": (0, 2**64 - 1),
    "disk_quota_bytes": (0, 2**64 - 1),
    "shard_stripe_size": (0, 2**32 - 1),
    "safekeepers_generation": (0, 2**32 - 1),
    "reconfigure_concurrency": (0, 2**64 - 1),
    "offload_lfc_interval_seconds": (1, 2**64 - 1),
    "suspend_timeout_seconds": (-(2**63), 2**63 - 1),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_keeps_to_its_range(name: str) -> None:
    lowest, highest = INTEGERS[name]
    for number in (lowest, highest):
        assert getattr(parse(document(**{name: number})), name) == number
    for number in (lowest - 1, highest + 1, 10**40):
        with pytest.raises(SpecError) as caught:
            parse(document(**{name: number}))
        assert name in str(caught.value)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("text", ["1.0", "1e2", "1.5", '"1"', "true", "[1]"])
def test_an_integer_is_neither_a_float_nor_text_nor_a_boolean(name: str, text: str) -> None:
    body = json.dumps(document(**{name: "HERE"})).replace('"HERE"', text).encode()
    with pytest.raises(SpecError) as caught:
        decode(body, ComputeSpec)
    assert caught.value.path == f"$.{name}"


@pytest.mark.parametrize(("count", "fits"), [(0, True), (255, True), (256, False), (-1, False), (1.0, False)])
def test_a_shard_count_is_one_byte(count: float, fits: bool) -> None:
    body = {"shard_count": count, "shards": {}}
    if fits:
        assert parse(body, spec.PageserverConnectionInfo).shard_count == count
    else:
        with pytest.raises(SpecError):
            parse(body, spec.PageserverConnectionInfo)


def test_the_id_of_a_pageserver_is_a_u64_deep_inside_the_document() -> None:
    def info(number: int) -> dict[str, Any]:
        return {"shard_count": 0, "shards": {"0000": {"pageservers": [{"id": number, "libpq_url": "x://y"}]}}}

    value = parse(document(pageserver_connection_info=info(2**64 - 1)))
    assert value.pageserver_connection_info.shards["0000"].pageservers[0].id == 2**64 - 1
    with pytest.raises(SpecError) as caught:
        parse(document(pageserver_connection_info=info(2**64)))
    assert caught.value.path == "$.pageserver_connection_info.shards[...].pageservers[0]"
    assert "id" in str(caught.value)


@pytest.mark.parametrize("text", ["1", "1.0", "-3", "1e3", "0.5", "99999999999999999999"])
def test_the_format_version_is_any_number(text: str) -> None:
    decode(json.dumps(document(format_version="HERE")).replace('"HERE"', text).encode(), ComputeSpec)


@pytest.mark.parametrize("value", ["1.0", True, None, [1]])
def test_the_format_version_is_nothing_else(value: object) -> None:
    with pytest.raises(SpecError):
        parse(document(format_version=value))


@pytest.mark.parametrize("name", ["skip_pg_catalog_updates", "autoprewarm", "disable_lfc_resizing"])
@pytest.mark.parametrize("value", [0, 1, "true"])
def test_a_boolean_is_true_or_false(name: str, value: object) -> None:
    with pytest.raises(SpecError):
        parse(document(**{name: value}))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"mode": "primary"}, "$.mode"),
        ({"mode": "Static"}, "$.mode"),
        ({"mode": {"Static": 5}}, "$.mode.Static"),
        ({"mode": {"Static": "12AB"}}, "$.mode.Static"),
        ({"mode": {"Static": "0/123456789"}}, "$.mode.Static"),
        ({"mode": {}}, "$.mode"),
        ({"audit_log_level": "base"}, "$.audit_log_level"),
        ({"audit_log_level": "Everything"}, "$.audit_log_level"),
        ({"tenant_id": 5}, "$.tenant_id"),
        ({"tenant_id": "abc"}, "$.tenant_id"),
        ({"timeline_id": "g" * 32}, "$.timeline_id"),
        ({"timeline_id": list(range(16))}, "$.timeline_id"),
        ({"features": ["a", 5]}, "$.features[1]"),
        ({"pgbouncer_settings": {"a": 5}}, "$.pgbouncer_settings[...]"),
        (
            {"pageserver_connection_info": {"shard_count": 0, "shards": {}, "prefer_protocol": "http"}},
            "$.pageserver_connection_info.prefer_protocol",
        ),
        ({"delta_operations": [{"action": "delete_db"}]}, "$.delta_operations[0]"),
        (
            {"cluster": {"roles": [{"name": "a", "options": [{"name": 1}]}], "databases": []}},
            "$.cluster.roles[0].options[0].name",
        ),
        ({"cluster": []}, "$.cluster"),
    ],
    ids=str,
)
def test_a_wrong_value_is_reported_with_its_json_path(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(document(**changes))
    assert not isinstance(caught.value, MalformedJson)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("index", ["", "000", "00000", "00g0", "0x00", "00 0"])
def test_a_shard_index_that_is_not_four_hex_digits_is_refused(index: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse({"shard_count": 0, "shards": {index: {"pageservers": []}}}, spec.PageserverConnectionInfo)
    assert "shards" in caught.value.path


@pytest.mark.parametrize(("text", "level"), [(level.value, level) for level in ComputeAudit])
def test_every_audit_level_is_accepted_old_names_included(text: str, level: ComputeAudit) -> None:
    assert parse(document(audit_log_level=text)).audit_log_level is level
    assert {"Disabled", "Log", "Base", "Hipaa", "Extended", "Full"} == {level.value for level in ComputeAudit}


def test_the_three_modes() -> None:
    assert parse(document(mode="Primary")).mode == "Primary"
    assert parse(document(mode="Replica")).mode == "Replica"
    assert parse(document(mode={"Static": "0/169AD58"})).mode == StaticMode(lsn="0/169AD58")


def test_unknown_features_are_kept_as_elements() -> None:
    assert parse(document(features=["tls_experimental", "some_future_flag"])).features == [
        "tls_experimental",
        "some_future_flag",
    ]


def test_derived_flags_of_a_database_are_ignored_in_input() -> None:
    body = {"name": "d", "owner": "o", "restrict_conn": "whatever", "invalid": None}
    assert parse(body, spec.Database) == parse({"name": "d", "owner": "o"}, spec.Database)


def test_any_object_is_tolerated_as_a_verification_key() -> None:
    """B-10: one key with an unknown type must not reject the whole configuration."""
    keys = [{"kty": "from the future", "alg": 5}, {}, {"kty": "OKP", "crv": "Ed25519", "x": "!"}]
    assert parse({"jwks": {"keys": keys}}, spec.ComputeCtlConfig).jwks.keys == keys


def test_the_order_of_pgbouncer_settings_is_kept() -> None:
    names = ["z", "a", "m"]
    assert list(parse(document(pgbouncer_settings=dict.fromkeys(names, "1"))).pgbouncer_settings) == names


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"compute_ctl_config": {"jwks": {"keys": []}}} {}',
        b"\xff",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"'",
        b'{"a": "\x01"}',
    ],
)
def test_bytes_that_are_not_json_are_called_malformed(data: bytes) -> None:
    with pytest.raises(MalformedJson):
        decode(data, ComputeConfig)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_very_deep_nesting_is_an_error_and_not_a_crash(opening: bytes) -> None:
    with pytest.raises(SpecError):
        decode(opening * 100_000, ComputeConfig)
    with pytest.raises(SpecError):
        decode(b'{"unknown": ' + opening * 100_000, ComputeConfig)
    with pytest.raises(SpecError):
        decode(b'{"compute_ctl_config": {"jwks": {"keys": [{"a": ' + opening * 100_000, ComputeConfig)


@pytest.mark.parametrize("value", [None, 5, "text", [], True])
def test_a_document_that_is_no_object_has_the_wrong_shape(value: object) -> None:
    with pytest.raises(SpecError) as caught:
        parse(value, ComputeConfig)
    assert not isinstance(caught.value, MalformedJson)
    assert caught.value.path == "$"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_but_a_spec_error(data: bytes) -> None:
    with pytest.raises(SpecError):
        decode(data, ComputeConfig)


def test_an_error_never_repeats_a_secret_next_to_it() -> None:
    with pytest.raises(SpecError) as caught:
        parse(document(storage_auth_token=["hunter2hunter2"], mode="Primary"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["config_small", "config_large"])
def test_the_examples_of_the_contract_are_accepted(name: str) -> None:
    config = decode((DATA / f"{name}.json").read_bytes(), ComputeConfig)
    assert config.spec is not None
    assert isinstance(parse_spec(config.spec), ParsedSpec)


def test_every_key_of_the_large_example_but_the_timestamp_is_understood() -> None:
    text = (DATA / "config_large.json").read_bytes()
    config = decode(text, ComputeConfig)

    def lost(given_value: Any, kept: Any, path: str) -> list[str]:
        if isinstance(given_value, dict):
            return [
                entry
                for key, value in given_value.items()
                for entry in (lost(value, kept[key], f"{path}.{key}") if key in kept else [f"{path}.{key}"])
            ]
        if isinstance(given_value, list):
            pairs = enumerate(zip(given_value, kept, strict=True))
            return [entry for n, (mine, theirs) in pairs for entry in lost(mine, theirs, f"{path}[{n}]")]
        return [] if given_value == kept else [path]

    assert lost(json.loads(text), json.loads(encode(config)), "$") == ["$.spec.timestamp"]


def test_a_pooled_compute_has_a_configuration_without_a_spec() -> None:
    assert decode((DATA / "config_pooled.json").read_bytes(), ComputeConfig).spec is None


def test_wire_structs_cannot_be_changed() -> None:
    value = parse(BARE_SPEC)
    with pytest.raises(AttributeError):
        value.mode = "Replica"


def test_encoding_gives_back_what_was_decoded() -> None:
    config = decode((DATA / "config_large.json").read_bytes(), ComputeConfig)
    assert decode(encode(config), ComputeConfig) == config
    assert msgspec.json.decode(encode(config))["spec"]["mode"] == "Primary"
