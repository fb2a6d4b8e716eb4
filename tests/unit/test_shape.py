"""JSON bytes in, every difference from the wire structs out; the decoder of the compute is the judge."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builders import DATA, document
from tests.unit.test_parse_spec import mutated, places
from trio_compute.commands.inspection import inspect_configuration, path_text
from trio_compute.errors import SpecError
from trio_compute.model.decode import decode
from trio_compute.model.document import NotJson, read_document
from trio_compute.model.shape import Walk
from trio_compute.model.spec import ComputeConfig, ComputeSpec, ControlPlaneAnswer

CTL = {"jwks": {"keys": []}}
LARGE = json.loads((DATA / "config_large.json").read_bytes())

# Bytes that are not JSON.

NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    ("data", "rule", "hint"),
    [
        (b"", "empty", "compute_ctl_config"),
        (b" \n", "empty", "compute_ctl_config"),
        (b'{\n  "a": 1,\n}', "line 3, column 1: trailing comma", "take away the comma"),
        (b'{"a": NaN}', "line 1, column 7", "NaN"),
        (b'{"a": -Infinity}', "line 1, column 8", "infinity"),
        (b'{"a": 1e999, "b": NaN}', "NaN", "NaN"),
        (b'{"a": [1}', "line 1, column 9", "bracket"),
        (b'{"a": "b', "ends too early", "still open"),
        (b'{"a": 1', "ends too early", "still open"),
        (b"{'a': 1}", "line 1, column 2", "double quotes"),
        (b'{"a": 1} {}', "line 1, column 10: trailing", "one document"),
        (b'{"a": 1 // x\n}', "line 1, column 9", "comments"),
        (b'{"a": True}', "line 1, column 7", "lower case"),
        (b'{"a": "\xc3\xa4" 1}', "line 1, column 11", "comma"),
        (b'{"a": "\t"}', "line 1, column 8", r"\t"),
        (b'{"a": "\\x"}', "escape", "backslash"),
        (b'{"a": 01}', "number", "1.5"),
        (b'{"a": "\\ud800"}', "surrogate", "both halves"),
        (b'{"a":\n "\xff"}', "line 2, column 3: a byte that is not UTF-8", "UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark of UTF-8", "without a byte order mark"),
        ("{}".encode("utf-16"), "byte order mark of UTF-16", "without a byte order mark"),
        (NESTED, "nested too deeply", "dozen"),
        (b'{"unknown": ' + NESTED, "nested too deeply", "dozen"),
        (b'{"unknown": ' + NESTED + b"]" * len(NESTED) + b"}", "nested too deeply", "dozen"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bytes_that_are_not_json_are_one_clear_error(data: bytes, rule: str, hint: str) -> None:
    report = inspect_configuration(data)
    (finding,) = report.errors
    assert rule in finding.rule
    assert hint in finding.hint
    assert finding.path == ()


@given(st.binary(max_size=60) | st.text("{}[]:,\"'\\ud8 10.e-+truefalsn\n", max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read_document(data)
    except NotJson as error:
        assert str(error)  # noqa: PT017
        assert error.hint  # noqa: PT017
    else:
        json.loads(data)


def test_an_object_nested_as_deep_as_allowed_is_no_problem_anywhere() -> None:
    deep: Any = {"x": 1}
    for _ in range(300):
        deep = {"a": [deep]}
    value = {"spec": document(unknown=deep), "compute_ctl_config": {"jwks": {"keys": [deep]}}}
    assert inspect_configuration(json.dumps(value).encode()).errors == []


# The walk over shapes agrees with the decoder.

STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**64, 2**64 - 1, 2**63, -(2**63) - 1, 255, 256, 0, -1, 10**400, 1.0, 0.5, 1e300]),
    st.text(max_size=6),
    st.sampled_from(
        ["Primary", "Replica", "Static", "libpq", "grpc", "Base", "attached", "0/1", "F" * 32, "0" * 32 + "\n"]
    ),
    st.sampled_from([[], {}, [None], [[]], [{}], {"": None}, {"Static": "0/1"}, {"Static": "1"}, {"Static": None}]),
    st.sampled_from([{"0000": {"pageservers": []}}, {"000g": {"pageservers": []}}, {"name": "a", "vartype": "b"}]),
)


def full_document() -> dict[str, Any]:
    """Return a document that has every key of every object."""
    value = json.loads(json.dumps(LARGE))
    spec = value["spec"]
    spec["local_proxy_config"]["tls"] = {"key_path": "k", "cert_path": "c"}
    files = {"cert_file": "c", "key_file": "k", "ca_file": "a"}
    names = ("databricks_pg_hba", "databricks_pg_ident", "databricks_workspace_host")
    spec["databricks_settings"] = {"pg_compute_tls_settings": files, **dict.fromkeys(names, "x")}
    spec["mode"] = {"Static": "0/1"}
    return value


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_the_walk_refuses_exactly_what_the_decoder_refuses(data: st.DataObject) -> None:
    value, wire = data.draw(
        st.sampled_from([
            (full_document(), ComputeConfig),
            (LARGE, ComputeConfig),
            (document(), ComputeSpec),
            ({"status": "attached", **LARGE}, ControlPlaneAnswer),
        ])
    )  # fmt: skip
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.sampled_from(places(value)))
        value = mutated(value, place, data.draw(STRANGE), delete=data.draw(st.booleans()))
    text = json.dumps(value).encode()
    walk = Walk()
    repaired = walk.visit_document(read_document(text), wire)
    try:
        decode(text, wire)
    except SpecError:
        assert walk.errors
    else:
        assert walk.errors == []
    msgspec.convert(repaired, wire)


@pytest.mark.parametrize("text", ["1e999", "-1e999", "9" * 400, "9" * 4301, "-" + "9" * 4301, "1.0", "-0", "1E2"])
@pytest.mark.parametrize("key", ["format_version", "swap_size_bytes", "operation_uuid", "unknown", "cluster"])
def test_strange_numbers_are_judged_as_the_decoder_judges_them(text: str, key: str) -> None:
    data = json.dumps(document() | {key: "HERE"}).replace('"HERE"', text).encode()
    walk = Walk()
    walk.visit_document(read_document(data), ComputeSpec)
    try:
        decode(data, ComputeSpec)
    except SpecError:
        assert walk.errors
    else:
        assert not walk.errors


def test_a_number_out_of_range_inside_a_verification_key_is_found() -> None:
    data = b'{"compute_ctl_config": {"jwks": {"keys": [{"a": [1e999]}]}}}'
    (finding,) = inspect_configuration(data).errors
    assert path_text(finding.path) == "$.compute_ctl_config.jwks.keys[0].a[0]"
