"""The stand-ins behave like what they stand for (contract 07 §4.2, §9, §10; 01 §8)."""

from __future__ import annotations

import struct
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
import trio

from trio_compute.embedded.endpoints import Addresses
from trio_compute.embedded.page_commands import BasebackupCommand, parse_command
from trio_compute.embedded.services import open_services
from trio_compute.embedded.wire import GSSENC_REQUEST, SSL_REQUEST, WireError
from trio_compute.embedded.world import ENDPOINT_ID, World
from trio_compute.errors import HostError
from trio_compute.model.ids import Lsn

pytestmark = pytest.mark.postgres

TENANT, TIMELINE = "a" * 32, "b" * 32


@pytest.fixture
async def addresses(world: World) -> AsyncIterator[Addresses]:
    answers = {"known/0": {"status": "empty"}}
    async with open_services(world, answer=answers.get) as addresses:
        yield addresses


@pytest.mark.parametrize(
    ("query", "lsn", "flags"),
    [
        (f"basebackup {TENANT} {TIMELINE} --gzip", None, (True, False)),
        (f"  BASEBACKUP {TENANT}   {TIMELINE} latest --replica --gzip ", None, (True, True)),
        (f"basebackup {TENANT} {TIMELINE} 0/16ABCDE --gzip --replica", Lsn.parse("0/16ABCDE"), (True, True)),
        (f"basebackup {TENANT} {TIMELINE}", None, (False, False)),
        (f"fullbackup {TENANT} {TIMELINE} 0/16ABCDE 0/16ABCD0", Lsn.parse("0/16ABCDE"), (False, False)),
    ],
)
def test_the_basebackup_grammar_is_accepted(query: str, lsn: Lsn | None, flags: tuple[bool, bool]) -> None:
    command = parse_command(query)
    assert isinstance(command, BasebackupCommand)
    assert (command.lsn, (command.gzip, command.replica)) == (lsn, flags)


@pytest.mark.parametrize(
    ("query", "text", "prepared"),
    [
        ("", "cannot parse query: ", None),
        (" BEGIN ", "cannot parse query: BEGIN", None),
        ("Select 1", "unsupported command Select in Select 1", None),
        ("basebackup x", "invalid number of parameters for basebackup command: x", None),
        (f"basebackup {TENANT} {TIMELINE} --gzip --gzip", "duplicate parameter for basebackup command: --gzip", None),
        (f"basebackup {TENANT} {TIMELINE} 0/1 --zip", "invalid parameter for basebackup command: --zip", None),
        (f"basebackup {TENANT} {TIMELINE} --gzip 0/1", "invalid parameter for basebackup command: 0/1", None),
        (f"basebackup {TENANT} {TIMELINE} 0/1 0/2", "invalid parameter for basebackup command: 0/2", None),
        (
            f"basebackup {TENANT} {TIMELINE} nonsense",
            "Failed to parse lsn from nonsense: LsnParseError",
            "Failed to parse lsn from nonsense",
        ),
        (
            f"basebackup abc {TIMELINE}",
            "Failed to parse tenant id from abc: Odd number of digits",
            "Failed to parse tenant id from abc",
        ),
        (
            f"basebackup {TENANT} {TIMELINE[:-1]}g",
            f"Failed to parse timeline id from {TIMELINE[:-1]}g: Invalid character 'g' at position 31",
            f"Failed to parse timeline id from {TIMELINE[:-1]}g",
        ),
        (
            "pagestream_v2 ab cd",
            "Failed to parse tenant id from ab: Invalid string length",
            "Failed to parse tenant id from ab",
        ),
        ("pagestream_v3 ab", "invalid number of parameters for pagestream command: ab", None),
        ("lease", "cannot parse query: lease", None),
        (f"lease page {TENANT} {TIMELINE} 0/1", "invalid lease command: lease", None),
        (
            f"lease lsn {TENANT} {TIMELINE}",
            f"invalid number of parameters for lease lsn command: {TENANT} {TIMELINE}",
            None,
        ),
        (
            f"lease lsn {TENANT}- {TIMELINE} 0/1",
            f"Failed to parse tenant id from {TENANT}-: Invalid string length",
            f"Failed to parse tenant id from {TENANT}-",
        ),
    ],
)
def test_bad_commands_are_refused_in_the_words_of_a_pageserver(query: str, text: str, prepared: str | None) -> None:
    """E-07: 17 commands; the extended protocol tells the outermost reason only."""
    with pytest.raises(WireError) as refused:
        parse_command(query)
    assert (str(refused.value), refused.value.prepared) == (text, prepared or text)


async def test_other_queries_are_refused_and_the_session_goes_on(world: World, addresses: Addresses) -> None:
    import psycopg

    from trio_compute.db.connection import open_connection
    from trio_compute.db.target import Target

    target = Target.parse(addresses.pageserver).replace(password=world.storage_token())
    async with open_connection(target) as connection:
        with pytest.raises(psycopg.Error, match="cannot parse query: BEGIN"):
            await connection.execute("BEGIN")
        await connection.execute("set x = 1")


@pytest.mark.parametrize("code", [SSL_REQUEST, GSSENC_REQUEST])
async def test_encryption_is_declined(code: int, addresses: Addresses) -> None:
    host, port = addresses.safekeepers[0].split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        await stream.send_all(struct.pack("!II", 8, code))
        assert await stream.receive_some(1) == b"N"


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", struct.pack("!II", 8, 1), b"\xff" * 100, b"\0\0\0\4"])
async def test_garbage_ends_the_connection(data: bytes, addresses: Addresses) -> None:
    host, port = addresses.safekeepers[0].split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        await stream.send_all(data)
        await stream.send_eof()
        # A reset is an end too.
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            assert await stream.receive_some(1) == b""


async def test_endpoint_storage_keeps_objects_for_the_right_claims(world: World, addresses: Addresses) -> None:
    tenant, timeline = world.identity.tenant_id, world.identity.timeline_id
    claims = {"tenant_id": tenant, "timeline_id": timeline, "endpoint_id": ENDPOINT_ID, "exp": int(time.time()) + 60}
    base = f"http://{addresses.endpoint_storage}"
    url = f"{base}/{tenant}/{timeline}/{ENDPOINT_ID}/lfc_state"

    def auth(**changes: object) -> dict[str, str]:
        return {"authorization": f"Bearer {world.issuer.sign({**claims, **changes})}"}

    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(url, headers=auth())).status_code == 404
        assert (await client.put(url, headers=auth(), content=b"state")).status_code == 200
        assert (await client.get(url, headers=auth(endpoint_id="another"))).content == b"state"
        assert (await client.put(url, headers=auth(endpoint_id="another"), content=b"x")).status_code == 401
        assert (await client.get(url, headers=auth(tenant_id="c" * 32))).status_code == 401
        assert (await client.get(url)).status_code == 400
        assert (await client.get(url, headers=auth(exp=int(time.time()) - 60))).status_code == 400
        assert (await client.put(url, headers=auth(), content=b"x" * (2 * 1024 * 1024 + 1))).status_code == 413
        assert (await client.get(f"{base}/{tenant}/zz/e/k", headers=auth())).status_code == 400
        assert (await client.post(url, headers=auth())).status_code == 405
        assert (await client.delete(url, headers=auth())).status_code == 200
        assert (await client.get(url, headers=auth())).status_code == 404
        assert (await client.get(f"{base}/status")).status_code == 200


async def test_the_control_plane_wants_its_token_and_knows_ids_with_slashes(world: World, addresses: Addresses) -> None:
    url = f"{addresses.control_plane}/compute/api/v2/computes/known/0/spec"
    headers = {"authorization": f"Bearer {world.control_plane_token}"}
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, headers=headers)).json() == {"status": "empty"}
        assert (await client.get(url.replace("known", "unknown"), headers=headers)).status_code == 404


def test_snapshots_serve_the_newest_not_after_an_lsn(world: World) -> None:
    newest = world.snapshots.newest()
    assert newest is not None
    assert world.snapshots.at(Lsn(newest + 100)) == world.snapshots.path(newest)
    assert world.snapshots.at(None) == world.snapshots.path(newest)
    with pytest.raises(Exception, match="no basebackup at or before"):
        world.snapshots.at(Lsn(newest - 1))


def test_a_world_of_another_major_version_is_refused(world: World) -> None:
    with pytest.raises(HostError, match="was made for Postgres"):
        World(world.directory, world.real_bin.parent, world.identity.postgres_major + 1, world.run_as)
