"""Read a statement of ours as Postgres does, and name everything in it that `search_path` would have to find (T-01).

What the grammar qualifies by itself (`int`, `boolean`, `extract(… FROM …)`, `current_user`) is no finding; what it
turns into a bare operator (`IN`, `BETWEEN`, `LIKE`, `NULLIF`, `CASE x WHEN`, `IS DISTINCT FROM`, `JOIN … USING`) is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import count
from typing import Any

from pglast.parser import parse_sql_json

_PLACEHOLDER = re.compile(r"%%|%(?:\(\w+\))?[stb]")
# Keys that hold a name in parts, one of them a schema, and what such a name is of.
_NAMES = {
    "funcname": "function",
    "method": "function",
    "names": "type",
    "objname": "object",
    "defnames": "object",
    "domainname": "type",
    "collname": "collation",
    "opclass": "operator class",
    "opclassname": "operator class",
    "opfamilyname": "operator family",
    "useOp": "operator",
    "operName": "operator",
}
_REGISTERED = re.compile(r"\Areg(?:class|collation|config|dictionary|oper|operator|proc|procedure|type)\Z")
# What lives in no schema, so that a bare name of it is the whole one.
_OUTSIDE_OF_SCHEMAS = frozenset(
    f"OBJECT_{kind}"
    for kind in (
        *("SCHEMA", "EXTENSION", "ROLE", "DATABASE", "TABLESPACE", "SUBSCRIPTION", "PUBLICATION", "EVENT_TRIGGER"),
        *("LANGUAGE", "FOREIGN_SERVER", "FDW", "ACCESS_METHOD", "LARGEOBJECT", "PARAMETER_ACL", "CAST", "TRANSFORM"),
    )
)


def unqualified(sql: str) -> list[str]:
    """Return every function, operator, type, cast and relation of a statement that names no schema.

    psycopg's placeholders may stand in it. What cannot be read, the text of a block or of a function, is named too.
    """
    return list(dict.fromkeys(_look(json.loads(parse_sql_json(_with_numbers(sql))), frozenset())))


def _with_numbers(sql: str) -> str:
    numbers = count(1)
    return _PLACEHOLDER.sub(lambda found: "%" if found[0] == "%%" else f"${next(numbers)}", sql)


def _look(node: Any, known: frozenset[str]) -> Iterator[str]:
    """Yield what is bare in a part of the tree; `known` are the names that a WITH around it defines."""
    if isinstance(node, list):
        for inner in node:
            yield from _look(inner, known)
    elif isinstance(node, dict):
        known |= {entry["CommonTableExpr"]["ctename"] for entry in node.get("withClause", {}).get("ctes", ())}
        if "relname" in node and "schemaname" not in node and node["relname"] not in known:
            yield f"relation {node['relname']}"
        for key, inner in node.items():
            yield from _judge(key, inner)
            yield from _look(inner, known)


def _judge(key: str, value: Any) -> Iterator[str]:
    match key:
        case "A_Expr" if len(value["name"]) < 2:
            yield f"operator {_text(value['name'])}"
        case "SubLink" if value["subLinkType"] == "ANY_SUBLINK" and "operName" not in value:
            yield "operator = of IN"
        case "CaseExpr" if "arg" in value:
            yield "operator = of CASE"
        case "JoinExpr" if "usingClause" in value or value.get("isNatural"):
            yield "operator = of USING"
        case "TypeCast":
            yield from _name_in_literal(value)
        case "DoStmt":
            yield "the text of a block"
        case "CreateFunctionStmt" if "sql_body" not in value:
            yield "the text of a function"
        case "DropStmt" | "RenameStmt" | "AlterObjectSchemaStmt" | "AlterOwnerStmt" | "CommentStmt":
            yield from _object_of(value)
        case _ if key in _NAMES and _is_bare(value):
            yield f"{_NAMES[key]} {_text(value)}"


def _object_of(statement: dict[str, Any]) -> Iterator[str]:
    kind = next(statement[key] for key in ("removeType", "renameType", "objectType", "objtype") if key in statement)
    for named in statement.get("objects", [statement.get("object", {})]):
        if kind not in _OUTSIDE_OF_SCHEMAS and _is_bare(parts := named.get("List", {}).get("items", [])):
            yield f"object {_text(parts)}"


def _name_in_literal(cast: dict[str, Any]) -> Iterator[str]:
    """Yield a relation, function, … whose name is a literal: `'x'::pg_catalog.regclass` looks for it too."""
    kind, text = _text(cast["typeName"].get("names", [])[-1:]), cast["arg"].get("A_Const", {}).get("sval", {})
    name = text.get("sval", "")
    if _REGISTERED.match(kind) and "." not in name and not name.isdigit() and text:
        yield f"{kind} '{name}' in a literal"


def _is_bare(parts: Any) -> bool:
    return isinstance(parts, list) and len(parts) == 1 and "String" in parts[0]


def _text(parts: list[dict[str, Any]]) -> str:
    return ".".join(part["String"]["sval"] for part in parts)
