"""`trio-compute schema`: the shape of configuration files, for editors and for people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec

from trio_compute.model.schema import DOCUMENTS, json_schema


def run_schema(argv: Sequence[str]) -> int:
    """Print the JSON Schema, or docs/spec.md; return 0, or 2 for a wrong command line."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return 0 if stop.code in {None, 0} else 2
    if arguments.markdown:
        from trio_compute.model.describe import markdown

        sys.stdout.write(markdown())
        return 0
    text = msgspec.json.format(msgspec.json.encode(json_schema(DOCUMENTS[arguments.of]))).decode()
    sys.stdout.write(text + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trio-compute schema",
        description="Print the JSON Schema (2020-12) of config.json.",
        allow_abbrev=False,
    )
    parser.add_argument("--of", choices=list(DOCUMENTS), default="config", help="which document (default: config)")
    parser.add_argument("--markdown", action="store_true", help="print docs/spec.md instead")
    return parser
