"""The commands that a pageserver takes over libpq, and what it says to those that it does not (contract 07 §4.2)."""

from __future__ import annotations

from msgspec import Struct

from trio_compute.embedded.wire import WireError
from trio_compute.model.ids import Lsn

ID_DIGITS = 32
SHARDED_ID_CHARACTERS = 37
HEX = frozenset("0123456789abcdefABCDEF")


class BasebackupCommand(Struct, frozen=True):
    """Hold a parsed `basebackup` or `fullbackup` command."""

    tenant: str
    timeline: str
    lsn: Lsn | None
    gzip: bool
    replica: bool


class LeaseCommand(Struct, frozen=True):
    """Hold a parsed lease command; `tenant_shard` is the tenant's id with the shard's index, if it has one."""

    tenant_shard: str
    timeline: str
    lsn: Lsn

    @property
    def tenant(self) -> str:
        """Return the tenant's id alone."""
        return self.tenant_shard[:ID_DIGITS]


class StreamCommand(Struct, frozen=True):
    """Hold a parsed `pagestream` command."""

    tenant: str
    timeline: str


class SetCommand(Struct, frozen=True):
    """Stand for a `set` command, whatever it sets."""


Command = BasebackupCommand | LeaseCommand | StreamCommand | SetCommand


def parse_command(query: str) -> Command:
    """Return the command; raise WireError as a pageserver would."""
    text = query.strip()
    word, blank, rest = text.partition(" ")
    if not blank:
        raise WireError(f"cannot parse query: {text}")
    match word.lower():
        case "basebackup":
            return parse_basebackup(rest)
        case "fullbackup":
            return _parse_fullbackup(rest)
        case "lease":
            return _parse_lease(word, rest)
        case "pagestream_v2" | "pagestream_v3":
            words = _words(rest, "pagestream", 2, 2)
            return StreamCommand(read_id(words[0], "tenant"), read_id(words[1], "timeline"))
        case "set":
            return SetCommand()
    raise WireError(f"unsupported command {word} in {text}")


def parse_basebackup(parameters: str) -> BasebackupCommand:
    """Return what follows the word `basebackup`; raise WireError as a pageserver would."""
    tenant, timeline, *rest = _words(parameters, "basebackup", 2)
    tenant, timeline = read_id(tenant, "tenant"), read_id(timeline, "timeline")
    lsn = None
    if rest and not rest[0].startswith("--"):
        text = rest.pop(0)
        lsn = None if text == "latest" else _read_lsn(text)
    flags = {"--gzip": False, "--replica": False}
    for flag in rest:
        if flag not in flags:
            raise WireError(f"invalid parameter for basebackup command: {flag}")
        if flags[flag]:
            raise WireError(f"duplicate parameter for basebackup command: {flag}")
        flags[flag] = True
    return BasebackupCommand(tenant, timeline, lsn, flags["--gzip"], flags["--replica"])


def _parse_fullbackup(parameters: str) -> BasebackupCommand:
    tenant, timeline, *lsns = _words(parameters, "basebackup", 2, 4)
    tenant, timeline = read_id(tenant, "tenant"), read_id(timeline, "timeline")
    read = [_read_lsn(text, "Lsn") for text in lsns]
    return BasebackupCommand(tenant, timeline, read[0] if read else None, gzip=False, replica=False)


def _parse_lease(word: str, rest: str) -> LeaseCommand:
    what, blank, parameters = rest.partition(" ")
    if not blank or what.lower() != "lsn":
        raise WireError(f"invalid lease command: {word}")
    tenant_shard, timeline, lsn = _words(parameters, "lease lsn", 3, 3)
    return LeaseCommand(_read_tenant_shard(tenant_shard), read_id(timeline, "timeline"), _read_lsn(lsn))


def _words(parameters: str, command: str, least: int, most: int | None = None) -> list[str]:
    words = parameters.split()
    if len(words) < least or (most is not None and len(words) > most):
        raise WireError(f"invalid number of parameters for {command} command: {parameters}")
    return words


def read_id(text: str, what: str) -> str:
    """Return an id in lower case; raise WireError with the reason of the first digit that is none."""
    trouble = hex_trouble(text, ID_DIGITS)
    if trouble is not None:
        raise _unreadable(f"{what} id", text, trouble)
    return text.lower()


def _read_tenant_shard(text: str) -> str:
    if len(text) != SHARDED_ID_CHARACTERS:
        return read_id(text, "tenant") if len(text) == ID_DIGITS else _refuse_length(text)
    trouble = hex_trouble(text[:ID_DIGITS], ID_DIGITS) or hex_trouble(text[ID_DIGITS + 1 :], 4)
    if trouble is not None:
        raise _unreadable("tenant id", text, trouble)
    return f"{text[:ID_DIGITS]}-{text[ID_DIGITS + 1 :]}".lower()


def _refuse_length(text: str) -> str:
    raise _unreadable("tenant id", text, "Invalid string length")


def _read_lsn(text: str, what: str = "lsn") -> Lsn:
    try:
        return Lsn.parse(text)
    except ValueError:
        raise _unreadable(what, text, "LsnParseError") from None


def _unreadable(what: str, text: str, reason: str) -> WireError:
    complaint = f"Failed to parse {what} from {text}"
    return WireError(f"{complaint}: {reason}", prepared=complaint)


def hex_trouble(text: str, digits: int) -> str | None:
    """Return what is wrong with so many hexadecimal digits, None if nothing is."""
    if len(text) % 2:
        return "Odd number of digits"
    if len(text) != digits:
        return "Invalid string length"
    wrong = next(((at, digit) for at, digit in enumerate(text) if digit not in HEX), None)
    return None if wrong is None else f"Invalid character {wrong[1]!r} at position {wrong[0]}"
