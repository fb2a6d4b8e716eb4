"""What is wrong with a spec: one broken rule, where it is broken, and how to say so."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from msgspec import Struct

from trio_compute.model.spec import ComputeSpec

Path = tuple[str | int, ...]

SETTINGS: Path = ("cluster", "settings")


class Problem(Struct, frozen=True, kw_only=True):
    """Name one broken rule: where in the spec, the text, what to do, and what else it depends on.

    Where the contract does not fix the text, a start and `/configure` tell path and hint too (`is_told_whole`).
    """

    path: Path
    message: str
    hint: str
    also: tuple[Path, ...] = ()
    is_told_whole: bool = False


def json_path(path: Path) -> str:
    """Return a path of known keys and numbers as JSONPath spells it."""
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


T = TypeVar("T")
# A step of the derivation yields what is wrong and returns its result, or None if it has none.
Step = Generator[Problem, None, T]


def outcome(step: Step[T]) -> T:
    """Return the result of a step, whatever it finds wrong."""
    while True:
        try:
            next(step)
        except StopIteration as end:
            result: T = end.value
            return result


def setting_path(spec: ComputeSpec, name: str) -> Path:
    """Return where the value of the first setting of this name stands."""
    numbers = (number for number, option in enumerate(spec.cluster.settings or ()) if option.name == name)
    return (*SETTINGS, next(numbers, 0), "value")
