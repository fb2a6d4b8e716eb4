"""JSON Schema 2020-12 of the wire structs, as editors understand it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from trio_compute.model.spec import U64_MAX, ComputeConfig, ComputeSpec, ControlPlaneAnswer

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOCUMENTS: dict[str, type[Struct]] = {
    "config": ComputeConfig,
    "spec": ComputeSpec,
    "control-plane": ControlPlaneAnswer,
}

_REFERENCE = "#/$defs/{name}"
_TO_CONTRACT = re.compile(r" \((?:contract [^()]*|[A-Z]-[0-9]+)\)")


def json_schema(wire: type[Struct] = ComputeConfig) -> dict[str, Any]:
    """Return the schema of one kind of document; objects stand under `$defs`."""
    (root,), definitions = msgspec.json.schema_components([wire], ref_template=_REFERENCE)
    defs = {name: portable(definition) for name, definition in definitions.items()}
    own = defs[wire.__name__]
    return {
        "$schema": DIALECT,
        "title": own["title"],
        "description": own["description"],
        **root,
        "$defs": dict(sorted(defs.items())),
    }


def plain_text(text: str) -> str:
    """Return a description without references to the contract, which its readers do not have."""
    return _TO_CONTRACT.sub("", text)


def portable(value: Any) -> Any:
    """Return a schema in which patterns are those of ECMA 262 and unbounded integers end at 64 bits."""
    if isinstance(value, list):
        return [portable(item) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: portable(item) for key, item in value.items()}
    if isinstance(changed.get("pattern"), str):
        changed["pattern"] = changed["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
    if isinstance(changed.get("description"), str):
        changed["description"] = plain_text(changed["description"])
    if changed.get("type") == "integer":
        changed.setdefault("maximum", U64_MAX)
    return changed
