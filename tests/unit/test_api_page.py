"""docs/http-api.md: every route with its codes, and lines of curl that would be understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import pytest

from trio_compute.cli import run_subcommand
from trio_compute.http.api_examples import BODY_FILES
from trio_compute.http.api_page import api_page, curl_line
from trio_compute.http.openapi import openapi_path, placed_operations, replies_of
from trio_compute.http.operation import Operation
from trio_compute.http.queries import parse_query

ROOT = Path(__file__).parents[2]
PAGE = api_page()
PLACED = {
    f"{operation.method} {openapi_path(operation)}": (operation, servers) for operation, servers in placed_operations()
}


def section(heading: str) -> str:
    return PAGE.split(f"\n### {heading}\n")[1].split("\n### ")[0]


def test_docs_http_api_md_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    """To mend it: `trio-compute schema --of api --markdown > docs/http-api.md`."""
    assert run_subcommand(["schema", "--of", "api", "--markdown"]) == 0
    assert (ROOT / "docs" / "http-api.md").read_text() == capsys.readouterr().out


@pytest.mark.parametrize(("operation", "servers"), PLACED.values(), ids=PLACED)
def test_a_route_has_its_codes_and_parameters(operation: Operation, servers: list[str]) -> None:
    text = section(f"{operation.method} {openapi_path(operation)}")
    codes = {int(code) for code in re.findall(r"^\| ([0-9]{3}) \|", text, re.MULTILINE)}
    assert codes == {*replies_of(operation)}
    for name in operation.query.__struct_encode_fields__ if operation.query is not None else ():
        assert f"| `{name}` | query |" in text
    assert curl_line(operation, servers) in text


@pytest.mark.parametrize(("operation", "servers"), PLACED.values(), ids=PLACED)
def test_a_line_of_curl_would_be_understood(operation: Operation, servers: list[str]) -> None:
    words = shlex.split(curl_line(operation, servers))
    url = urlsplit(words[-1])
    assert url.port == {"external": 3080, "internal": 3081}[servers[0]]
    assert unquote(url.path).startswith(operation.path)
    parse_query(url.query.encode(), operation.query)
    assert ("Authorization: Bearer $TOKEN" in words) is operation.needs_token
    body: Any = words[words.index("-d") + 1] if "-d" in words else None
    method = "POST" if body else words[words.index("-X") + 1] if "-X" in words else "GET"
    assert method == operation.method
    if operation.path in BODY_FILES:
        assert body.startswith("@")
    elif operation.body is not None:
        msgspec.json.decode(body, type=operation.body)


def test_every_link_leads_to_a_heading() -> None:
    headings = [line.lstrip("# ") for line in PAGE.splitlines() if line.startswith("#")]
    anchors = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings)
    assert {*re.findall(r"\(#([^)]*)\)", PAGE)} <= anchors


def test_it_tells_nothing_of_modules() -> None:
    assert "trio_compute." not in PAGE.replace("trio_compute.client", "")
