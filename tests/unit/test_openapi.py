"""The description of the API: it is OpenAPI 3.1, it says what the table says, and the copy in docs/ is no other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.definitions import OPENAPI_31

from trio_compute.cli import run_subcommand
from trio_compute.http.api_examples import EXAMPLES
from trio_compute.http.openapi import openapi_document, openapi_json, openapi_path, replies_of
from trio_compute.http.operation import Operation
from trio_compute.http.table import EXTERNAL, internal_operations
from trio_compute.lifecycle.status import Status

ROOT = Path(__file__).parents[2]
DOCUMENT = openapi_document()
INTERNAL = internal_operations(testing=True)
OPERATIONS = list(dict.fromkeys((operation.path, operation.method) for operation in (*EXTERNAL, *INTERNAL)))
# Where both servers have one, the external's is described.
BY_NAME = {(operation.path, operation.method): operation for operation in (*INTERNAL, *EXTERNAL)}


def described(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][openapi_path(operation)][operation.method.lower()]
    return found


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def resolve(reference: str) -> Any:
    found: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


def test_it_is_openapi_3_1() -> None:
    Draft202012Validator(OPENAPI_31).validate(DOCUMENT)
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    used = set(references(DOCUMENT))
    for reference in used:
        assert resolve(reference)
    components = DOCUMENT["components"]
    there = {f"#/components/{kind}/{name}" for kind in components for name in components[kind]}
    assert there - used == {"#/components/securitySchemes/token"}


def test_docs_openapi_json_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    """To mend it: `trio-compute schema --of api > docs/openapi.json`."""
    assert run_subcommand(["schema", "--of", "api"]) == 0
    assert (ROOT / "docs" / "openapi.json").read_text() == capsys.readouterr().out


def test_what_is_served_is_the_same_document() -> None:
    assert json.loads(openapi_json()) == json.loads((ROOT / "docs" / "openapi.json").read_text())


def test_it_has_every_operation_of_the_table_and_no_other() -> None:
    there = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert there == {(openapi_path(operation), operation.method.lower()) for operation in BY_NAME.values()}


def test_the_names_of_operations_differ() -> None:
    names = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_an_operation_is_described_as_it_is(path: str, method: str) -> None:
    operation = BY_NAME[path, method]
    told = described(operation)
    assert {int(code) for code in told["responses"]} == {*replies_of(operation)} >= {*operation.replies}
    assert 500 in replies_of(operation)
    wants = {other.needs_token for other in (*EXTERNAL, *INTERNAL) if (other.path, other.method) == (path, method)}
    assert told.get("security") == {(True,): None, (False,): [], (False, True): [{"token": []}, {}]}[(*sorted(wants),)]
    assert {401, 403} <= {*replies_of(operation)} or not operation.needs_token
    assert ("requestBody" in told) is (operation.body is not None)
    assert ("{rest}" in openapi_path(operation)) is operation.has_rest
    asked = {parameter["name"] for parameter in told["parameters"] if "$ref" not in parameter}
    fields = () if operation.query is None else operation.query.__struct_encode_fields__
    assert asked == {*fields, *operation.headers, *(["rest"] if operation.has_rest else [])}


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_an_operation_says_which_server_has_it(path: str, method: str) -> None:
    told = described(BY_NAME[path, method])
    servers = [
        name
        for name, operations in (("external", EXTERNAL), ("internal", INTERNAL))
        if any((operation.path, operation.method) == (path, method) for operation in operations)
    ]
    assert told["tags"] == servers
    urls = [server["variables"]["port"]["default"] for server in told.get("servers", DOCUMENT["servers"])]
    assert urls == [{"external": "3080", "internal": "3081"}[name] for name in servers]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_carries_a_request_id(path: str, method: str) -> None:
    for response in described(BY_NAME[path, method])["responses"].values():
        whole = resolve(response["$ref"]) if "$ref" in response else response
        assert "x-request-id" in whole["headers"]
        assert whole["description"]


@pytest.mark.parametrize(("name", "example"), EXAMPLES.items(), ids=EXAMPLES)
def test_an_example_is_one(name: str, example: Any) -> None:
    validator(name).validate(example)


def test_the_statuses_are_named() -> None:
    status = DOCUMENT["components"]["schemas"]["StatusResponse"]["properties"]["status"]
    assert status["enum"] == [status.value for status in Status]


def test_a_parameter_that_may_be_absent_is_not_described_as_null() -> None:
    """A query string has no null."""
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                assert '"null"' not in json.dumps(parameter)


def test_nothing_in_it_tells_of_the_contract() -> None:
    """Its readers do not have it."""
    assert "contract 0" not in json.dumps(DOCUMENT)


def test_serving_does_not_load_it() -> None:
    """Design §1: cold start is the product."""
    program = "import sys, trio_compute.http.servers as _; print([name for name in sys.modules if 'openapi' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "['trio_compute.http.routes.openapi']"
