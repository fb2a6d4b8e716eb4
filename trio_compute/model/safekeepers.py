"""Which safekeepers a spec names, and what is wrong or doubtful with them (contract 01 §9, 11 C-01, C-05)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from trio_compute.errors import SpecError
from trio_compute.model.addresses import host_port_text, is_url, safekeeper_address
from trio_compute.model.problems import SETTINGS, Path, Problem, Step, setting_path
from trio_compute.model.spec import ComputeSpec

FIELD: Path = ("safekeeper_connstrings",)
SETTING = "neon.safekeepers"

_GENERATION_PREFIX = re.compile(r"\Ag#([0-9]{1,20}):")


def named_safekeepers(spec: ComputeSpec) -> Step[tuple[tuple[str, ...], Path] | None]:
    """Return the entries as they are written and where they stand."""
    if spec.safekeeper_connstrings:
        return tuple(spec.safekeeper_connstrings), FIELD
    if spec.mode != "Primary":
        return (), FIELD
    text = spec.cluster.setting(SETTING)
    if text is None:
        yield Problem(
            path=FIELD,
            message="safekeeper connstrings should be provided",
            hint="a primary needs at least one safekeeper, as host:port",
            also=(("mode",), SETTINGS),
        )
        return None
    return _entries(text), setting_path(spec, SETTING)


def check_safekeepers(spec: ComputeSpec, entries: tuple[str, ...], path: Path) -> Step[None]:
    """Yield entries that are no address, and what a primary needs of all of them together."""
    listed = path == FIELD
    if spec.mode == "Primary":
        if not entries:
            hint = "a primary needs at least one safekeeper, as host:port"
            yield Problem(path=path, message="safekeeper_connstrings is empty", hint=hint)
        for entry, second in sorted(_second_places(entries).items()):
            yield Problem(
                path=(*path, second) if listed else path,
                message=f"duplicate entry in safekeeper_connstrings: {entry}!",
                hint="name each safekeeper once",
                also=(("mode",),),
            )
    for number, entry in enumerate(entries):
        try:
            safekeeper_address(entry)
        except SpecError as error:
            place = (*path, number) if listed else path
            yield Problem(path=place, message=str(error), hint="write host:port, an IPv6 host in brackets")


def safekeeper_warnings(spec: ComputeSpec, entries: tuple[str, ...]) -> tuple[str, ...]:
    """Say what of the safekeepers is accepted but hardly meant."""
    told = (url_warning(entries), setting_warning(spec))
    return tuple(text for text in told if text is not None)


def url_warning(entries: Iterable[str]) -> str | None:
    """Say that URLs stand where the contract has `host:port`, if that is so (C-01)."""
    if not any(is_url(entry) for entry in entries):
        return None
    return "safekeepers are given as URLs: the compute uses host and port of them, Postgres gets them as written"


def setting_warning(spec: ComputeSpec) -> str | None:
    """Say that the setting, which Postgres obeys, names other safekeepers or another generation (C-05)."""
    # Postgres folds names and the last one counts.
    texts = [option.value for option in spec.cluster.settings or () if option.name.lower() == SETTING and option.value]
    if not spec.safekeeper_connstrings or not texts:
        return None
    generation = _GENERATION_PREFIX.match(texts[-1])
    differing = []
    if _places(spec.safekeeper_connstrings) != _places(_entries(texts[-1])):
        differing.append(FIELD[0])
    if spec.safekeepers_generation not in {None, int(generation[1]) if generation is not None else -1}:
        differing.append("safekeepers_generation")
    if not differing:
        return None
    names = " and ".join(map(str, differing))
    return f"{names} and setting {SETTING} disagree: the compute uses the former, Postgres the latter"


def _places(entries: Iterable[str]) -> set[str]:
    return {(_shown(entry) or entry).lower() for entry in entries}


def _entries(setting: str) -> tuple[str, ...]:
    text = _GENERATION_PREFIX.sub("", setting)
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _second_places(entries: tuple[str, ...]) -> dict[str, int]:
    """Return what occurs more than once, be it written in two ways, each with the place of its second occurrence."""
    first: dict[str, int] = {}
    second: dict[str, int] = {}
    for number, entry in enumerate(entries):
        name = _shown(entry)
        if name is not None and first.setdefault(name.lower(), number) != number:
            second.setdefault(name, number)
    return second


def _shown(entry: str) -> str | None:
    """Return host and port as text, None if the entry is a URL without; a nonsensical other entry as it is."""
    try:
        return host_port_text(*safekeeper_address(entry))
    except SpecError:
        return None if is_url(entry) else entry
