"""Key and certificate of Postgres: checked against each other, then put into PGDATA (contract 04 §7, F-02, F-03)."""

from __future__ import annotations

import re
from pathlib import Path

import trio
from msgspec import Struct

from trio_compute.deadlines import Deadlines
from trio_compute.errors import HostError
from trio_compute.host.files import write_bytes_atomically
from trio_compute.host.run_as import RunAs
from trio_compute.model.spec import TlsConfig
from trio_compute.telemetry.logging import get_logger

KEY_FILE = "server.key"
CERTIFICATE_FILE = "server.crt"
LARGEST_FILE_BYTES = 1024 * 1024
RETRY_SECONDS = 1.0

# Files made by openssl may have parameters or text before the key.
_PRIVATE_KEY = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)

log = get_logger("certificate")


class KeyPair(Struct, frozen=True):
    """Hold the content of both files, known to belong together."""

    key: bytes
    certificate: bytes

    def __repr__(self) -> str:
        return "KeyPair()"


async def install_key_pair(
    tls: TlsConfig, pgdata: Path, run_as: RunAs, deadlines: Deadlines, *, retry_seconds: float = RETRY_SECONDS
) -> None:
    """Wait until key and certificate belong together, and put them into PGDATA.

    If they do not within the limit, a pair that is there already stays in use, which is only logged; without one
    HostError is raised.
    """
    key, certificate = pgdata / KEY_FILE, pgdata / CERTIFICATE_FILE
    has_pair = key.is_file() and certificate.is_file()
    limit = min(deadlines.certificate, deadlines.certificate_renewal) if has_pair else deadlines.certificate
    try:
        pair = await _wait_for_pair(tls, limit, retry_seconds)
    except HostError as error:
        if not has_pair:
            raise
        log.warning("the certificate from before stays in use", error=error, reason=error.__cause__)
        return
    write_bytes_atomically(key, pair.key, run_as)
    write_bytes_atomically(certificate, pair.certificate, run_as)


def read_key_pair(tls: TlsConfig) -> KeyPair:
    """Return key and certificate chain; blocking.

    Raises HostError if a file cannot be read or understood, or if the key is not that of the chain's first certificate.
    """
    key, chain = read_limited(Path(tls.key_path)), read_limited(Path(tls.cert_path))
    if _public_part_of_key(key, tls.key_path) != _public_part_of_certificate(chain, tls.cert_path):
        raise HostError(f"the key in {tls.key_path} does not belong to the first certificate in {tls.cert_path}")
    return KeyPair(key, chain)


def read_limited(path: Path) -> bytes:
    """Return the content of a small file; blocking, raises HostError naming the path."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise HostError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > LARGEST_FILE_BYTES:
        raise HostError(f"{path} is larger than {LARGEST_FILE_BYTES >> 20} MiB")
    return content


async def _wait_for_pair(tls: TlsConfig, limit_seconds: float, retry_seconds: float) -> KeyPair:
    """Try until it works: while files are being renewed, only one of them may have been replaced."""
    failure: HostError | None = None
    with trio.move_on_after(limit_seconds):
        while True:
            try:
                # Abandoned if cancelled: a file system may hang.
                return await trio.to_thread.run_sync(read_key_pair, tls, abandon_on_cancel=True)
            except HostError as error:
                if str(error) != str(failure):
                    log.warning("cannot use the certificate yet", error=error)
                failure = error
            await trio.sleep(retry_seconds)
    raise HostError(f"no usable key and certificate within {limit_seconds:g} s") from failure


def _public_part_of_key(content: bytes, path: str) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    match = _PRIVATE_KEY.search(content)
    if match is None:
        raise HostError(f"{path} holds no private key in PEM form")
    try:
        public = load_pem_private_key(match.group(), password=None).public_key()
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except TypeError as error:  # which is how cryptography says that a password is missing
        raise HostError(f"the private key in {path} is encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise HostError(f"the private key in {path} is damaged or of an unknown type") from error


def _public_part_of_certificate(content: bytes, path: str) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_pem_x509_certificates

    try:
        public = load_pem_x509_certificates(content)[0].public_key()
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise HostError(f"{path} holds no certificate in PEM form that can be used") from error
