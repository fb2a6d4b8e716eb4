"""The compute spec as it travels on the wire (contract 01 §6 and §7).

Optional fields accept a missing key and null alike; fields with another default reject null; unknown keys are ignored.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from trio_compute.model.ids import HexIdText, LsnText, ShardIndexText

U64_MAX = 2**64 - 1

U8 = Annotated[int, Meta(ge=0, le=255)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
I64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
# msgspec cannot bound a number above an int64; Wire checks the upper end.
U64 = Annotated[int, Meta(ge=0)]
PositiveU64 = Annotated[int, Meta(ge=1)]


class Wire(Struct, frozen=True, kw_only=True):
    """Be the parent of all wire structs: immutable, keyword-only, integers within 64 bits."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if type(value) is int and value > U64_MAX:
                raise ValueError(f"`{name}` does not fit into 64 bits")


class StaticMode(Wire, frozen=True):
    """Pin a read-only compute to one LSN."""

    lsn: LsnText = field(name="Static")


Mode = Literal["Primary", "Replica"] | StaticMode


class ComputeAudit(enum.Enum):
    """Name the audit levels; `Log` and `Hipaa` are old names of `Base` and `Extended`."""

    DISABLED = "Disabled"
    LOG = "Log"
    BASE = "Base"
    HIPAA = "Hipaa"
    EXTENDED = "Extended"
    FULL = "Full"


class PageserverProtocol(enum.Enum):
    """Name the two transports of the pageserver."""

    LIBPQ = "libpq"
    GRPC = "grpc"


class GenericOption(Wire, frozen=True):
    """Hold one setting of Postgres or one option of a role or database."""

    name: str
    vartype: str
    value: str | None = None


class Role(Wire, frozen=True):
    """Describe a wanted role; the password is a SCRAM verifier or an md5 hash."""

    name: str
    encrypted_password: str | None = None
    options: list[GenericOption] | None = None


class Database(Wire, frozen=True):
    """Describe a wanted database."""

    name: str
    owner: str
    options: list[GenericOption] | None = None


class DeltaOp(Wire, frozen=True):
    """Describe one explicit change: delete_db, rename_db, delete_role or rename_role; others are ignored."""

    action: str
    name: str
    new_name: str | None = None


class Cluster(Wire, frozen=True):
    """Describe the wanted content of the Postgres cluster."""

    roles: list[Role]
    databases: list[Database]
    cluster_id: str | None = None
    name: str | None = None
    state: str | None = None
    postgresql_conf: str | None = None
    settings: list[GenericOption] | None = None

    def setting(self, name: str) -> str | None:
        """Return the value of the first setting of exactly this name; a null value counts as absent."""
        return next((option.value for option in self.settings or () if option.name == name), None)


class Pageserver(Wire, frozen=True):
    """Name one pageserver of a shard."""

    id: U64 | None = None
    libpq_url: str | None = None
    grpc_url: str | None = None


class Shard(Wire, frozen=True):
    """List the pageservers of one shard; the first one is used."""

    pageservers: list[Pageserver]


class PageserverConnectionInfo(Wire, frozen=True):
    """Say where the shards of the tenant are; `shard_count` 0 means unsharded."""

    shard_count: U8
    shards: dict[ShardIndexText, Shard]
    stripe_size: U32 | None = None
    prefer_protocol: PageserverProtocol = PageserverProtocol.LIBPQ


class ExtensionData(Wire, frozen=True):
    """Hold the control files of a remote extension."""

    control_data: dict[str, str]
    archive_path: str


class RemoteExtSpec(Wire, frozen=True):
    """Say which extensions may be downloaded."""

    library_index: dict[str, str]
    extension_data: dict[str, ExtensionData]
    public_extensions: list[str] | None = None
    custom_extensions: list[str] | None = None


class TlsConfig(Wire, frozen=True):
    """Name the key and certificate files."""

    key_path: str
    cert_path: str


class JwksSettings(Wire, frozen=True):
    """Describe one identity provider of local_proxy."""

    id: str
    role_names: list[str]
    jwks_url: str
    provider_name: str
    jwt_audience: str | None = None


class LocalProxySpec(Wire, frozen=True):
    """Hold the configuration of local_proxy."""

    jwks: list[JwksSettings] | None = None
    tls: TlsConfig | None = None


class PgComputeTlsSettings(Wire, frozen=True):
    """Name the TLS files of a lakebase compute."""

    cert_file: str
    key_file: str
    ca_file: str


class DatabricksSettings(Wire, frozen=True):
    """Hold the lakebase settings."""

    pg_compute_tls_settings: PgComputeTlsSettings
    databricks_pg_hba: str
    databricks_pg_ident: str
    databricks_workspace_host: str


class ComputeSpec(Wire, frozen=True):
    """Describe everything that a compute shall be (contract 01 §6)."""

    format_version: float
    cluster: Cluster
    suspend_timeout_seconds: I64
    operation_uuid: str | None = None
    features: list[str] = []
    swap_size_bytes: U64 | None = None
    disk_quota_bytes: U64 | None = None
    disable_lfc_resizing: bool | None = None
    delta_operations: list[DeltaOp] | None = None
    skip_pg_catalog_updates: bool = False
    tenant_id: HexIdText | None = None
    timeline_id: HexIdText | None = None
    pageserver_connection_info: PageserverConnectionInfo | None = None
    pageserver_connstring: str | None = None
    shard_stripe_size: U32 | None = None
    project_id: str | None = None
    branch_id: str | None = None
    endpoint_id: str | None = None
    safekeepers_generation: U32 | None = None
    safekeeper_connstrings: list[str] = []
    mode: Mode = "Primary"
    storage_auth_token: str | None = None
    remote_extensions: RemoteExtSpec | None = None
    pgbouncer_settings: dict[str, str] | None = None
    local_proxy_config: LocalProxySpec | None = None
    reconfigure_concurrency: U64 = 1
    drop_subscriptions_before_start: bool = False
    audit_log_level: ComputeAudit = ComputeAudit.DISABLED
    logs_export_host: str | None = None
    endpoint_storage_addr: str | None = None
    endpoint_storage_token: str | None = None
    autoprewarm: bool = False
    offload_lfc_interval_seconds: PositiveU64 | None = None
    databricks_settings: DatabricksSettings | None = None


class Jwks(Wire, frozen=True):
    """Hold the verification keys as raw objects: an unusable one must not fail the configuration (B-10)."""

    keys: list[dict[str, Any]]


class ComputeCtlConfig(Wire, frozen=True):
    """Hold what configures compute_ctl itself, taken at process start only."""

    jwks: Jwks
    tls: TlsConfig | None = None


class ComputeConfig(Wire, frozen=True):
    """Be config.json: an optional spec and the mandatory configuration of compute_ctl (contract 01 §5)."""

    compute_ctl_config: ComputeCtlConfig
    spec: ComputeSpec | None = None


class ControlPlaneAnswer(Wire, frozen=True):
    """Be the control plane's answer to a spec request (contract 01 §8)."""

    status: Literal["empty", "attached"]
    compute_ctl_config: ComputeCtlConfig
    spec: ComputeSpec | None = None
