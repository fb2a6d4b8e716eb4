"""What is wrong with a spec: one broken rule, where it is broken, and how to say so."""

from __future__ import annotations

from msgspec import Struct

Path = tuple[str | int, ...]


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
