"""The JSON Schema and docs/spec.md, both written from the wire structs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec import Struct, inspect, structs

from tests.unit.builders import DATA, document
from tests.unit.test_parse_spec import mutated, places
from tests.unit.test_shape import STRANGE, full_document
from trio_compute.cli import run_subcommand
from trio_compute.errors import SpecError
from trio_compute.model import requests
from trio_compute.model.decode import decode
from trio_compute.model.describe import markdown
from trio_compute.model.schema import DOCUMENTS, json_schema, plain_text
from trio_compute.model.shape import shape_of
from trio_compute.model.spec import ComputeConfig, ComputeSpec, ControlPlaneAnswer, Wire

SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
SECRETS = {"storage_auth_token", "endpoint_storage_token", "encrypted_password"}
ROOT = Path(__file__).parent.parent.parent

WIRES = [wire for wire in Wire.__subclasses__() if wire is not requests.ConfigureRequest]


def fields() -> list[tuple[type[Struct], inspect.Field]]:
    found = []
    for wire in WIRES:
        kind = inspect.type_info(wire)
        assert isinstance(kind, inspect.StructType)
        found += [(wire, field) for field in kind.fields]
    return found


def name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else value.encode_name


def property_of(wire: type[Struct], field: inspect.Field) -> dict[str, Any]:
    schemas = [json_schema(root) for root in DOCUMENTS.values()]
    definitions: dict[str, Any] = {name: value for schema in schemas for name, value in schema["$defs"].items()}
    value: dict[str, Any] = definitions[wire.__name__]["properties"][field.encode_name]
    return value


def example(name: str) -> Any:
    return json.loads((DATA / name).read_bytes())


def values_under(value: Any, key: str) -> list[Any]:
    if isinstance(value, list):
        return [found for item in value for found in values_under(item, key)]
    if isinstance(value, dict):
        return [found for k, item in value.items() for found in ([item] if k == key else values_under(item, key))]
    return []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_schema_is_one_of_the_dialect_2020_12(name: str) -> None:
    schema = json_schema(DOCUMENTS[name])
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "$id" not in schema
    assert schema["title"] == DOCUMENTS[name].__name__
    assert schema["description"]


@pytest.mark.parametrize("name", ["config_small.json", "config_large.json", "config_pooled.json"])
def test_the_examples_of_the_contract_are_valid(name: str) -> None:
    VALIDATOR.validate(example(name))


def test_the_other_documents_are_valid_by_their_schemas() -> None:
    Draft202012Validator(json_schema(ComputeSpec)).validate(example("valid-bare-spec.json"))
    Draft202012Validator(json_schema(ControlPlaneAnswer)).validate(example("valid-control-plane-answer.json"))
    assert not VALIDATOR.is_valid(example("invalid-many-errors.json"))


@pytest.mark.parametrize(("wire", "field"), fields(), ids=name_of)
def test_every_field_is_described_once_and_for_all(wire: type[Struct], field: inspect.Field) -> None:
    description = property_of(wire, field)["description"]
    assert description == shape_of(field.type).meaning
    assert description.endswith(".")
    assert "contract" not in description
    assert f"| `{field.encode_name}` |" in markdown()
    assert description.replace("|", r"\|") in markdown()


@pytest.mark.parametrize(("wire", "field"), fields(), ids=name_of)
def test_null_is_allowed_where_the_default_is_null_and_nowhere_else(wire: type[Struct], field: inspect.Field) -> None:
    entry = property_of(wire, field)
    schema = {"$defs": json_schema(ControlPlaneAnswer)["$defs"] | SCHEMA["$defs"], **entry}
    is_null_valid = Draft202012Validator(schema).is_valid(None)
    assert is_null_valid == (not field.required and field.default is None)
    assert ("default" in entry) == (not field.required)


@pytest.mark.parametrize(("wire", "field"), fields(), ids=name_of)
def test_secrets_and_only_secrets_are_marked(wire: type[Struct], field: inspect.Field) -> None:
    is_secret = field.encode_name in SECRETS
    assert property_of(wire, field).get("writeOnly", False) == is_secret
    row = next(line for line in section(wire).splitlines() if line.startswith(f"| `{field.encode_name}` |"))
    assert row.endswith("| secret |") == is_secret


def section(wire: type[Struct]) -> str:
    return markdown().split(f"### {wire.__name__}\n", 1)[1].split("\n### ", 1)[0]


def test_required_keys_defaults_and_open_objects() -> None:
    definitions = SCHEMA["$defs"]
    assert set(definitions["ComputeSpec"]["required"]) == {"format_version", "cluster", "suspend_timeout_seconds"}
    spec = definitions["ComputeSpec"]["properties"]
    assert spec["mode"]["default"] == "Primary"
    assert spec["features"]["default"] == []
    assert spec["reconfigure_concurrency"]["default"] == 1
    assert spec["audit_log_level"]["default"] == "Disabled"
    assert all(definition.get("additionalProperties", True) is True for definition in definitions.values())


def test_patterns_are_those_of_javascript_and_integers_are_bounded() -> None:
    patterns = values_under(SCHEMA, "pattern")
    assert patterns
    assert all(pattern.startswith("^") and pattern.endswith("$") and r"\Z" not in pattern for pattern in patterns)
    spec = SCHEMA["$defs"]["ComputeSpec"]["properties"]
    assert spec["reconfigure_concurrency"]["maximum"] == 2**64 - 1
    assert spec["suspend_timeout_seconds"]["minimum"] == -(2**63)


def test_the_contract_is_not_cited_to_those_who_do_not_have_it() -> None:
    assert "contract" not in json.dumps(SCHEMA)
    assert plain_text("Be it (contract 01 §5).") == "Be it."
    assert plain_text("Skip it (B-10), (or not).") == "Skip it, (or not)."


def has_whole_float(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(has_whole_float(item) for item in inner)


def has_line_end(value: Any) -> bool:
    return "\\n" in json.dumps(value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_schema_agrees_with_the_decoder(data: st.DataObject) -> None:
    """JSON Schema takes 1.0 for an integer and knows no end of a float's range; else they are of one mind."""
    full = full_document()
    place = data.draw(st.sampled_from(places(full)))
    replacement = data.draw(STRANGE.filter(lambda v: not has_whole_float(v) and not has_line_end(v) and v != 10**400))
    value = mutated(full, place, replacement, delete=data.draw(st.booleans()))
    try:
        decode(json.dumps(value).encode(), ComputeConfig)
    except SpecError:
        assert not VALIDATOR.is_valid(value)
    else:
        VALIDATOR.validate(value)


def test_docs_spec_md_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    """To mend it: `trio-compute schema --markdown > docs/spec.md`."""
    assert run_subcommand(["schema", "--markdown"]) == 0
    assert (ROOT / "docs" / "spec.md").read_text() == capsys.readouterr().out


def test_the_page_has_a_table_for_every_object_and_a_default_for_every_field() -> None:
    for wire in WIRES:
        rows = [line for line in section(wire).splitlines() if line.startswith("| `")]
        assert len(rows) == len(structs.fields(wire))
        assert all(len(row.replace(r"\|", "").split("|")) == 7 for row in rows)
    assert "| `mode` |" in section(ComputeSpec)
    assert "| `0` |" not in section(ComputeSpec)


@pytest.mark.parametrize("argv", [[], ["--of", "config"]])
def test_the_command_prints_the_schema(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_subcommand(["schema", *argv]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_the_command_knows_the_other_documents(capsys: pytest.CaptureFixture[str]) -> None:
    for name, wire in DOCUMENTS.items():
        assert run_subcommand(["schema", "--of", name]) == 0
        assert json.loads(capsys.readouterr().out)["title"] == wire.__name__


def test_help_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_subcommand(["schema", "--help"]) == 0
    assert "usage: trio-compute schema" in capsys.readouterr().out
    for argv in (["x"], ["--of", "x"], ["--mark"]):
        assert run_subcommand(["schema", *argv]) == 2
        assert "usage: trio-compute schema" in capsys.readouterr().err


def test_the_minimal_document_is_valid() -> None:
    Draft202012Validator(json_schema(ComputeSpec)).validate(document())
