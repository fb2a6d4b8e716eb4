"""Identifiers of Neon storage: their text formats and round trips (contract 01 §7.1, 07 §1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.model.ids import INVALID_LSN, Lsn, is_hex_id, shard_index


@pytest.mark.parametrize(
    ("text", "number", "printed"),
    [
        ("0/16ABCDE", 0x16ABCDE, "0/16ABCDE"),
        ("1A/0", 0x1A << 32, "1A/0"),
        ("0/028F10D8", 0x28F10D8, "0/28F10D8"),
        ("1a/abcd", 0x1A_0000_ABCD, "1A/ABCD"),
        (" 0/1 \n", 1, "0/1"),
        ("0/0", 0, "0/0"),
        ("FFFFFFFF/FFFFFFFF", 2**64 - 1, "FFFFFFFF/FFFFFFFF"),
        ("0000000001/0000000002", 0x1_0000_0002, "1/2"),
    ],
)
def test_an_lsn_is_two_hex_halves_of_any_case_and_padding(text: str, number: int, printed: str) -> None:
    lsn = Lsn.parse(text)
    assert lsn == number
    assert str(lsn) == printed


@pytest.mark.parametrize(
    "text",
    ["", "/", "0", "16ABCDE", "0/", "/0", "0/0/0", "0//0", "g/0", "0/-1", "+0/1", "0x1/2", "0 / 1", "1_0/1"],
)
def test_anything_else_is_no_lsn(text: str) -> None:
    with pytest.raises(ValueError, match="invalid LSN"):
        Lsn.parse(text)


@pytest.mark.parametrize("text", ["100000000/0", "0/100000000", "٣/1", "0/1\0"])
def test_a_half_beyond_32_bits_or_not_in_ascii_is_no_lsn(text: str) -> None:
    with pytest.raises(ValueError, match="invalid LSN"):
        Lsn.parse(text)


def test_a_very_long_wrong_lsn_is_refused_at_once_and_not_quoted_whole() -> None:
    with pytest.raises(ValueError, match="invalid LSN") as caught:
        Lsn.parse("0" * 200_000)
    assert len(str(caught.value)) < 200


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_every_lsn_survives_printing_and_parsing(number: int) -> None:
    assert Lsn.parse(str(Lsn(number))) == number


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_an_lsn_prints_its_halves_in_upper_case_without_padding(high: int, low: int) -> None:
    text = str(Lsn(high << 32 | low))
    assert text == f"{high:X}/{low:X}"
    assert f"{Lsn.parse(text)}" == text


def test_lsns_compare_as_numbers_and_not_as_text() -> None:
    assert Lsn.parse("9/0") < Lsn.parse("A/0") < Lsn.parse("10/0")
    assert Lsn.parse("0/0") == INVALID_LSN
    assert repr(Lsn(5)) == "Lsn(0/5)"
    assert f"{Lsn(5):>6}" == "   0/5"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("c843bad4370fbb618bae6ba8a9eeb18a", True),
        ("C843BAD4370FBB618BAE6BA8A9EEB18A", True),
        ("c843bad4370fbb618bae6ba8a9eeb18", False),
        ("c843bad4370fbb618bae6ba8a9eeb18aa", False),
        ("c843bad4370fbb618bae6ba8a9eeb18g", False),
        ("c843bad4370fbb618bae6ba8a9eeb18a\n", False),
        (" c843bad4370fbb618bae6ba8a9eeb18a", False),
        ("٣" * 32, False),
        ("", False),
    ],
)
def test_a_tenant_or_timeline_id_is_exactly_32_hex_digits(text: str, valid: bool) -> None:
    assert is_hex_id(text) is valid


@given(st.binary(min_size=16, max_size=16))
def test_every_16_bytes_in_hex_are_an_id(data: bytes) -> None:
    assert is_hex_id(data.hex())
    assert is_hex_id(data.hex().upper())


@pytest.mark.parametrize(
    ("number", "count", "text"), [(0, 0, "0000"), (1, 2, "0102"), (11, 16, "0b10"), (0, 1, "0001")]
)
def test_a_shard_index_is_number_byte_then_count_byte(number: int, count: int, text: str) -> None:
    assert shard_index(number, count) == text


@given(st.integers(0, 255), st.integers(0, 255))
def test_every_shard_index_can_be_read_back(number: int, count: int) -> None:
    assert tuple(bytes.fromhex(shard_index(number, count))) == (number, count)
