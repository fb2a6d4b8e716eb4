"""Whether Postgres serves TLS with the files that compute_ctl was configured with (contract 04 row 7, F-28)."""

from __future__ import annotations

from trio_compute.model.spec import ComputeSpec, TlsConfig

FEATURE = "tls_experimental"
TLS_LINES = ("ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'")


def tls_in_use(spec: ComputeSpec, tls: TlsConfig | None) -> TlsConfig | None:
    """Return the files if the spec has the feature, else None."""
    return tls if FEATURE in spec.features else None
