"""Who may call the external API (contract 03 §3).

The checks are the contract's own and differ from a JWT library's in each step (every key is tried, `kid` is ignored,
the audience must be an array), so only the signature is left to a library, loaded when the first token arrives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from trio_compute.http.problems import Problem
from trio_compute.model.jwk import key_fault, unbase64
from trio_compute.telemetry.logging import get_logger

EXPIRY_LEEWAY_SECONDS = 60
MAX_REMEMBERED_TOKENS = 64
ADMIN_SCOPE = "compute_ctl:admin"
ADMIN_AUDIENCE = "compute"

log = get_logger("authorize")

Verify = Callable[[bytes, bytes], None]


class _Header(Struct, frozen=True):
    alg: str


class _Claims(Struct, frozen=True):
    compute_id: str | None = None
    scope: Literal["compute_ctl:admin"] | None = None
    aud: list[str] | None = None
    exp: int | float | None = None


class Authorizer:
    """Check bearer tokens against the keys given at process start."""

    def __init__(self, jwks: list[dict[str, Any]], compute_id: str, *, bypassed: bool = False) -> None:
        self._jwks = [jwk for number, jwk in enumerate(jwks) if _is_usable(number, jwk)]
        self._compute_id = compute_id
        self._bypassed = bypassed
        self._keys: list[tuple[str, Verify]] | None = None
        self._verified: dict[str, _Claims] = {}
        if bypassed:
            log.warning("the external API needs no token: INSTANCE_ID is set in lakebase mode")
        elif not self._jwks:
            log.warning("no verification keys: every request that needs a token will be refused")

    def check(self, authorization: str | None) -> None:
        """Return if the caller may go on; raise Problem 400, 401 or 403 otherwise."""
        if self._bypassed:
            return
        scheme, _, rest = (authorization or "").partition(" ")
        token = rest.strip()
        if scheme.lower() != "bearer" or not token or not token.isascii():
            raise Problem(400, "invalid authorization token")
        claims = self._verified.get(token) or self._verified_claims(token)
        if claims is None or _is_expired(claims):
            raise Problem(401, "failed to verify authorization token")
        self._remember(token, claims)
        self._decide(claims)

    def _decide(self, claims: _Claims) -> None:
        if claims.scope == ADMIN_SCOPE:
            if claims.aud is None:
                raise Problem(401, "missing audience in authorization token claims")
            if ADMIN_AUDIENCE not in claims.aud:
                raise Problem(401, "invalid audience in authorization token claims")
            if claims.compute_id not in {None, self._compute_id}:
                log.info("admin token names another compute")
        elif claims.compute_id is None:
            raise Problem(403, "missing compute_id in authorization token claims")
        elif claims.compute_id != self._compute_id:
            raise Problem(403, "invalid compute ID in authorization token claims")

    def _remember(self, token: str, claims: _Claims) -> None:
        """Verify the signature of a token once: keys stay what they are, and only the expiry depends on time."""
        if token not in self._verified:
            if len(self._verified) >= MAX_REMEMBERED_TOKENS:
                del self._verified[next(iter(self._verified))]
            self._verified[token] = claims

    def _verified_claims(self, token: str) -> _Claims | None:
        try:
            header_text, payload_text, signature_text = token.split(".")
            header = msgspec.json.decode(unbase64(header_text), type=_Header)
            signature = unbase64(signature_text)
        except (ValueError, RecursionError):
            return None
        signed = f"{header_text}.{payload_text}".encode()
        if not any(_matches(header, algorithm, verify, signature, signed) for algorithm, verify in self.load_keys()):
            return None
        try:
            return msgspec.json.decode(unbase64(payload_text), type=_Claims)
        except (ValueError, RecursionError):
            return None

    def load_keys(self) -> list[tuple[str, Verify]]:
        """Return the usable keys with their algorithms."""
        if self._keys is None:
            self._keys = [key for jwk in self._jwks if (key := _load_key(jwk)) is not None]
        return self._keys


def _matches(header: _Header, algorithm: str, verify: Verify, signature: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    if header.alg != algorithm:
        return False
    try:
        verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _is_expired(claims: _Claims) -> bool:
    return claims.exp is not None and claims.exp < time.time() - EXPIRY_LEEWAY_SECONDS


def _is_usable(number: int, jwk: dict[str, Any]) -> bool:
    """Tell at the start, not at the first token, which keys are skipped (B-10, C-08)."""
    fault = key_fault(jwk)
    if fault is not None:
        log.warning("verification key is skipped", number=number, kid=_kid(jwk), reason=fault)
    return fault is None


def _kid(jwk: dict[str, Any]) -> str:
    return str(jwk.get("kid"))[:80]


def _load_key(jwk: dict[str, Any]) -> tuple[str, Verify] | None:
    try:
        if jwk["kty"] == "OKP":
            return "EdDSA", _ed25519(jwk["x"])
        return "RS256", _rs256(jwk["n"], jwk["e"])
    except ValueError as error:
        log.warning("verification key is skipped", kid=_kid(jwk), reason=f"it cannot be read: {error}")
        return None


def _ed25519(x: str) -> Verify:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(unbase64(x)).verify


def _rs256(n: str, e: str) -> Verify:
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
    from cryptography.hazmat.primitives.hashes import SHA256

    numbers = RSAPublicNumbers(int.from_bytes(unbase64(e), "big"), int.from_bytes(unbase64(n), "big"))
    key = numbers.public_key()

    def verify(signature: bytes, signed: bytes) -> None:
        key.verify(signature, signed, PKCS1v15(), SHA256())

    return verify
