"""SCRAM-SHA-256 verifiers for passwords that a spec gives in plain text (contract 11 C-04, RFC 5802, RFC 7677)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

from msgspec import structs

from trio_compute.model.catalog_rules import is_plain
from trio_compute.model.spec import Role

ITERATIONS = 4096  # Postgres' own
# A role can give itself a verifier with two thousand million of them, and checking that would hold up every start.
MOST_ITERATIONS = 100_000
SALT_BYTES = 16

_VERIFIER = re.compile(r"\ASCRAM-SHA-256\$([1-9][0-9]{0,8}):([A-Za-z0-9+/=]*)\$([A-Za-z0-9+/=]*):([A-Za-z0-9+/=]*)\Z")


def with_verifier(role: Role, stored: str | None) -> Role:
    """Return a role with a verifier in place of a plain password: the stored one if it is of this password.

    The salt is random, so a new one for each plan would be a change for ever.
    """
    plain = role.encrypted_password
    if plain is None or not is_plain(plain):
        return role
    import secrets

    fits = stored is not None and matches(stored, plain)
    return structs.replace(
        role, encrypted_password=stored if fits else verifier(plain, secrets.token_bytes(SALT_BYTES))
    )


def verifier(plain: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Return what Postgres would store for a password."""
    salted = hashlib.pbkdf2_hmac("sha256", _prepared(plain), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key, server_key = hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256")
    shown = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *shown)


def matches(stored: str, plain: str) -> bool:
    """Tell whether a stored verifier is one of this password."""
    parts = _VERIFIER.match(stored)
    if parts is None or int(parts[1]) > MOST_ITERATIONS:
        return False
    try:
        salt = base64.b64decode(parts[2], validate=True)
    except binascii.Error:
        return False
    return hmac.compare_digest(verifier(plain, salt, int(parts[1])), stored)


def _prepared(plain: str) -> bytes:
    """Return a password as SASLprep makes it; one that it prohibits is taken as it is, as Postgres and libpq do."""
    if plain.isascii():
        return plain.encode()
    import stringprep
    import unicodedata

    spaced = (" " if stringprep.in_table_c12(character) else character for character in plain)
    text = unicodedata.normalize("NFKC", "".join(filter(lambda each: not stringprep.in_table_b1(each), spaced)))
    return (plain if _is_prohibited(text) else text).encode()


def _is_prohibited(text: str) -> bool:
    import stringprep

    tables = (
        *(stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4),
        *(stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8),
        *(stringprep.in_table_c9, stringprep.in_table_a1),
    )
    if not text or any(table(character) for character in text for table in tables):
        return True
    if not any(map(stringprep.in_table_d1, text)):
        return False
    # From right to left: at both ends, and without a letter of the other direction.
    ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
    return not ends or any(map(stringprep.in_table_d2, text))
