"""Keys, and tokens signed with them in every good and bad way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from functools import cache
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

COMPUTE_ID = "compute-wispy-lake-1"
ED25519_KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
STRANGERS_KEY = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)

Key = Ed25519PrivateKey | RSAPrivateKey | bytes | None


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def ed25519_jwk(key: Ed25519PrivateKey = ED25519_KEY, **more: Any) -> dict[str, Any]:
    x = base64url(public_bytes(key))
    return {"use": "sig", "key_ops": ["verify"], "alg": "EdDSA", "kty": "OKP", "crv": "Ed25519", "x": x, **more}


ED25519_JWK = ed25519_jwk(kid="key-1")


@cache
def rsa_key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=2048)


def rsa_jwk(**more: Any) -> dict[str, Any]:
    numbers = rsa_key().public_key().public_numbers()
    return {
        "kty": "RSA",
        "alg": "RS256",
        "n": base64url(numbers.n.to_bytes(256, "big")),
        "e": base64url(numbers.e.to_bytes(3, "big")),
        **more,
    }


def sign(key: Key, signed: bytes) -> bytes:
    match key:
        case Ed25519PrivateKey():
            return key.sign(signed)
        case RSAPrivateKey():
            return key.sign(signed, PKCS1v15(), SHA256())
        case bytes():
            return hmac.digest(key, signed, hashlib.sha256)
        case _:
            return b""


def mint(claims: Any, *, key: Key = ED25519_KEY, alg: str | None = None, header: Any = None) -> str:
    """Return a token; `claims` and `header` may be bytes that are no JSON at all."""
    if header is None:
        header = {"typ": "JWT", "alg": alg or ("RS256" if isinstance(key, RSAPrivateKey) else "EdDSA")}
    parts = [part if isinstance(part, bytes) else msgspec.json.encode(part) for part in (header, claims)]
    signed = ".".join(map(base64url, parts)).encode()
    return f"{signed.decode()}.{base64url(sign(key, signed))}"


def compute_claims(**more: Any) -> dict[str, Any]:
    return {"compute_id": COMPUTE_ID, **more}


def admin_claims(**more: Any) -> dict[str, Any]:
    return {"scope": "compute_ctl:admin", "aud": ["compute"], **more}


def seconds_from_now(seconds: float) -> int:
    return int(time.time() + seconds)


def bearer(token: str | None = None) -> dict[str, str]:
    return {"authorization": f"Bearer {mint(compute_claims()) if token is None else token}"}
