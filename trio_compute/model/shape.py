"""Compare a JSON value with the wire structs and report every difference; `decode` stops at the first.

One walk for all structs, led by `msgspec.inspect`. What it refuses is exactly what `decode` refuses.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct, inspect, structs

from trio_compute.model.document import Repeated, pairs_of
from trio_compute.model.problems import Path
from trio_compute.model.spec import U64_MAX

MOST_SUGGESTIONS = 500
# What neon_local writes into every file, and what nobody reads (contract 01 §6.1).
UNUSED = {"Database": frozenset({"restrict_conn", "invalid"})}
_BROKEN = object()


class Finding(Struct, frozen=True):
    """Say that something at `path` breaks `rule`, and how to mend it."""

    path: Path
    rule: str
    hint: str
    quotes_keys: bool = False  # in the hint stand words of the document


class Shape(Struct, frozen=True):
    """Hold what a value shall look like: the alternatives, and what its field means."""

    alternatives: tuple[inspect.Type, ...]
    meaning: str = ""
    example: object = _BROKEN
    is_secret: bool = False
    is_required: bool = False

    @property
    def is_nullable(self) -> bool:
        """Tell whether null is allowed."""
        return any(isinstance(alternative, inspect.NoneType) for alternative in self.alternatives)


def shape_of(kind: inspect.Type) -> Shape:
    """Return a type without the wrappings of msgspec: metadata, unions."""
    if isinstance(kind, inspect.Metadata):
        inner, about = shape_of(kind.type), kind.extra_json_schema or {}
        return Shape(
            inner.alternatives,
            about.get("description", inner.meaning),
            about.get("examples", [inner.example])[0],
            (kind.extra or {}).get("secret", inner.is_secret),
        )
    if isinstance(kind, inspect.UnionType):
        members = [shape_of(member) for member in kind.types]
        meaning = next((member.meaning for member in members if member.meaning), "")
        return Shape(tuple(kind for member in members for kind in member.alternatives), meaning)
    return Shape((kind,))


def choices(kind: inspect.Type) -> list[object]:
    """Return the values of an enumeration."""
    if isinstance(kind, inspect.EnumType):
        return [member.value for member in kind.cls]
    assert isinstance(kind, inspect.LiteralType)
    return list(kind.values)


class Walk:
    """Collect errors, warnings and secrets of one document."""

    def __init__(self) -> None:
        self.errors: list[Finding] = []
        self.warnings: list[Finding] = []
        self.secrets: list[str] = []
        self._owners: dict[str, Path] = {}
        self._known: dict[int, tuple[inspect.Type, dict[str, Shape]]] = {}

    def visit_document(self, value: Any, wire: type[Struct]) -> Any:
        """Compare a whole document with a wire struct and return it with neutral values in place of wrong ones."""
        kind = inspect.type_info(wire)
        self._owners = dict(_owners(kind, ()))
        return self._visit(value, shape_of(kind), ())

    def _visit(self, value: Any, shape: Shape, path: Path) -> Any:
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            return self._wrong(path, "the number is out of range", shape)
        found = _json_name(value)
        for alternative in shape.alternatives:
            if found in _accepted(alternative):
                return self._compare(value, alternative, shape, path)
        expected = " or ".join(dict.fromkeys(_accepted(alternative)[0] for alternative in shape.alternatives))
        return self._wrong(path, f"expected {expected}, got {found}", shape)

    def _compare(self, value: Any, kind: inspect.Type, shape: Shape, path: Path) -> Any:
        match kind:
            case inspect.StructType():
                return self._object(value, kind, path)
            case inspect.DictType():
                return self._map(value, kind, shape, path)
            case inspect.ListType():
                item = self._item(kind.item_type, shape)
                return [self._visit(inner, item, (*path, number)) for number, inner in enumerate(value)]
            case inspect.StrType(pattern=str(pattern)) if re.search(pattern, value) is None:
                return self._wrong(path, "the text does not have the right form", shape)
            case inspect.IntType():
                return self._integer(value, kind, shape, path)
            case inspect.FloatType() if not _fits_float(value):
                return self._wrong(path, "the number is out of range", shape)
            case inspect.EnumType() | inspect.LiteralType() if value not in choices(kind):
                return self._wrong_choice(value, kind, shape, path)
            case inspect.AnyType():
                self._anything(value, path)
        return value

    def _object(self, value: dict[str, Any], kind: inspect.StructType, path: Path) -> Any:
        self._note_repeated(value, path)
        shapes = self._shapes(kind)
        unknown = [key for key in value if key not in shapes and key not in UNUSED.get(kind.cls.__name__, ())]
        repaired = {}
        for key, inner in pairs_of(value):
            if key in shapes:
                if shapes[key].is_secret:
                    self.secrets += _texts(inner)
                repaired[key] = self._visit(inner, shapes[key], (*path, key))
        for name, shape in shapes.items():
            if shape.is_required and name not in value:
                repaired[name] = self._wrong((*path, name), "a required key is missing", shape, _meant(name, unknown))
            elif not shape.is_required and repaired.get(name) is _BROKEN:
                del repaired[name]
        self._note_unknown(unknown, shapes, path)
        return _BROKEN if any(inner is _BROKEN for inner in repaired.values()) else repaired

    def _shapes(self, kind: inspect.StructType) -> dict[str, Shape]:
        """Return the shapes of a struct's fields, made once; the type is kept, so its identity stays its own."""
        if id(kind) not in self._known:
            shapes = {
                field.encode_name: structs.replace(shape_of(field.type), is_required=field.required)
                for field in kind.fields
            }
            self._known[id(kind)] = (kind, shapes)
        return self._known[id(kind)][1]

    def _item(self, kind: inspect.Type, outer: Shape) -> Shape:
        """Return the shape of the items of a list or map; they mean what the whole means, unless they say otherwise."""
        shape = shape_of(kind)
        return shape if shape.meaning else structs.replace(shape, meaning=outer.meaning)

    def _map(self, value: dict[str, Any], kind: inspect.DictType, shape: Shape, path: Path) -> Any:
        self._note_repeated(value, path)
        key_shape, item = shape_of(kind.key_type), self._item(kind.value_type, shape)
        repaired = {}
        for key, inner in pairs_of(value):
            is_key = self._visit(key, key_shape, (*path, key)) is not _BROKEN
            repaired_item = self._visit(inner, item, (*path, key))
            if is_key and repaired_item is not _BROKEN:
                repaired[key] = repaired_item
        return repaired

    def _integer(self, value: int, kind: inspect.IntType, shape: Shape, path: Path) -> Any:
        lowest, highest = kind.ge, U64_MAX if kind.le is None else kind.le
        if (lowest is not None and value < lowest) or value > highest:
            return self._wrong(path, f"the number must be from {lowest} to {highest}", shape)
        return value

    def _anything(self, value: Any, path: Path) -> None:
        """Look through a value of no known shape, without recursion: it may be deep."""
        rest = [(value, path)]
        while rest:
            inner, place = rest.pop()
            if isinstance(inner, dict):
                self._note_repeated(inner, place)
                rest += [(deeper, (*place, key)) for key, deeper in pairs_of(inner)]
            elif isinstance(inner, list):
                rest += [(deeper, (*place, number)) for number, deeper in enumerate(inner)]
            elif isinstance(inner, float) and inner in (float("inf"), float("-inf")):
                self.errors.append(Finding(place, "the number is out of range", "write a number that fits 64 bits"))

    def _wrong(self, path: Path, rule: str, shape: Shape, hint: str = "") -> Any:
        if rule.endswith("got null"):
            hint = "null is not allowed here: " + (
                "give a value" if shape.is_required else "leave it out, or give a value"
            )
        is_quoting = hint.startswith("is ")
        self.errors.append(Finding(path, rule, hint or shape.meaning or "compare it with docs/spec.md", is_quoting))
        return _neutral(shape)

    def _wrong_choice(self, value: object, kind: inspect.Type, shape: Shape, path: Path) -> Any:
        names = [str(choice) for choice in choices(kind)]
        close = _closest(str(value), names)
        listed = ", ".join(names)
        guess = f"did you mean {close}? " if close else ""
        return self._wrong(path, f"unknown value, not one of {listed}", shape, guess + shape.meaning)

    def _note_repeated(self, value: dict[str, Any], path: Path) -> None:
        if isinstance(value, Repeated):
            seen: set[str] = set()
            for key, _ in value.pairs:
                if key in seen:
                    rule = "the key occurs more than once; the last one counts"
                    self.warnings.append(
                        Finding((*path, key), rule, "the original compute_ctl refuses the file: keep one")
                    )
                seen.add(key)

    def _note_unknown(self, unknown: list[str], shapes: dict[str, Shape], path: Path) -> None:
        for key in unknown:
            close = _closest(key, list(shapes)) if len(self.warnings) < MOST_SUGGESTIONS else None
            owner = self._owners.get(key)
            if close is not None:
                hint = f"did you mean {close}?"
            elif owner is not None:
                hint = f"{key} belongs into {owner[-1] if owner else 'the outermost object'}"
            else:
                hint = "it has no effect: take it away unless something else reads it"
            self.warnings.append(Finding((*path, key), "unknown key", hint))


def _json_name(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def _accepted(kind: inspect.Type) -> tuple[str, ...]:
    match kind:
        case inspect.NoneType():
            return ("null",)
        case inspect.BoolType():
            return ("boolean",)
        case inspect.IntType():
            return ("integer",)
        case inspect.FloatType():
            return ("number", "integer")
        case inspect.StrType() | inspect.EnumType() | inspect.LiteralType():
            return ("string",)
        case inspect.ListType():
            return ("array",)
        case inspect.StructType() | inspect.DictType():
            return ("object",)
        case inspect.AnyType():
            return ("anything", "null", "boolean", "integer", "number", "string", "array", "object")
    raise NotImplementedError(type(kind).__name__)


def _neutral(shape: Shape) -> Any:
    """Return a value that fits and breaks no rule of its own, so that the rules about the rest can still be tried."""
    if shape.is_nullable:
        return None
    if shape.example is not _BROKEN:
        return shape.example
    match shape.alternatives[0]:
        case inspect.StructType(fields=fields):
            return {field.encode_name: _neutral(shape_of(field.type)) for field in fields if field.required}
        case inspect.EnumType() | inspect.LiteralType() as kind:
            return choices(kind)[0]
        case inspect.StrType(pattern=None):
            return ""
        case inspect.IntType(ge=lowest):
            return max(lowest or 0, 0)
        case kind:
            plain = {inspect.BoolType: False, inspect.FloatType: 0.0, inspect.ListType: [], inspect.DictType: {}}
            return plain.get(type(kind), _BROKEN)


def _fits_float(value: float) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _texts(value: Any) -> list[str]:
    """Return every text in a value that should have been one secret text."""
    texts, rest = [], [value]
    while rest:
        inner = rest.pop()
        if isinstance(inner, dict):
            rest += [part for pair in pairs_of(inner) for part in pair]
        elif isinstance(inner, list):
            rest += inner
        elif inner is not None and not isinstance(inner, bool):
            texts.append(str(inner))
    return texts


def _meant(name: str, unknown: list[str]) -> str:
    close = _closest(name, unknown[:MOST_SUGGESTIONS])
    return f"is {close} meant to be {name}?" if close else ""


def _closest(word: str, candidates: list[str]) -> str | None:
    """Return the candidate that `word` is a slip of, if any."""
    plain = {candidate[:64].lower().replace("-", "_"): candidate for candidate in candidates}
    close = difflib.get_close_matches(word[:64].lower().replace("-", "_"), plain, n=1, cutoff=0.75)
    return plain[close[0]] if close else None


def _owners(kind: inspect.Type, path: Path) -> Iterator[tuple[str, Path]]:
    """Yield each field's name with the path of keys that leads to the object it belongs into, inner ones first."""
    for alternative in shape_of(kind).alternatives:
        match alternative:
            case inspect.StructType(fields=fields):
                for field in fields:
                    yield from _owners(field.type, (*path, field.encode_name))
                yield from ((field.encode_name, path) for field in fields)
            case inspect.ListType(item_type=inner) | inspect.DictType(value_type=inner):
                yield from _owners(inner, path)
