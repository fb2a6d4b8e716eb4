"""Bad input in bad faith: each attack with the answer that it must get, and nothing else may happen.

What test_http_auth.py, test_http_common.py and component/http/ hold already is not repeated here.
"""

from __future__ import annotations

import gzip
import resource
import statistics
import zlib
from typing import Any

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.component.http import tokens
from tests.component.http.logs import LogLines
from tests.component.http.raw import RawClient, connect, open_sockets, request_text
from tests.component.http.tokens import ED25519_KEY, STRANGERS_KEY, bearer, compute_claims, ed25519_jwk, mint
from tests.component.http.world import JSON, World, configure_body, http_client, open_world, stands
from tests.fakes import specs
from trio_compute.http.operation import Operation
from trio_compute.http.table import EXTERNAL, internal_operations
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status
from trio_compute.services.apply_queue import Succeeded

MALFORMED = "failed to parse the request body as json: "
MISSHAPEN = "failed to deserialize the json body into the target type: "
GOOD = configure_body()
TEXT = GOOD.decode()
SAID_LATIN_1 = {"content-type": "application/json; charset=latin-1"}
BOMB = gzip.compress(b" " * 64 * 1024 * 1024)


def with_uuid(raw: bytes) -> bytes:
    """Return a body that is good but for what one of its strings holds."""
    return configure_body(operation_uuid="@").replace(b'"@"', b'"' + raw + b'"')


def with_number(raw: bytes) -> bytes:
    return configure_body(suspend_timeout_seconds=12345).replace(b"12345", raw)


# name: body, headers, status, how the error begins. The status of the world is init, so what is acceptable is 412.
BODIES: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "arrays without end in a key that nobody reads": (b'{"x": ' + b"[" * 100_000, {}, 400, MALFORMED),
    "deep arrays in a key that nobody reads": (b'{"x": ' + b"[" * 99999 + b"]" * 99999 + b"}", {}, 400, MALFORMED),
    "deep objects in a key that nobody reads": (b'{"x": ' + b'{"a":' * 50000 + b"1" + b"}" * 50001, {}, 400, MALFORMED),
    "deep arrays in the place of the spec": (b'{"spec": ' + b"[" * 99999 + b"]" * 99999 + b"}", {}, 422, MISSHAPEN),
    "a duplicate key whose first value is bad": (b'{"spec": 5, ' + GOOD[1:], {}, 422, MISSHAPEN + "$.spec"),
    "a duplicate key whose last value is bad": (GOOD[:-1] + b', "spec": 5}', {}, 422, MISSHAPEN + "$.spec"),
    "three hundred thousand keys": (
        b"{" + b",".join(b'"k%d":1' % number for number in range(300_000)) + b"," + GOOD[1:], {}, 412, "",
    ),
    "two documents": (GOOD + GOOD, {}, 400, MALFORMED),
    "a comma too much": (GOOD[:-1] + b",}", {}, 400, MALFORMED),
    "a comment": (b"/* */" + GOOD, {}, 400, MALFORMED),
    # Nobody undoes a content coding, so there is no bomb; the bytes are read as they are.
    "gzip": (gzip.compress(GOOD), {"content-encoding": "gzip"}, 400, MALFORMED),
    "a gzip bomb": (BOMB, {"content-encoding": "gzip"}, 400, MALFORMED),
    "a gzip bomb in gzip": (gzip.compress(BOMB), {"content-encoding": "gzip, gzip"}, 400, MALFORMED),
    "deflate": (zlib.compress(GOOD), {"content-encoding": "deflate"}, 400, MALFORMED),
    "a coding that nobody knows": (b"\x00\x01", {"content-encoding": "br, zstd, x-mine"}, 400, MALFORMED),
    "a coding that was announced and not done": (GOOD, {"content-encoding": "gzip"}, 412, ""),
    # JSON is UTF-8 (RFC 8259 §8.1); the parameter `charset` has no meaning (§11).
    "UTF-16": (TEXT.encode("utf-16"), {"content-type": "application/json; charset=utf-16"}, 400, MALFORMED),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), {}, 400, MALFORMED),
    "UTF-32": (TEXT.encode("utf-32"), {}, 400, MALFORMED),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, {}, 400, MALFORMED),
    "Latin-1": (with_uuid("ä".encode("latin-1")), SAID_LATIN_1, 400, MALFORMED),
    "Latin-1 said of UTF-8": (with_uuid("ä".encode()), SAID_LATIN_1, 412, ""),
    "an overlong slash": (with_uuid(b"\xc0\xaf"), {}, 400, MALFORMED),
    "a surrogate as UTF-8": (with_uuid(b"\xed\xa0\x80"), {}, 400, MALFORMED),
    "half a surrogate pair": (with_uuid(rb"\ud800"), {}, 400, MALFORMED),
    "a surrogate pair the wrong way round": (with_uuid(rb"\udc00\ud800"), {}, 400, MALFORMED),
    "a control character": (with_uuid(b"\x01"), {}, 400, MALFORMED),
    "NaN": (with_number(b"NaN"), {}, 400, MALFORMED),
    "infinity": (with_number(b"1e999"), {}, 422, MISSHAPEN + "$.spec.suspend_timeout_seconds"),
    "a number of five thousand digits": (with_number(b"9" * 5000), {}, 422, MISSHAPEN),
    "a number with an exponent of a billion": (with_number(b"1e-999999999"), {}, 422, MISSHAPEN),
    "a name with a NUL": (
        configure_body(cluster={"roles": [{"name": "a\x00b"}], "databases": []}), {}, 400, "role name 'a\\x00b'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "status", "error"), BODIES.values(), ids=BODIES)
async def test_a_body_gets_what_it_deserves(body: bytes, headers: dict[str, str], status: int, error: str) -> None:
    """§2.1."""
    async with open_world(Status.INIT) as world, world.client() as client:
        response = await client.post("/configure", content=body, headers={**JSON, **headers})
        assert response.status_code == status
        assert response.json()["error"].startswith(error)
        assert (await client.get("/status")).status_code == 200


WITH_BODY = {
    f"{operation.method} {operation.path}": (operation, internal)
    for internal, operations in ((False, EXTERNAL), (True, internal_operations(testing=True)))
    for operation in operations
    if operation.body is not None
}
UNREADABLE = ("gzip", "a gzip bomb", "UTF-16", "a byte order mark", "a comment")


@pytest.mark.parametrize(("operation", "internal"), WITH_BODY.values(), ids=WITH_BODY)
async def test_every_route_with_a_body_refuses_what_is_no_json(operation: Operation, internal: bool) -> None:
    """§2.1: the rule is the routes' in common."""
    async with open_world(testing=True) as world, world.client(internal=internal) as client:
        for name in UNREADABLE:
            body, headers, status, error = BODIES[name]
            response = await client.post(operation.path, content=body, headers={**JSON, **headers})
            assert (response.status_code, response.json()["error"][: len(error)]) == (status, error), name
        for wrong in (b'"text"', b"7", b"[[]]", b"true"):
            assert (await client.post(operation.path, content=wrong, headers=JSON)).status_code == 422
        assert (await client.post(operation.path, content=b"{}")).status_code == 415
        assert world.status is Status.RUNNING


async def test_of_duplicate_keys_the_last_is_taken() -> None:
    """A decision of ours; the contract says nothing, and RFC 8259 §4 leaves it open."""
    first, last = (specs.spec_dict(operation_uuid=name) for name in ("first", "last"))
    body = b'{"spec": %b, "spec": %b}' % (msgspec.json.encode(first), msgspec.json.encode(last))
    async with open_world() as world, world.client() as client, trio.open_nursery() as nursery:

        async def apply() -> None:
            job = await world.take_job()
            assert job.spec.spec.operation_uuid == "last"
            world.compute.apply(ev.Applied(spec=job.spec))
            job.settle(Succeeded())

        nursery.start_soon(apply)
        assert (await client.post("/configure", content=body, headers=JSON)).status_code == 200


async def test_bombs_cost_no_memory() -> None:
    """64 MiB each, if somebody unpacked them."""
    async with open_world(Status.INIT) as world, world.client() as client:
        await client.post("/configure", content=BOMB, headers={**JSON, "content-encoding": "gzip"})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(20):
            await client.post("/configure", content=BOMB, headers={**JSON, "content-encoding": "gzip"})
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


PEM = ED25519_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER = ED25519_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
UNVERIFIED = (401, {"error": "failed to verify authorization token"})


def by_stranger(**header: Any) -> str:
    """Return a token of a stranger's, who brings the key to verify it with."""
    return mint(compute_claims(), key=STRANGERS_KEY, header={"alg": "EdDSA", **header})


TOKENS: dict[str, str] = {
    "HS256 with the PEM of the public key as the secret": mint(compute_claims(), key=PEM, alg="HS256"),
    "HS256 with the DER of the public key as the secret": mint(compute_claims(), key=DER, alg="HS256"),
    "HS256 with nothing as the secret": mint(compute_claims(), key=b"", alg="HS256"),
    "a key in the header": by_stranger(jwk=ed25519_jwk(STRANGERS_KEY)),
    "a URL of keys in the header": by_stranger(jku="http://127.0.0.1:9/keys"),
    "a certificate in the header": by_stranger(x5c=["MIIB"], x5u="http://127.0.0.1:9/"),
    "a file as the name of the key": by_stranger(kid="../../../../dev/null"),
    "a query as the name of the key": by_stranger(kid="x' UNION SELECT 'secret"),
    "alg twice, none last": mint(compute_claims(), key=None, header=b'{"alg":"EdDSA","alg":"none"}'),
    "alg twice, none first": mint(compute_claims(), key=None, header=b'{"alg":"none","alg":"EdDSA"}'),
    "an empty signature of zeros": mint(compute_claims(), key=None) + "A" * 86,
    "five parts, as if encrypted": ".".join([mint(compute_claims()), "x", "y"]),
    "blanks inside": mint(compute_claims()).replace(".", ". ", 1),
    "a list of two": f"{mint(compute_claims())}, {mint(compute_claims())}",
    "percent-encoded": mint(compute_claims()).replace(".", "%2e"),
    "ordinary base64": mint(compute_claims(x="??>>~~")).replace("_", "/").replace("-", "+") + "/",
    "as large as a header may be": f"{'a' * 5000}.{'b' * 5000}.{'c' * 5000}",
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
async def test_a_forged_token_is_401(token: str) -> None:
    """§3 order 2 and 3: no key but ours, no algorithm but the key's."""
    async with open_world() as world, http_client(world.port, {"authorization": f"Bearer {token}"}) as client:
        for path in ("/status", "/metrics.json"):
            response = await client.get(path)
            assert (response.status_code, response.json()) == UNVERIFIED
        response = await client.post("/terminate")
        assert (response.status_code, response.json()) == UNVERIFIED
        assert world.status is Status.RUNNING


async def test_an_rsa_key_does_not_verify_what_says_eddsa() -> None:
    """§3, key families: the algorithm is the key's, not the token's."""
    token = mint(compute_claims(), key=tokens.rsa_key(), alg="EdDSA")
    async with open_world(keys=[tokens.rsa_jwk()]) as world:
        async with http_client(world.port, {"authorization": f"Bearer {token}"}) as client:
            response = await client.get("/status")
            assert (response.status_code, response.json()) == UNVERIFIED


@pytest.mark.parametrize(("length", "status"), [(15_000, 401), (100_000, 431), (10_000_000, 431)])
async def test_an_oversized_token_is_refused_by_its_size(length: int, status: int) -> None:
    """§3: 16 KiB of a head are read for sure; at 64 KiB at the latest nobody looks for a token in it any more."""
    async with open_world() as world, connect(world.port) as client:
        await client.send_what_it_takes(
            request_text("GET", "/status", headers={"authorization": f"Bearer {'a' * length}"}, token=False)
        )
        assert (await client.answer()).status == status


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKS = b"2\r\n{}\r\n0\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
LENGTH = b"content-length: 2\r\n"


def head(
    fields: bytes, body: bytes = b"", *, start: bytes = b"POST /configure HTTP/1.1", host: bytes = b"host: x\r\n"
) -> bytes:
    """Return a request with a token and the content type that the route wants."""
    token = bearer()["authorization"].encode()
    return (
        start
        + b"\r\n"
        + host
        + b"authorization: "
        + token
        + b"\r\n"
        + b"content-type: application/json\r\n"
        + (fields + b"\r\n" + body)
    )


# Refused before anybody looks at path or token, and the connection ends: what follows cannot be told apart.
REFUSED: dict[str, tuple[bytes, int]] = {
    "two lengths that differ": (head(b"content-length: 2\r\ncontent-length: 40\r\n", b"{}" + SMUGGLED), 400),
    "two lengths that differ, in one field": (head(b"content-length: 2, 40\r\n", b"{}" + SMUGGLED), 400),
    "a length with a sign": (head(b"content-length: +2\r\n", b"{}"), 400),
    "a length below zero": (head(b"content-length: -1\r\n", b"{}"), 400),
    "a length in hexadecimal": (head(b"content-length: 0x2\r\n", b"{}"), 400),
    "a length with a blank": (head(b"content-length: 2 2\r\n", b"{}"), 400),
    "a length in Arabic digits": (head("content-length: ٢\r\n".encode(), b"{}"), 400),
    "a length of thirty digits": (head(b"content-length: " + b"9" * 30 + b"\r\n", b"{}"), 400),
    "no length in its field": (head(b"content-length: \r\n", b"{}"), 400),
    "length and chunks, seen as length by others": (
        head(b"content-length: %d\r\n" % (5 + len(SMUGGLED)) + CHUNKED, b"0\r\n\r\n" + SMUGGLED), 400,
    ),
    "chunks and length, seen as chunks by others": (
        head(CHUNKED + b"content-length: 4\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)), 400,
    ),
    "length and chunks that agree": (head(LENGTH + CHUNKED, CHUNKS), 400),
    "length and chunks hidden in a folded line": (head(LENGTH + b"transfer-encoding:\r\n chunked\r\n", CHUNKS), 400),
    "chunks in HTTP/1.0": (head(CHUNKED, CHUNKS, start=b"POST /configure HTTP/1.0"), 400),
    "chunked twice": (head(CHUNKED * 2, CHUNKS), 501),
    "identity": (head(b"transfer-encoding: identity\r\n", b"{}"), 501),
    "chunked misspelt": (head(b"transfer-encoding: xchunked\r\n", CHUNKS), 501),
    "chunked in quotes": (head(b'transfer-encoding: "chunked"\r\n', CHUNKS), 501),
    "chunked over gzip": (head(b"transfer-encoding: gzip, chunked\r\n", CHUNKS), 501),
    "chunked behind a vertical tab": (head(b"transfer-encoding: \x0bchunked\r\n", CHUNKS), 400),
    "a blank before the colon": (head(b"transfer-encoding : chunked\r\n", CHUNKS), 400),
    "a blank before the colon of any field": (head(b"x-a : 1\r\n" + LENGTH, b"{}"), 400),
    "a blank in a name": (head(b"x a: 1\r\n" + LENGTH, b"{}"), 400),
    "no name": (head(b": 1\r\n" + LENGTH, b"{}"), 400),
    "no colon": (head(b"xa\r\n" + LENGTH, b"{}"), 400),
    "NUL in a value": (head(b"x-a: 1\x002\r\n" + LENGTH, b"{}"), 400),
    "NUL in a name": (head(b"x\x00a: 1\r\n" + LENGTH, b"{}"), 400),
    "a carriage return in a value": (head(b"x-a: 1\rx-b: 2\r\n" + LENGTH, b"{}"), 400),
    "a folded first field": (head(LENGTH, b"{}", host=b" x: y\r\nhost: x\r\n"), 400),
    "two hosts": (head(b"host: y\r\n" + LENGTH, b"{}"), 400),
    "a blank in the target": (head(b"", start=b"GET /sta tus HTTP/1.1"), 400),
    "tabs between the words": (head(b"", start=b"GET\t/status\tHTTP/1.1"), 400),
    "NUL in the target": (head(b"", start=b"GET /status\x00 HTTP/1.1"), 400),
    "a version of the future": (head(LENGTH, b"{}", start=b"POST /configure HTTP/2.0"), 505),
    "one field of 100 kB": (head(b"x-a: " + b"a" * 100_000 + b"\r\n" + LENGTH, b"{}"), 431),
    "100 kB in many fields": (head(b"".join(b"x-%d: %b\r\n" % (n, b"a" * 100) for n in range(900)), b""), 431),
    "a field that never ends": (head(b"x-a: " + b"a" * 100_000)[:-4], 431),
    "a target of 100 kB": (head(b"", start=b"GET /status?" + b"a" * 100_000 + b" HTTP/1.1"), 431),
    "a chunk extension of 100 kB": (head(CHUNKED, b"2;" + b"a" * 100_000 + b"\r\n{}\r\n0\r\n\r\n"), 431),
    "a chunk below zero": (head(CHUNKED, b"-2\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk in Python's hexadecimal": (head(CHUNKED, b"0x2\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk with a sign": (head(CHUNKED, b"+2\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk with an underscore": (head(CHUNKED, b"0_2\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk that ends elsewhere": (head(CHUNKED, b"2\r\n{}xx0\r\n\r\n" + SMUGGLED), 400),
}  # fmt: skip


@pytest.mark.parametrize("internal", [False, True], ids=["external", "internal"])
@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
async def test_a_request_of_unclear_shape_is_refused_and_its_connection_ends(
    sent: bytes, status: int, internal: bool, log_lines: LogLines
) -> None:
    """RFC 9112 §2.2, §5, §6, §7: nothing that follows it is taken for another request."""
    async with open_world() as world:
        if internal:
            sent = sent.replace(b" /configure ", b" /extensions ").replace(b" /status", b" /spans")
        async with connect(world.internal_port if internal else world.port) as client:
            await client.send_what_it_takes(sent)
            answer = await client.answer(to="POST")
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert await client.ends()
        assert not log_lines.with_text("smuggled")
        assert not log_lines.with_text("ERROR")
        assert world.status is Status.RUNNING


# Odd, and understood in one way only; the body is `{}`, which is of the wrong shape.
UNDERSTOOD: dict[str, bytes] = {
    "the same length twice": head(LENGTH + LENGTH, b"{}"),
    "the same length twice in one field": head(b"content-length: 2, 2\r\n", b"{}"),
    "chunked in capitals": head(b"Transfer-Encoding: CHUNKED\r\n", CHUNKS),
    "a folded field": head(b"x-a: 1\r\n 2\r\n" + LENGTH, b"{}"),
    "line feeds alone": head(LENGTH, b"").replace(b"\r\n", b"\n") + b"{}",
    "bytes that are no ASCII": head(b"x-a: \xff\xfe\r\n" + LENGTH, b"{}"),
    "chunk extensions": head(CHUNKED, b'2;a=b;c="d"\r\n{}\r\n0;x\r\n\r\n'),
    "trailers that would change the request": head(
        CHUNKED, b"2\r\n{}\r\n0\r\nauthorization: x\r\ncontent-length: 9\r\n\r\n"
    ),
    "nine hundred fields": head(b"".join(b"a%d:b\r\n" % n for n in range(900)) + LENGTH, b"{}"),
    "an expectation that nobody knows": head(b"expect: 999-x\r\n" + LENGTH, b"{}"),
}


@pytest.mark.parametrize("sent", UNDERSTOOD.values(), ids=UNDERSTOOD)
async def test_an_odd_request_is_understood_in_one_way(sent: bytes, log_lines: LogLines) -> None:
    """The next request on the connection is the next one."""
    async with open_world() as world, connect(world.port) as client:
        await client.send(sent + request_text("GET", "/status"))
        assert (await client.answer(to="POST")).status == 422
        assert (await client.answer()).status == 200
        # A line is written once its answer is out.
        await stands(lambda: len(log_lines.with_text("request{")) == 2)


@pytest.mark.parametrize("framing", [b"content-length: %d\r\n" % len(SMUGGLED), CHUNKED], ids=["length", "chunks"])
async def test_a_request_in_the_body_of_a_get_is_a_body(framing: bytes, log_lines: LogLines) -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED) if framing == CHUNKED else SMUGGLED
    async with open_world() as world, connect(world.port) as client:
        await client.send(head(framing, body, start=b"GET /status HTTP/1.1") + request_text("GET", "/metrics.json"))
        assert [(await client.answer()).status, (await client.answer()).status] == [200, 200]
        assert not log_lines.with_text("smuggled")


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET /status%00 HTTP/1.1", 404),
        (b"GET /%2e%2e/status HTTP/1.1", 404),
        (b"GET /./status HTTP/1.1", 404),
        (b"GET /nowhere/../status HTTP/1.1", 404),
        (b"GET /status;x=1 HTTP/1.1", 404),
        (b"GET http://elsewhere:3081/failpoints HTTP/1.1", 404),
        (b"CONNECT localhost:3081 HTTP/1.1", 404),
        (b"OPTIONS * HTTP/1.1", 404),
        (b"TRACE /status HTTP/1.1", 405),
    ],
)
async def test_a_target_is_not_interpreted(start: bytes, status: int) -> None:
    """§2: an unknown path is 404; there are no dots to resolve, no proxy, and no echo of headers."""
    async with open_world() as world, connect(world.port) as client:
        await client.send(head(b"", start=start))
        answer = await client.answer(to=start.split()[0].decode().replace("CONNECT", "POST"))
        assert (answer.status, answer.body) == (status, b"")


SLOW_CLIENTS = 60
PROBES = 50
LIMIT_SECONDS = 0.05


async def drip(client: RawClient, data: bytes, *, task_status: trio.TaskStatus[None]) -> None:
    """Send a byte at a time, for ever."""
    await client.send(data)
    task_status.started()
    while True:
        await trio.sleep(0.2)
        await client.send(b"x")


async def hold(port: int, data: bytes, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    async with connect(port) as client:
        await drip(client, data, task_status=task_status)


async def status_seconds(world: World) -> float:
    """Return the median time of `/status` on the external server."""
    taken = []
    async with world.client() as client:
        for _ in range(PROBES):
            began = trio.current_time()
            assert (await client.get("/status")).status_code == 200
            taken.append(trio.current_time() - began)
    return statistics.median(taken)


@pytest.mark.parametrize("internal", [False, True], ids=["external", "internal"])
async def test_slow_clients_slow_nobody_else(internal: bool) -> None:
    """Slowloris: heads and bodies that come byte by byte; afterwards no descriptor is left."""
    async with open_world(testing=True) as world:
        port = world.internal_port if internal else world.port
        path = "/failpoints" if internal else "/configure"
        slow_body = request_text("POST", path, headers={**JSON, "content-length": "1000"}) + b"["
        await status_seconds(world)
        before = open_sockets()
        async with trio.open_nursery() as nursery:
            for number in range(SLOW_CLIENTS):
                sent = slow_body if number % 2 else b"GET /status HTTP/1.1\r\nhost: x\r\nx-a: "
                await nursery.start(hold, port, sent)
            # The best of three: what is measured is us, not what else this machine does.
            assert min([await status_seconds(world) for _ in range(3)]) < LIMIT_SECONDS
            nursery.cancel_scope.cancel()
        await stands(lambda: open_sockets() <= before)
