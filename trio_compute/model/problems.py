"""What is wrong with a spec: one broken rule and where it is broken."""

from __future__ import annotations

from msgspec import Struct

Path = tuple[str | int, ...]


class Problem(Struct, frozen=True, kw_only=True):
    """Name one broken rule: where in the spec, the contract's text, what to do, and what else it depends on."""

    path: Path
    message: str
    hint: str
    also: tuple[Path, ...] = ()
