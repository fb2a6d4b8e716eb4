"""What shall go wrong in the storage of `trio-compute dev`, as flags say it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from msgspec import Struct

from trio_compute.embedded.pageserver import Faults

WRONG_TOKEN = "wrong-token"  # noqa: S105  (the name of a fault)


class Kind(Struct, frozen=True):
    """Describe a fault: the field of Faults it sets, how its value is read, and what it does."""

    field: str
    value: str
    read: Callable[[str], float]
    does: str


KINDS = {
    "delay": Kind("delay_before_copy_seconds", "SECONDS", float, "the pageserver waits before a basebackup"),
    "refuse": Kind("fail_connections", "N", int, "the pageserver refuses that many connections, then none"),
    "corrupt": Kind("corrupt_at_byte", "BYTE", int, "each basebackup has this byte inverted"),
    "cut": Kind("cut_at_byte", "BYTE", int, "each basebackup ends at this byte"),
}
HELP = "; ".join(
    [
        *(f"{name}={kind.value}: {kind.does}" for name, kind in KINDS.items()),
        f"{WRONG_TOKEN}: the spec has a token of another tenant",
    ]
)


class Fault(Struct, frozen=True):
    """Name a fault, with its value; `wrong-token` has none."""

    name: str
    value: float = 0


def parse_fault(text: str) -> Fault:
    """Return the fault that a flag names; raise ArgumentTypeError when it does not."""
    name, _, value = text.partition("=")
    if text == WRONG_TOKEN:
        return Fault(name)
    kind = KINDS.get(name)
    if kind is None:
        raise argparse.ArgumentTypeError(f"unknown fault {name!r}; there are {', '.join([*KINDS, WRONG_TOKEN])}")
    try:
        number = kind.read(value)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{name} needs {kind.value}, a number that is not negative")
    return Fault(name, number)


def pageserver_faults(given: Sequence[Fault]) -> Faults:
    """Return what goes wrong in the pageservers."""
    faults = Faults()
    for fault in given:
        if fault.name in KINDS:
            setattr(faults, KINDS[fault.name].field, fault.value)
    return faults


def spoils_token(given: Sequence[Fault]) -> bool:
    """Tell whether the storage shall refuse the compute's token."""
    return any(fault.name == WRONG_TOKEN for fault in given)
