"""Who may call the external API: contract 03 §3, line by line."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import httpx
import pytest

from tests.component.http import tokens
from tests.component.http.logs import LogLines
from tests.component.http.raw import connect, request_text
from tests.component.http.tokens import (
    ED25519_JWK,
    ED25519_KEY,
    STRANGERS_KEY,
    admin_claims,
    base64url,
    compute_claims,
    ed25519_jwk,
    mint,
    public_bytes,
    seconds_from_now,
)
from tests.component.http.world import World, http_client, open_world

INVALID = (400, "invalid authorization token")
UNVERIFIED = (401, "failed to verify authorization token")
NO_AUDIENCE = (401, "missing audience in authorization token claims")
OTHER_AUDIENCE = (401, "invalid audience in authorization token claims")
NO_COMPUTE = (403, "missing compute_id in authorization token claims")
OTHER_COMPUTE = (403, "invalid compute ID in authorization token claims")
ALLOWED = (200, None)

Verdict = tuple[int, str | None]


def verdict_of(response: httpx.Response) -> Verdict:
    if response.status_code == 200:
        return ALLOWED
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()["error"]


async def ask(world: World, authorization: str | bytes | None) -> Verdict:
    headers: dict[str, Any] = {} if authorization is None else {"authorization": authorization}
    async with http_client(world.port, headers) as client:
        return verdict_of(await client.get("/status"))


async def ask_with(token: str, **world: Any) -> Verdict:
    async with open_world(**world) as served:
        return await ask(served, f"Bearer {token}")


@pytest.mark.parametrize(
    ("authorization", "verdict"),
    [
        (None, INVALID),
        ("", INVALID),
        ("Bearer", INVALID),
        ("Basic dXNlcjpwYXNz", INVALID),
        ("Bearerx {token}", INVALID),
        ("{token}", INVALID),
        ("Bearer nonsense", UNVERIFIED),
        ("Bearer a.b", UNVERIFIED),
        ("Bearer a.b.c.d", UNVERIFIED),
        ("Bearer ..", UNVERIFIED),
        ("Bearer {token}", ALLOWED),
        ("bearer {token}", ALLOWED),
        ("BEARER {token}", ALLOWED),
    ],
)
async def test_the_header_is_checked_first(authorization: str | None, verdict: Verdict) -> None:
    """§3 order 1: missing, another scheme or undecodable is 400; the scheme is case-insensitive."""
    async with open_world() as world:
        filled = authorization and authorization.format(token=mint(compute_claims()))
        assert await ask(world, filled) == verdict


async def test_a_header_that_is_not_ascii_is_undecodable() -> None:
    """§3 order 1."""
    async with open_world() as world:
        assert await ask(world, "Bearer t\xf6ken.a.b".encode("latin-1")) == INVALID


async def test_a_token_too_large_for_a_header_is_refused_and_the_server_lives() -> None:
    """§3: whatever the answer is, it is not 200 and nothing breaks."""
    async with open_world() as world:
        async with connect(world.port) as raw:
            await raw.send(request_text("GET", "/status", headers={"authorization": "Bearer " + "a" * 200_000}))
            assert (await raw.answer()).status in {400, 401, 431}
        assert await ask(world, f"Bearer {mint(compute_claims())}") == ALLOWED


async def test_a_token_that_fills_the_header_is_just_wrong() -> None:
    async with open_world() as world:
        assert await ask(world, f"Bearer {'a' * 5000}.{'b' * 5000}.{'c' * 2000}") == UNVERIFIED


BAD_TOKENS: dict[str, str] = {
    "signed by a stranger": mint(compute_claims(), key=STRANGERS_KEY),
    "cut signature": mint(compute_claims())[:-4],
    "no signature": mint(compute_claims(), key=None),
    "padded": mint(compute_claims()) + "=",
    "claims of another token": ".".join(
        [mint({}).split(".")[0], mint(compute_claims(x=1)).split(".")[1], mint(compute_claims()).split(".")[2]]
    ),
    "alg none": mint(compute_claims(), key=None, alg="none"),
    "alg None": mint(compute_claims(), key=None, alg="None"),
    "alg none with a good signature": mint(compute_claims(), alg="none"),
    "HS256 with the public key as the secret": mint(compute_claims(), key=public_bytes(ED25519_KEY), alg="HS256"),
    "HS256 with the JWK's text as the secret": mint(compute_claims(), key=ED25519_JWK["x"].encode(), alg="HS256"),
    "RS256 said of an Ed25519 signature": mint(compute_claims(), alg="RS256"),
    "eddsa in lower case": mint(compute_claims(), alg="eddsa"),
    "no alg": mint(compute_claims(), header={"typ": "JWT"}),
    "alg a number": mint(compute_claims(), header={"alg": 1}),
    "header no object": mint(compute_claims(), header=["EdDSA"]),
    "header no JSON": mint(compute_claims(), header=b"\xff\xfe"),
    "header nested": mint(compute_claims(), header=b'{"alg":"EdDSA","x":' + b"[" * 9000),
    "claims no object": mint([]),
    "claims no JSON": mint(b"{"),
    "claims nested": mint(b'{"x":' + b"[" * 9000),
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
async def test_an_unverifiable_token_is_401(token: str) -> None:
    """§3 order 2 and 3: any failure of the signature, of `alg`, or of the token's form."""
    assert await ask_with(token) == UNVERIFIED


@pytest.mark.parametrize(
    ("exp", "verdict"),
    [
        (-55, ALLOWED),
        (-65, UNVERIFIED),
        (-100_000, UNVERIFIED),
        (3600, ALLOWED),
    ],
)
async def test_expiry_has_a_leeway_of_a_minute(exp: int, verdict: Verdict) -> None:
    """§3 order 4: rejected when older than now - 60 s."""
    assert await ask_with(mint(compute_claims(exp=seconds_from_now(exp)))) == verdict


@pytest.mark.parametrize("exp", ["4102444800", True, [4102444800], {}, "", -1, 0, 0.5])
async def test_an_expiry_that_is_no_number_or_long_gone_is_401(exp: Any) -> None:
    """A-18: an `exp` of a wrong type must not disable expiry."""
    assert await ask_with(mint(compute_claims(exp=exp))) == UNVERIFIED


@pytest.mark.parametrize("exp", [4102444800, 4102444800.5, 1e300])
async def test_an_expiry_may_be_any_number(exp: float) -> None:
    """§3 order 4: `exp`, when a number."""
    assert await ask_with(mint(compute_claims(exp=exp))) == ALLOWED


@pytest.mark.parametrize(
    "claims",
    [
        compute_claims(aud="compute"),
        compute_claims(aud={"compute": 1}),
        compute_claims(aud=[1]),
        compute_claims(scope="compute_ctl:reader"),
        compute_claims(scope=["compute_ctl:admin"]),
        {"compute_id": 7},
        admin_claims(aud="compute"),
        admin_claims(scope="admin"),
    ],
)
async def test_claims_of_a_wrong_shape_are_401(claims: dict[str, Any]) -> None:
    """§3 order 5: a string `aud` or an unknown scope fails, whatever else is right."""
    assert await ask_with(mint(claims)) == UNVERIFIED


@pytest.mark.parametrize(
    "claims",
    [
        compute_claims(nbf=4102444800, iss="x", sub="y", jti=[1, {"a": None}]),
        compute_claims(nbf="never", aud=None, scope=None, exp=None),
        compute_claims(aud=["something", "else"]),
        compute_claims(aud=[]),
    ],
)
async def test_other_claims_are_not_looked_at(claims: dict[str, Any]) -> None:
    """§3 order 5: `nbf`, `iss`, `sub` unchecked, others ignored; `aud` only matters to admins."""
    assert await ask_with(mint(claims)) == ALLOWED


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        ({"scope": "compute_ctl:admin"}, NO_AUDIENCE),
        (admin_claims(aud=None), NO_AUDIENCE),
        (compute_claims(scope="compute_ctl:admin"), NO_AUDIENCE),
        (admin_claims(aud=[]), OTHER_AUDIENCE),
        (admin_claims(aud=["Compute", "computes"]), OTHER_AUDIENCE),
        (admin_claims(), ALLOWED),
        (admin_claims(aud=["x", "compute"]), ALLOWED),
        (admin_claims(compute_id="another"), ALLOWED),
        ({}, NO_COMPUTE),
        ({"compute_id": None}, NO_COMPUTE),
        ({"aud": ["compute"]}, NO_COMPUTE),
        ({"compute_id": "another"}, OTHER_COMPUTE),
        ({"compute_id": ""}, OTHER_COMPUTE),
        ({"compute_id": tokens.COMPUTE_ID.upper()}, OTHER_COMPUTE),
        (compute_claims(), ALLOWED),
    ],
)
async def test_the_decision_table(claims: dict[str, Any], verdict: Verdict) -> None:
    """§3: every row of the decision table, with its exact text."""
    assert await ask_with(mint(claims)) == verdict


@pytest.mark.parametrize(
    ("claims", "key", "verdict"),
    [
        ({"compute_id": "another"}, STRANGERS_KEY, UNVERIFIED),
        ({"compute_id": "another", "exp": 1}, ED25519_KEY, UNVERIFIED),
        ({"compute_id": "another", "aud": "x"}, ED25519_KEY, UNVERIFIED),
        ({"scope": "compute_ctl:admin", "exp": 1}, ED25519_KEY, UNVERIFIED),
        ({"scope": "compute_ctl:admin", "compute_id": "another"}, ED25519_KEY, NO_AUDIENCE),
    ],
)
async def test_the_earlier_check_decides(claims: dict[str, Any], key: tokens.Key, verdict: Verdict) -> None:
    """§3: the order of the checks is 400, 401 for the token, then the decision table."""
    assert await ask_with(mint(claims, key=key)) == verdict


@pytest.mark.parametrize("path", ["/configure", "/terminate?mode=nonsense"])
async def test_authorization_comes_before_body_and_query(path: str) -> None:
    """§3: runs before body and query parsing."""
    async with open_world() as world:
        async with world.client(None) as client:
            assert verdict_of(await client.post(path, content=b"{")) == INVALID
        async with world.client(mint({"compute_id": "another"})) as client:
            assert verdict_of(await client.post(path, content=b"{")) == OTHER_COMPUTE


async def test_an_admin_token_of_another_compute_is_noted(log_lines: LogLines) -> None:
    """A-19: keep, but log at info."""
    await ask_with(mint(admin_claims(compute_id="another")))
    assert [line.split()[1] for line in log_lines.with_text("another compute")] == ["INFO"]


async def test_a_token_is_never_logged(log_lines: LogLines) -> None:
    """§3, A-07: neither a good nor a bad token reaches the log, in whole or in part."""
    good, bad = mint(compute_claims()), mint(compute_claims(secret=1), key=STRANGERS_KEY)
    async with open_world() as world:
        for authorization in (f"Bearer {good}", f"Bearer {bad}", f"bearer {good}.x", f"Basic {bad}", bad):
            await ask(world, authorization)
            async with http_client(world.port, {"authorization": authorization}) as client:
                await client.post("/configure", content=b"x")
                await client.get("/nowhere")
                await client.get(f"/status?token={good}")
    text = "\n".join(log_lines)
    assert "request{" in text
    for part in {part for token in (good, bad) for part in token.split(".")}:
        assert part not in text


async def test_a_bypass_needs_an_instance_id_and_lakebase_mode(log_lines: LogLines) -> None:
    """§3 order 0, B-04: `INSTANCE_ID` non-empty and lakebase mode; `--dev` is no bypass."""
    for settings, verdict in (
        ({"instance_id": "i-1", "lakebase_mode": True}, ALLOWED),
        ({"instance_id": "", "lakebase_mode": True}, INVALID),
        ({"instance_id": None, "lakebase_mode": True}, INVALID),
        ({"instance_id": "i-1", "lakebase_mode": False}, INVALID),
        ({"dev": True}, INVALID),
    ):
        async with open_world(**settings) as world:
            assert await ask(world, None) == verdict
    assert len(log_lines.with_text("needs no token")) == 1


async def test_loopback_callers_need_a_token_too() -> None:
    """§3, history: the bypass for loopback must not return."""
    async with open_world() as world:
        async with httpx.AsyncClient(trust_env=False) as client:
            assert verdict_of(await client.get(f"http://[::1]:{world.port}/status")) == INVALID


class TestKeys:
    async def test_rs256_and_eddsa_live_side_by_side(self) -> None:
        """§3, key families: both may coexist, each with its own `alg`."""
        keys = [tokens.rsa_jwk(), ED25519_JWK]
        async with open_world(keys=keys) as world:
            assert await ask(world, f"Bearer {mint(compute_claims())}") == ALLOWED
            assert await ask(world, f"Bearer {mint(compute_claims(), key=tokens.rsa_key())}") == ALLOWED
            swapped = mint(compute_claims(), key=tokens.rsa_key(), alg="EdDSA")
            assert await ask(world, f"Bearer {swapped}") == UNVERIFIED
            modulus = tokens.rsa_jwk()["n"].encode()
            assert await ask(world, f"Bearer {mint(compute_claims(), key=modulus, alg='HS256')}") == UNVERIFIED

    @pytest.mark.parametrize("kid", ["key-1", "another", 7, None])
    async def test_the_kid_of_a_token_is_ignored(self, kid: Any) -> None:
        """§3 order 2: keys are tried in order, header `kid` ignored."""
        header = {"alg": "EdDSA", "kid": kid}
        keys = [ed25519_jwk(STRANGERS_KEY, kid="key-0"), ED25519_JWK]
        assert await ask_with(mint(compute_claims(), header=header), keys=keys) == ALLOWED

    async def test_a_key_without_kid_fails_a_token_in_peace(self) -> None:
        """A-03: 401, no dropped connection."""
        keys = [ed25519_jwk()]
        assert await ask_with(mint(compute_claims(), key=STRANGERS_KEY), keys=keys) == UNVERIFIED
        assert await ask_with(mint(compute_claims()), keys=keys) == ALLOWED

    async def test_an_okp_key_needs_no_alg(self) -> None:
        """§3, key families: Ed25519 goes with EdDSA."""
        key = ed25519_jwk()
        del key["alg"]
        assert await ask_with(mint(compute_claims()), keys=[key]) == ALLOWED

    async def test_an_empty_key_set_lets_nobody_in(self, log_lines: LogLines) -> None:
        """§3: every request 401, one warning at start."""
        async with open_world(keys=[]) as world:
            for _ in range(3):
                assert await ask(world, f"Bearer {mint(compute_claims())}") == UNVERIFIED
            assert await ask(world, None) == INVALID
        assert len(log_lines.with_text("WARNING authorize: no verification keys")) == 1

    async def test_bad_keys_are_told_at_the_start(self, log_lines: LogLines) -> None:
        """C-08: before any token, each with its number and name."""
        bad = ed25519_jwk(x=base64url(b"short"), kid="this one")
        async with open_world(keys=[ED25519_JWK, bad]):
            (line,) = log_lines.with_text("WARNING authorize: verification key is skipped")
        assert 'number=1 kid="this one"' in line
        assert "an Ed25519 key has 32 bytes, not 5" in line

    def test_keys_are_checked_without_the_cryptographic_library(self) -> None:
        """C-08: a start need not load it."""
        code = (
            "import sys; from trio_compute.http.authorize import Authorizer; "
            "Authorizer([{'kty': 'RSA', 'alg': 'RS256', 'n': 'AQAB', 'e': 'AQAB'}], 'c'); "
            "sys.exit('cryptography' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    UNUSABLE: ClassVar[dict[str, Any]] = {
        "unknown kty": {"kty": "XYZ"},
        "nothing": {},
        "symmetric": {"kty": "oct", "k": base64url(b"secret"), "alg": "HS256"},
        "EC": {"kty": "EC", "crv": "P-256", "x": "a", "y": "b", "alg": "ES256"},
        "unknown crv": {"kty": "OKP", "crv": "X25519", "x": base64url(b"1" * 32)},
        "unknown alg": ed25519_jwk(alg="XyZ"),
        "alg a list": ed25519_jwk(alg=[]),
        "alg an object": {**tokens.rsa_jwk(), "alg": {}},
        "kid an object": ed25519_jwk(kid={"a": []}, x=None),
        "x of a wrong length": ed25519_jwk(x=base64url(b"short")),
        "x no base64": ed25519_jwk(x="!!!"),
        "x not ASCII": ed25519_jwk(x="\xe4" * 43),
        "x a number": ed25519_jwk(x=5),
        "RSA without alg": {name: value for name, value in tokens.rsa_jwk().items() if name != "alg"},
        "RSA with PS256": tokens.rsa_jwk(alg="PS256"),
        "RSA without n": {"kty": "RSA", "alg": "RS256", "e": "AQAB"},
        "RSA of zero": tokens.rsa_jwk(n="", e=""),
        "RSA small": tokens.rsa_jwk(n=base64url(b"\xff" * 16)),
        "RSA even": tokens.rsa_jwk(n=base64url(b"\xfe" * 256)),
        "RSA exponent one": tokens.rsa_jwk(e="AQ"),
    }

    @pytest.mark.parametrize("jwk", UNUSABLE.values(), ids=UNUSABLE.keys())
    async def test_an_unusable_key_is_skipped_with_one_warning(self, jwk: dict[str, Any], log_lines: LogLines) -> None:
        """B-10: any JWK object is tolerated; the others still work."""
        async with open_world(keys=[jwk, ED25519_JWK]) as world:
            for _ in range(3):
                assert await ask(world, f"Bearer {mint(compute_claims())}") == ALLOWED
                assert await ask(world, f"Bearer {mint(compute_claims(), key=STRANGERS_KEY)}") == UNVERIFIED
        warnings = log_lines.with_text("WARNING authorize: verification key is skipped")
        assert len(warnings) == 1
