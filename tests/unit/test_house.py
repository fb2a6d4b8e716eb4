"""The shape of the house (design §1, §2, §8): who may import whom, sizes, docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import trio_compute

ROOT = Path(trio_compute.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MAX_LINES = 400

# A room may import from its own floor and those below: model ← lifecycle, plan ← adapters ← services ← http, run.
FLOORS = (
    {"conninfo", "deadlines", "errors", "settings", "trace_settings", "model", "telemetry"},
    {"lifecycle", "plan"},
    {"db", "postgres", "storage", "host", "vm_monitor"},
    {"ports"},
    {"services"},
    {"http", "run"},
    {"client", "commands", "embedded"},
    {"cli", "__main__", "__init__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What the floors alone would allow.
NARROWER = {
    "errors": set[str](),
    "conninfo": {"errors"},
    "deadlines": set[str](),
    "settings": {"conninfo", "deadlines", "errors", "trace_settings"},
    "trace_settings": set[str](),
    "model": {"conninfo", "errors", "model"},
    "telemetry": {"errors", "model", "telemetry"},
    "plan": {"conninfo", "deadlines", "errors", "model", "plan", "settings"},
    "lifecycle": {"conninfo", "deadlines", "errors", "settings", "model", "telemetry", "lifecycle"},
    # Who uses it needs no server.
    "client": {"errors", "model", "plan", "telemetry", "client"},
}


HIDES_VARIABLES_FROM_LIBPQ = {"db/connection.py"}  # it reads none of them
# One door to Postgres, behind which a session is a fortress (contract 11 T-01 … T-07); the others speak to the storage.
OPEN_SESSIONS = {
    "db/connection.py", "db/maintenance.py", "storage/safekeepers.py", "storage/pageserver.py", "storage/lsn_lease.py",
}  # fmt: skip
# Design §8 names the first two; the third runs a postmaster, whose nursery raises groups, outside of both.
TAKE_GROUPS_APART = {"run.py", "services/supervise.py", "postgres/warm_up.py"}


def place(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def modules(tree: ast.AST) -> Iterator[str]:
    """Yield every module that a file imports, at its top, inside functions or for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    """Return the rooms of this package that a file imports from."""
    names = {module.split(".")[1] for module in modules(TREES[path]) if module.startswith("trio_compute.")}
    return names - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=place)
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"no floor for {room}"
    allowed = NARROWER.get(room, {other for other, floor in FLOOR.items() if floor <= FLOOR[room]})
    assert rooms_imported(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=place)
def test_only_the_command_line_imports_the_embedded_storage(path: Path) -> None:
    if room_of(path) not in {"cli", "embedded"}:
        assert "embedded" not in rooms_imported(path)


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in {"plan", "model", "lifecycle"}], ids=place)
def test_decisions_are_made_without_trio(path: Path) -> None:
    """Design §2: `plan` and `model` never import trio, `lifecycle` only in `cell` and `compute`."""
    imported = {module.split(".")[0] for module in modules(TREES[path])}
    if place(path) not in {"lifecycle/cell.py", "lifecycle/compute.py"}:
        assert "trio" not in imported
    assert not imported & {"socket", "subprocess", "os", "threading", "asyncio", "time"}


@pytest.mark.parametrize("path", FILES, ids=place)
def test_there_is_one_door_to_postgres(path: Path) -> None:
    """T-01: whoever needs SQL opens a maintenance session."""
    names = {node.attr for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(TREES[path]) if isinstance(node, ast.Name)}
    if room_of(path) != "embedded" and place(path) not in OPEN_SESSIONS:
        assert not names & {"open_connection", "TrioConnection", "connect_start"}


@pytest.mark.parametrize("path", FILES, ids=place)
def test_the_settings_are_the_only_reader_of_arguments_and_environment(path: Path) -> None:
    if room_of(path) in {"settings", "cli", "__main__", "embedded"} or place(path) in HIDES_VARIABLES_FROM_LIBPQ:
        return
    reads = {ast.unparse(node) for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute)}
    assert not reads & {"os.environ", "os.environb", "os.getenv", "sys.argv", "sys.orig_argv"}
    assert not {"os.environ", "os.getenv", "sys.argv"} & set(modules(TREES[path]))


@pytest.mark.parametrize("path", FILES, ids=place)
def test_groups_of_errors_are_taken_apart_in_few_places_only(path: Path) -> None:
    if place(path) not in TAKE_GROUPS_APART and room_of(path) != "embedded":
        assert not [node.lineno for node in ast.walk(TREES[path]) if isinstance(node, ast.TryStar)]


@pytest.mark.parametrize("path", FILES, ids=place)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def public_definitions(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, ast.AST]]:
    yield name, node
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child, f"{name}.{child.name}")
            else:
                yield f"{name}.{child.name}", child


def needs_no_docstring(node: ast.AST) -> bool:
    """Tell whether a definition overrides one that is documented where it comes from."""
    names = {ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])}
    return bool(names & {"override", "overload", "typing.override"})


@pytest.mark.parametrize("path", FILES, ids=place)
def test_every_public_name_has_a_docstring(path: Path) -> None:
    missing = [
        name
        for name, node in public_definitions(TREES[path], place(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not needs_no_docstring(node)
        and not (ast.get_docstring(node) or "").strip()
    ]
    assert not missing


def test_no_room_has_a_name_that_says_nothing() -> None:
    """Design §8."""
    stems = {path.stem for path in FILES}
    assert not stems & {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}
