"""Keys and self-signed certificates of several kinds."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from trio_compute.model.spec import TlsConfig

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
KINDS = ("P-256", "P-384", "RSA", "Ed25519")
FORMATS = {
    "PKCS8": serialization.PrivateFormat.PKCS8,
    "traditional": serialization.PrivateFormat.TraditionalOpenSSL,
}


def make_key(kind: str) -> Key:
    match kind:
        case "P-256":
            return ec.generate_private_key(ec.SECP256R1())
        case "P-384":
            return ec.generate_private_key(ec.SECP384R1())
        case "RSA":
            return rsa.generate_private_key(65537, 2048)
        case _:
            return ed25519.Ed25519PrivateKey.generate()


def key_text(key: Key, form: str = "PKCS8", password: bytes | None = None) -> bytes:
    encryption = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, FORMATS[form], encryption)


def certificate_text(key: Key) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "compute")])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


class Files:
    """The two files that a TLS configuration names."""

    def __init__(self, directory: Path) -> None:
        self.key_path, self.cert_path = directory / "tls.key", directory / "tls.crt"
        self.tls = TlsConfig(key_path=str(self.key_path), cert_path=str(self.cert_path))

    def write(self, kind: str, form: str = "PKCS8") -> Key:
        key = make_key(kind)
        self.key_path.write_bytes(key_text(key, form))
        self.cert_path.write_bytes(certificate_text(key))
        return key

    @property
    def document(self) -> dict[str, str]:
        return {"key_path": self.tls.key_path, "cert_path": self.tls.cert_path}
