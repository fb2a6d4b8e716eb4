"""docs/spec.md, written from the wire structs: one table for each object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from trio_compute.model.schema import DOCUMENTS, plain_text
from trio_compute.model.shape import Shape, choices, shape_of
from trio_compute.model.spec import U64_MAX

_BOUNDS = {U64_MAX: "2⁶⁴ - 1", 2**63 - 1: "2⁶³ - 1", 2**32 - 1: "2³² - 1", -(2**63): "-2⁶³"}

_HEAD = """\
# The configuration of a compute

<!-- Written by `trio-compute schema --markdown` from trio_compute/model/spec.py; a test keeps it equal. -->

A compute reads `config.json` (`--config`), an object [ComputeConfig](#computeconfig) that holds the spec. A control
plane answers with a [ControlPlaneAnswer](#controlplaneanswer). A bare [ComputeSpec](#computespec) is read by
`--spec-path` and `--spec`.

- `trio-compute validate FILE…` reports everything that is wrong with such files, with path, rule and hint.
- `trio-compute schema` prints the JSON Schema (2020-12) for editors. In VS Code: save it as `config.schema.json`, add
  `"json.schemas": [{"fileMatch": ["config.json"], "url": "./config.schema.json"}]` to the settings.

## How to read the tables

- *required*: the key must be there and must not be null.
- Default *none*: the key may be missing or null, which is the same.
- Any other default: the key may be missing, but null is refused.
- Unknown keys are ignored everywhere; `validate` warns about them. Integers are written without fraction or exponent.
- *secret*: never printed, logged or answered by anything.

## Rules that no table shows

- Pageservers are taken from the first that is there: `pageserver_connection_info`, `pageserver_connstring` with
  `shard_stripe_size`, settings `neon.pageserver_connstring` and `neon.stripe_size`. Several shards need a stripe size.
- Every shard has a pageserver, whose URL is of the preferred protocol.
- A primary has safekeepers, each `host:port` and named once: `safekeeper_connstrings`, else setting `neon.safekeepers`.
- Tenant and timeline are named by field or by setting.
- Names have 1 to 63 bytes. No role is named `public`, `none` or `pg_…`, be it in `cluster.roles`, as an owner, in a
  delta operation, in `role_names` or among options; only `IN ROLE` may name a role that Postgres brings.
- Passwords are SCRAM verifiers, md5 hashes (doubtful: see docs/security.md) or plain text (doubtful too); options of
  roles and databases are known ones. Of `cloud_admin` only the password is set.
- The delta operations `rename_db` and `rename_role` have a `new_name`; none touches roles or databases of the system; a
  role that is to be deleted is neither listed nor the owner of a listed database. Every setting has a value.

## Objects
"""


def markdown() -> str:
    """Return the text of docs/spec.md."""
    objects: dict[str, inspect.StructType] = {}
    for wire in DOCUMENTS.values():
        _collect(inspect.type_info(wire), objects)
    return "\n".join([_HEAD, *(line for kind in objects.values() for line in _section(kind))])


def _collect(kind: inspect.Type, objects: dict[str, inspect.StructType]) -> None:
    for alternative in shape_of(kind).alternatives:
        match alternative:
            case inspect.StructType(cls=cls, fields=fields) if cls.__name__ not in objects:
                objects[cls.__name__] = alternative
                for field in fields:
                    _collect(field.type, objects)
            case inspect.ListType(item_type=inner) | inspect.DictType(value_type=inner):
                _collect(inner, objects)


def _section(kind: inspect.StructType) -> Iterator[str]:
    yield f"### {kind.cls.__name__}"
    yield ""
    yield plain_text(kind.cls.__doc__ or "")
    yield ""
    yield "| field | type | default | meaning | secret? |"
    yield "|---|---|---|---|---|"
    for field in kind.fields:
        shape = shape_of(field.type)
        cells = (f"`{field.encode_name}`", _type_text(shape), _default_text(field), shape.meaning)
        secrecy = "secret" if shape.is_secret else ""
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} | {secrecy} |"
    yield ""


def _default_text(field: inspect.Field) -> str:
    if field.required:
        return "*required*"
    default: Any = field.default
    if default is msgspec.NODEFAULT:
        assert field.default_factory is not msgspec.NODEFAULT
        default = field.default_factory()
    return "none" if default is None else f"`{msgspec.json.encode(default).decode()}`"


def _type_text(shape: Shape) -> str:
    names = [_name(kind) for kind in shape.alternatives if not isinstance(kind, inspect.NoneType)]
    return " or ".join(names)


def _name(kind: inspect.Type) -> str:
    match kind:
        case inspect.StructType(cls=cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case inspect.ListType(item_type=inner):
            return f"list of {_type_text(shape_of(inner))}"
        case inspect.DictType(value_type=inspect.AnyType()):
            return "any object"
        case inspect.DictType(value_type=inner):
            return f"map of text to {_type_text(shape_of(inner))}"
        case inspect.EnumType() | inspect.LiteralType():
            return ", ".join(f'`"{choice}"`' for choice in choices(kind))
        case inspect.IntType(ge=lowest, le=highest):
            return f"integer, {_bound(lowest)} to {_bound(U64_MAX if highest is None else highest)}"
        case inspect.StrType():
            return "text"
        case inspect.BoolType():
            return "boolean"
        case inspect.FloatType():
            return "number"
        case _:
            return "any value"


def _bound(number: int | None) -> str:
    assert number is not None
    return _BOUNDS.get(number, str(number))
