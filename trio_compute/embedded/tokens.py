"""Keys and tokens of an embedded world: Ed25519 like Neon's."""

from __future__ import annotations

import base64
import enum
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from trio_compute.host.files import write_atomically
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import is_hex_id


class Service(enum.Enum):
    """Name the services of the storage; the value is the scope that is good for all tenants there."""

    PAGESERVER = "pageserverapi"
    SAFEKEEPER = "safekeeperdata"


_SCOPES = {
    "tenant": "Tenant",
    "tenantendpoint": "TenantEndpoint",
    "pageserverapi": "PageServerApi",
    "safekeeperdata": "SafekeeperData",
    "generations_api": "GenerationsApi",
    "admin": "Admin",
    "infra": "Infra",
    "scrubber": "Scrubber",
    "controller_peer": "ControllerPeer",
}
"""The scopes that there are, and how the storage calls them when it refuses one."""


class StorageClaims(Struct, frozen=True):
    """Hold what a token for the storage claims."""

    scope: str
    tenant_id: str | None = None

    @classmethod
    def of(cls, claims: Mapping[str, Any]) -> StorageClaims:
        """Return what claims mean to the storage; raise ValueError when they mean nothing."""
        scope, tenant_id = claims.get("scope"), claims.get("tenant_id")
        if scope not in _SCOPES:
            raise ValueError("the token has no scope that there is")
        if tenant_id is not None and not (isinstance(tenant_id, str) and is_hex_id(tenant_id)):
            raise ValueError("the token has a tenant_id that is none")
        return cls(scope, tenant_id and tenant_id.lower())

    def require_tenant(self) -> None:
        """Raise ValueError for the scope of one tenant that does not tell which; over libpq that ends the login."""
        if self.scope == "tenant" and self.tenant_id is None:
            raise ValueError("jwt token scope is Tenant, but tenant id is missing")

    def refusal(self, tenant: str, service: Service) -> str | None:
        """Return why these claims are not good for a tenant at a service, None if they are."""
        if self.scope == service.value:
            return None
        if self.scope != "tenant":
            return f"JWT scope '{_SCOPES[self.scope]}' is ineligible for {service.name.capitalize()} auth"
        return None if self.tenant_id == tenant.lower() else "Tenant id mismatch. Permission denied"


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

    def storage_claims(self, token: str) -> StorageClaims:
        """Return what a token claims towards the storage; raise ValueError when it is not a token for that."""
        return StorageClaims.of(self.claims(token))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
