"""`trio-compute schema`: the shape of configuration files, for editors and for people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from trio_compute.model.schema import DOCUMENTS, json_schema

API = "api"


def run_schema(argv: Sequence[str]) -> int:
    """Print a JSON Schema, the OpenAPI description, or a page of docs/; return 0, or 2 for a wrong command line."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return 0 if stop.code in {None, 0} else 2
    if arguments.markdown:
        sys.stdout.write(_page(arguments.of))
        return 0
    schema = _openapi() if arguments.of == API else json_schema(DOCUMENTS[arguments.of])
    text = msgspec.json.format(msgspec.json.encode(schema)).decode()
    sys.stdout.write(text + "\n")
    return 0


def _page(document: str) -> str:
    if document == API:
        from trio_compute.http.api_page import api_page

        return api_page()
    from trio_compute.model.describe import markdown

    return markdown()


def _openapi() -> dict[str, Any]:
    from trio_compute.http.openapi import openapi_document

    return openapi_document()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trio-compute schema",
        description="Print the JSON Schema (2020-12) of config.json, or the OpenAPI 3.1 description of the HTTP API.",
        allow_abbrev=False,
    )
    parser.add_argument("--of", choices=[*DOCUMENTS, API], default="config", help="which document (default: config)")
    parser.add_argument("--markdown", action="store_true", help="print docs/spec.md instead, or docs/http-api.md")
    return parser
