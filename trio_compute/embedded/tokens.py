"""Keys and tokens of an embedded world: Ed25519 like Neon's."""

from __future__ import annotations

import base64
import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trio_compute.host.files import write_atomically
from trio_compute.host.run_as import RunAs


class Issuer:
    """Sign tokens and check them."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = key.public_key()

    @classmethod
    def load(cls, path: Path) -> Issuer:
        """Return the issuer whose key is in a file, made there the first time."""
        if path.exists():
            return cls(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text(encoding="ascii"))))
        issuer = cls(Ed25519PrivateKey.generate())
        write_atomically(path, issuer._key.private_bytes_raw().hex(), RunAs())
        return issuer

    def jwk(self) -> dict[str, Any]:
        """Return the public key as neon_local writes it into config.json (contract 01 §10)."""
        raw = self._public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {
            "use": "sig",
            "key_ops": ["verify"],
            "alg": "EdDSA",
            "kid": _base64(hashlib.sha256(raw).digest()),
            "kty": "OKP",
            "crv": "Ed25519",
            "x": _base64(raw),
        }

    def sign(self, claims: dict[str, Any]) -> str:
        """Return a token with these claims."""
        header = _base64(msgspec.json.encode({"alg": "EdDSA", "typ": "JWT"}))
        signed = f"{header}.{_base64(msgspec.json.encode(claims))}"
        return f"{signed}.{_base64(self._key.sign(signed.encode()))}"

    def claims(self, token: str) -> dict[str, Any]:
        """Return the claims of a token of ours that has not expired; raise ValueError otherwise."""
        try:
            signed, _, signature = token.rpartition(".")
            self._public.verify(_unbase64(signature), signed.encode())
            claims = msgspec.json.decode(_unbase64(signed.partition(".")[2]), type=dict[str, Any])
        except (InvalidSignature, ValueError) as error:
            raise ValueError("invalid token") from error
        if claims.get("exp", float("inf")) < time.time():
            raise ValueError("expired token")
        return claims


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
