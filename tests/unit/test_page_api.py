"""What goes over the wire to a gRPC pageserver: messages, metadata, and the name of the peer (contract 07 §5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.errors import SpecError
from trio_compute.model.ids import Lsn
from trio_compute.storage import page_api
from trio_compute.storage.grpc_pageserver import call_metadata, channel_target


def test_messages_have_the_fields_of_the_contract() -> None:
    """Contract 07 §5: numbers and types, byte for byte."""
    request = page_api.BaseBackupRequest(lsn=Lsn(300), replica=True)
    assert request.encode() == bytes.fromhex("08ac02 1001 2002")
    assert page_api.BaseBackupRequest().encode() == bytes.fromhex("2002")
    assert page_api.encode_lease_request(Lsn(2**64 - 1)) == b"\x08" + b"\xff" * 9 + b"\x01"
    assert page_api.encode_lease_response(1.5) == bytes.fromhex("0a08 0801 1080cab5ee01")
    assert page_api.encode_chunk(b"abc") == b"\x0a\x03abc"


@given(st.integers(0, 2**64 - 1), st.booleans(), st.booleans(), st.integers(0, 2))
def test_basebackup_requests_survive_the_wire(lsn: int, replica: bool, full: bool, compression: int) -> None:
    request = page_api.BaseBackupRequest(lsn=Lsn(lsn), replica=replica, full=full, compression=compression)
    assert page_api.BaseBackupRequest.decode(request.encode()) == request


@given(st.binary(max_size=400), st.integers(1, 2**64 - 1), st.integers(-(10**12), 10**12))
def test_the_other_messages_survive_the_wire(data: bytes, lsn: int, expiry: int) -> None:
    assert bytes(page_api.decode_chunk(page_api.encode_chunk(data))) == data
    assert page_api.decode_lease_request(page_api.encode_lease_request(Lsn(lsn))) == lsn
    assert page_api.decode_lease_response(page_api.encode_lease_response(expiry)) == expiry


def test_unknown_fields_are_skipped_and_the_last_of_a_field_counts() -> None:
    extra = bytes.fromhex("7a03616263 7d01020304 7901020304050607 08 7801")
    assert bytes(page_api.decode_chunk(extra + b"\x0a\x01x" + b"\x0a\x02yz")) == b"yz"
    assert bytes(page_api.decode_chunk(b"")) == b""


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for decode in (
        page_api.decode_chunk,
        page_api.decode_lease_request,
        page_api.decode_lease_response,
        page_api.BaseBackupRequest.decode,
    ):
        try:
            decode(data)
        except page_api.MalformedMessage:
            continue


@pytest.mark.parametrize("data", [b"", b"\x08\x01", b"\x0a\x05x", b"\x0a\xff", b"\x0b", b"\x80" * 11, b"\x0a"])
def test_an_answer_without_an_expiry_is_malformed(data: bytes) -> None:
    with pytest.raises(page_api.MalformedMessage):
        page_api.decode_lease_response(data)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("grpc://ps-1:51051", "dns:///ps-1:51051"),
        ("grpc://127.0.0.1:1/", "dns:///127.0.0.1:1"),
        ("grpc://[::1]:51051", "dns:///[::1]:51051"),
        ("grpc://no_user@127.0.0.1:51051", "dns:///127.0.0.1:51051"),
    ],
)
def test_a_grpc_url_names_its_peer(url: str, target: str) -> None:
    assert channel_target(url) == target


@pytest.mark.parametrize(
    "url",
    [
        *("http://a:1", "a:1", "grpc://a", "grpc://a:0", "grpc://a:70000", "grpc://:1", "grpc://[a:1", "grpc://a:1/x"),
        *("grpc://user:hunter22@a:1", "grpc://a:1?hunter22=1", "grpc://::1:1", "unix:/run/hunter22"),
    ],
)
def test_an_unusable_grpc_url_is_an_error_of_the_spec_without_its_secrets(url: str) -> None:
    with pytest.raises(SpecError) as raised:
        channel_target(url)
    assert "hunter22" not in str(raised.value)


def test_metadata_name_tenant_timeline_shard_and_token() -> None:
    """Contract 07 §5."""
    assert dict(call_metadata("t", "l", "0b10", "jwt")) == {
        "neon-tenant-id": "t",
        "neon-timeline-id": "l",
        "neon-shard-id": "0b10",
        "authorization": "Bearer jwt",
    }
    assert "authorization" not in dict(call_metadata("t", "l", "0000", None))


@pytest.mark.parametrize("token", ["two\nlines", "schlüssel", "nul\0"])
def test_a_token_that_cannot_be_a_header_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(SpecError) as raised:
        call_metadata("t", "l", "0000", token)
    assert token not in str(raised.value)
