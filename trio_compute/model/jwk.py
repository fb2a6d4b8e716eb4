"""Whether a JSON Web Key can verify tokens, found without a cryptographic library (contract 03 §3, 11 C-08)."""

from __future__ import annotations

import base64
from typing import Any

SHORTEST_RSA_BITS = 2048
LONGEST_RSA_BITS = 16384  # OpenSSL verifies with no longer one
_ED25519_BYTES = 32


def unbase64(text: str) -> bytes:
    """Return what base64url without padding spells; raise ValueError if it is something else."""
    if not text.isascii() or "=" in text:
        raise ValueError("not base64url without padding")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def key_fault(jwk: dict[str, Any]) -> str | None:
    """Return why a key cannot be used, or None; B-10: such a key is skipped, and the others count."""
    try:
        match jwk:
            case {"kty": "OKP", "crv": "Ed25519", "x": str(x)} if jwk.get("alg") in (None, "EdDSA"):
                size = len(unbase64(x))
                return None if size == _ED25519_BYTES else f"an Ed25519 key has {_ED25519_BYTES} bytes, not {size}"
            case {"kty": "RSA", "alg": "RS256", "n": str(n), "e": str(e)}:
                return _rsa_fault(_number(n), _number(e))
    except ValueError as error:
        return f"it cannot be read: {error}"
    return "its kind is not supported"


def _rsa_fault(modulus: int, exponent: int) -> str | None:
    bits = modulus.bit_length()
    if bits < SHORTEST_RSA_BITS:
        return f"{bits} bits are too short"
    if bits > LONGEST_RSA_BITS:
        return f"{bits} bits are too long"
    is_usable = 3 <= exponent < modulus and exponent % 2 and modulus % 2
    return None if is_usable else "modulus and exponent are no RSA key"


def _number(text: str) -> int:
    return int.from_bytes(unbase64(text), "big")
