"""Identifiers of Neon storage and their text formats (contract 01 §7.1, 07 §1)."""

from __future__ import annotations

import re
from typing import Annotated, NewType, Self

from msgspec import Meta

TenantId = NewType("TenantId", str)
TimelineId = NewType("TimelineId", str)

HEX_ID_PATTERN = r"\A[0-9a-fA-F]{32}\Z"
LSN_PATTERN = r"\A\s*0*[0-9a-fA-F]{1,8}/0*[0-9a-fA-F]{1,8}\s*\Z"
SHARD_INDEX_PATTERN = r"\A[0-9a-fA-F]{4}\Z"

HexIdText = Annotated[str, Meta(pattern=HEX_ID_PATTERN, description="32 hex digits")]
LsnText = Annotated[str, Meta(pattern=LSN_PATTERN, description="LSN as HI/LO, two hex numbers")]
ShardIndexText = Annotated[str, Meta(pattern=SHARD_INDEX_PATTERN, description="shard number and shard count, hex")]

_HEX_ID = re.compile(HEX_ID_PATTERN)
_LSN = re.compile(LSN_PATTERN)


class Lsn(int):
    """Hold a position in the write-ahead log; prints as `HI/LO`, compares as a number."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the LSN that `text` spells; raise ValueError otherwise (contract 07 §1)."""
        if _LSN.match(text) is None:
            raise ValueError(f"invalid LSN {text[:40]!r}: expected two hex numbers joined by one slash")
        high, low = text.strip().split("/")
        return cls(int(high, 16) << 32 | int(low, 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({self!s})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


INVALID_LSN = Lsn(0)


def is_hex_id(text: str) -> bool:
    """Tell whether `text` is a tenant or timeline id: exactly 32 hex digits."""
    return _HEX_ID.match(text) is not None


UNSHARDED = "0000"


def shard_index(number: int, count: int) -> str:
    """Return the four hex digits that name shard `number` of `count`; `0000` is unsharded."""
    return f"{number:02x}{count:02x}"
