"""The compute spec as it travels on the wire (contract 01 §6 and §7).

Optional fields accept a missing key and null alike; fields with another default reject null; unknown keys are ignored.
"""

# Without `from __future__ import annotations`: msgspec would compile some hundred texts when the first spec is decoded.

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


def about(text: str, example: str | None = None) -> Meta:
    """Say what a field means: the JSON Schema, docs/spec.md and the hints of `validate` show it."""
    return Meta(description=text, examples=None if example is None else [example])


def secret(text: str) -> Meta:
    """Say what a field means and that its value must never be shown."""
    return Meta(description=text, extra={"secret": True}, extra_json_schema={"writeOnly": True})


class Wire(Struct, frozen=True, kw_only=True):
    """Be the parent of all wire structs: immutable, keyword-only, integers within 64 bits."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if type(value) is int and value > U64_MAX:
                raise ValueError(f"`{name}` does not fit into 64 bits")


class StaticMode(Wire, frozen=True):
    """Pin a read-only compute to one LSN."""

    lsn: Annotated[LsnText, about("Position in the WAL that every read sees, as `HI/LO` in hex.", "0/169AD58")] = field(
        name="Static"
    )


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

    name: Annotated[
        str, about("Name of the setting or option; settings are looked up by exact name and the first one counts.")
    ]
    vartype: Annotated[
        str,
        about(
            "`string` puts the value in quotes; every other type writes it as it is if it is a plain word or number."
        ),
    ]
    value: Annotated[
        str | None, about("The value as text. An option of a role or database may go without; a setting may not.")
    ] = None


class Role(Wire, frozen=True):
    """Describe a wanted role; the password is a SCRAM verifier, an md5 hash or plain text."""

    name: Annotated[str, about("Name of the role, 1 to 63 bytes.")]
    encrypted_password: Annotated[
        str | None,
        secret(
            "SCRAM verifier, or the 32 hex digits of an md5 hash without the prefix `md5`; anything else is a password "
            "in plain text, which the compute hashes. Null and empty mean no password."
        ),
    ] = None
    options: Annotated[list[GenericOption] | None, about("Further words of CREATE ROLE and ALTER ROLE.")] = None


class Database(Wire, frozen=True):
    """Describe a wanted database."""

    name: Annotated[str, about("Name of the database, 1 to 63 bytes.")]
    owner: Annotated[str, about("Role that owns the database.")]
    options: Annotated[list[GenericOption] | None, about("Further words of CREATE DATABASE.")] = None


class DeltaOp(Wire, frozen=True):
    """Describe one explicit change: delete_db, rename_db, delete_role or rename_role; others are ignored."""

    action: Annotated[str, about("`delete_db`, `rename_db`, `delete_role` or `rename_role`; anything else is ignored.")]
    name: Annotated[str, about("Role or database to act upon.")]
    new_name: Annotated[str | None, about("Name after a rename: needed by both renames, ignored otherwise.")] = None


class Cluster(Wire, frozen=True):
    """Describe the wanted content of the Postgres cluster."""

    roles: Annotated[list[Role], about("Roles that shall exist, with these passwords and options.")]
    databases: Annotated[list[Database], about("Databases that shall exist, with these owners.")]
    cluster_id: Annotated[str | None, about("For people only.")] = None
    name: Annotated[str | None, about("For people only.")] = None
    state: Annotated[str | None, about("For people only.")] = None
    postgresql_conf: Annotated[
        str | None, about("Text that opens postgresql.conf; what the compute manages follows and wins.")
    ] = None
    settings: Annotated[
        list[GenericOption] | None,
        about(
            "Settings of Postgres, written after `postgresql_conf`; `neon.*` ones may stand in for fields of the spec."
        ),
    ] = None

    def setting(self, name: str) -> str | None:
        """Return the value of the first setting of exactly this name; a null value counts as absent."""
        return next((option.value for option in self.settings or () if option.name == name), None)


class Pageserver(Wire, frozen=True):
    """Name one pageserver of a shard."""

    id: Annotated[U64 | None, about("Number of the node in the storage cluster.")] = None
    libpq_url: Annotated[str | None, about("`postgresql://` URL of its page service.")] = None
    grpc_url: Annotated[str | None, about("`grpc://` URL of its page service.")] = None


class Shard(Wire, frozen=True):
    """List the pageservers of one shard; the first one is used."""

    pageservers: Annotated[list[Pageserver], about("At least one; only the first is used.")]


class PageserverConnectionInfo(Wire, frozen=True):
    """Say where the shards of the tenant are; `shard_count` 0 means unsharded."""

    shard_count: Annotated[U8, about("Number of shards; 0 means that the tenant is not sharded.")]
    shards: Annotated[
        dict[ShardIndexText, Shard],
        about(
            "Shards by index: two hex digits of number, two of count; `0000` is unsharded, `0102` the second of two."
        ),
    ]
    stripe_size: Annotated[U32 | None, about("Pages that go to one shard before the next one's turn.")] = None
    prefer_protocol: Annotated[
        PageserverProtocol, about("Which URL of a pageserver to use; each shard's first pageserver needs that one.")
    ] = PageserverProtocol.LIBPQ


class ExtensionData(Wire, frozen=True):
    """Hold the control files of a remote extension."""

    control_data: Annotated[dict[str, str], about("Text of each control file, by file name.")]
    archive_path: Annotated[str, about("Not used: the path follows from version and architecture.")]
    archive_sha256: Annotated[
        str | None, about("SHA-256 of the archive in hex, checked before it is installed; null is not checked (ours).")
    ] = None


class RemoteExtSpec(Wire, frozen=True):
    """Say which extensions may be downloaded."""

    library_index: Annotated[dict[str, str], about("Extension that brings a library, by library name without `.so`.")]
    extension_data: Annotated[dict[str, ExtensionData], about("What is known of each extension, by its name.")]
    public_extensions: Annotated[list[str] | None, about("Extensions that everybody may download.")] = None
    custom_extensions: Annotated[list[str] | None, about("Extensions that this tenant may download.")] = None


class TlsConfig(Wire, frozen=True):
    """Name the key and certificate files."""

    key_path: Annotated[str, about("Path of the private key, PEM.")]
    cert_path: Annotated[str, about("Path of the certificate chain, PEM.")]


class JwksSettings(Wire, frozen=True):
    """Describe one identity provider of local_proxy."""

    id: Annotated[str, about("Name of this entry.")]
    role_names: Annotated[list[str], about("Roles that its tokens may log in as.")]
    jwks_url: Annotated[str, about("Where the provider publishes its keys.")]
    provider_name: Annotated[str, about("Name of the provider, for people.")]
    jwt_audience: Annotated[str | None, about("Audience demanded of its tokens; null demands none.")] = None


class LocalProxySpec(Wire, frozen=True):
    """Hold the configuration of local_proxy."""

    jwks: Annotated[list[JwksSettings] | None, about("Identity providers whose tokens local_proxy accepts.")] = None
    tls: Annotated[
        TlsConfig | None, about("Ignored in input: local_proxy gets the files that the compute itself serves with.")
    ] = None


class PgComputeTlsSettings(Wire, frozen=True):
    """Name the TLS files of a lakebase compute."""

    cert_file: Annotated[str, about("Path of the certificate.")]
    key_file: Annotated[str, about("Path of the private key.")]
    ca_file: Annotated[str, about("Path of the authority's certificate.")]


class DatabricksSettings(Wire, frozen=True):
    """Hold the lakebase settings."""

    pg_compute_tls_settings: Annotated[PgComputeTlsSettings, about("TLS files of Postgres.")]
    databricks_pg_hba: Annotated[str, about("Path of the pg_hba.conf to use.")]
    databricks_pg_ident: Annotated[str, about("Path of the pg_ident.conf to use.")]
    databricks_workspace_host: Annotated[str, about("Host of the workspace, given to Postgres in its environment.")]


class ComputeSpec(Wire, frozen=True):
    """Describe everything that a compute shall be (contract 01 §6)."""

    format_version: Annotated[float, about("Any number; nothing depends on it.")]
    cluster: Annotated[Cluster, about("What Postgres shall contain and how it is configured.")]
    suspend_timeout_seconds: Annotated[
        I64,
        about("Idle time after which the compute is suspended; paces the extension statistics. -1 and 0: every hour."),
    ]
    operation_uuid: Annotated[
        str | None, about("Operation of the control plane that wrote this spec; only logged.")
    ] = None
    features: Annotated[
        list[str],
        about(
            "Experiments to switch on: `activity_monitor_experimental`, `tls_experimental`. Unknown ones are ignored."
        ),
    ] = []
    swap_size_bytes: Annotated[
        U64 | None, about("Swap to give the VM, if the compute runs with `--resize-swap-on-bind`.")
    ] = None
    disk_quota_bytes: Annotated[
        U64 | None,
        about("Quota of the file system, if the compute runs with `--set-disk-quota-for-fs`; rounded down to KiB."),
    ] = None
    disable_lfc_resizing: Annotated[
        bool | None, about("True keeps vm-monitor from resizing the local file cache. Read once, at process start.")
    ] = None
    delta_operations: Annotated[
        list[DeltaOp] | None,
        about("Renames and deletions, which the wanted state alone cannot express; they come before it."),
    ] = None
    skip_pg_catalog_updates: Annotated[
        bool, about("True leaves roles and databases as they are, at start and when reconfigured.")
    ] = False
    tenant_id: Annotated[
        HexIdText | None, about("Tenant in Neon's storage, 32 hex digits. If absent, setting `neon.tenant_id`.")
    ] = None
    timeline_id: Annotated[
        HexIdText | None,
        about("Timeline (branch) in Neon's storage, 32 hex digits. If absent, setting `neon.timeline_id`."),
    ] = None
    pageserver_connection_info: Annotated[
        PageserverConnectionInfo | None,
        about("Where the pageservers are: the form that wins. If absent, `pageserver_connstring`."),
    ] = None
    pageserver_connstring: Annotated[
        str | None,
        about(
            "URLs of the pageservers, one per shard, joined by commas. If absent, setting `neon.pageserver_connstring`."
        ),
    ] = None
    shard_stripe_size: Annotated[
        U32 | None, about("Pages per stripe; needed if `pageserver_connstring` names several shards.")
    ] = None
    project_id: Annotated[str | None, about("Project, for settings and audit log.")] = None
    branch_id: Annotated[str | None, about("Branch, for settings and audit log.")] = None
    endpoint_id: Annotated[
        str | None, about("Endpoint, for settings and audit log; also names the saved file cache.")
    ] = None
    safekeepers_generation: Annotated[
        U32 | None, about("Generation of the list of safekeepers; Postgres gets it as a prefix of that list.")
    ] = None
    safekeeper_connstrings: Annotated[
        list[str],
        about(
            "Safekeepers as `host:port`, no duplicates; of a URL host and port count, 5432 if it names none. A primary "
            "needs one; if empty, setting `neon.safekeepers`."
        ),
    ] = []
    mode: Annotated[
        Mode,
        about('`"Primary"` writes, `"Replica"` follows a primary, `{"Static": "0/169AD58"}` reads at one position.'),
    ] = "Primary"
    storage_auth_token: Annotated[str | None, secret("Token for pageservers and safekeepers.")] = None
    remote_extensions: Annotated[
        RemoteExtSpec | None, about("Extensions to download on demand; null switches downloads off.")
    ] = None
    pgbouncer_settings: Annotated[
        dict[str, str] | None, about("Settings of section `[pgbouncer]`, values as text, written in this order.")
    ] = None
    local_proxy_config: Annotated[
        LocalProxySpec | None, about("Configuration of local_proxy; null leaves local_proxy alone.")
    ] = None
    reconfigure_concurrency: Annotated[
        U64, about("Databases to work on at the same time when reconfigured; 0 counts as 1.")
    ] = 1
    drop_subscriptions_before_start: Annotated[
        bool, about("True drops all logical subscriptions once, so that a new branch does not steal its parent's.")
    ] = False
    audit_log_level: Annotated[
        ComputeAudit, about("How much pgaudit writes. `Log` is an old name of `Base`, `Hipaa` of `Extended`.")
    ] = ComputeAudit.DISABLED
    logs_export_host: Annotated[str | None, about("Collector of Postgres' log, as `host:port`.")] = None
    endpoint_storage_addr: Annotated[
        str | None,
        about("Storage of the saved file cache, as `host:port`. If absent, setting `neon.endpoint_storage_addr`."),
    ] = None
    endpoint_storage_token: Annotated[
        str | None, secret("Token for that storage. If absent, setting `neon.endpoint_storage_token`.")
    ] = None
    autoprewarm: Annotated[bool, about("True fills the local file cache from its saved state after the start.")] = False
    offload_lfc_interval_seconds: Annotated[
        PositiveU64 | None, about("Seconds between saves of the local file cache; null saves none by itself.")
    ] = None
    databricks_settings: Annotated[DatabricksSettings | None, about("Settings of a lakebase compute.")] = None


class Jwks(Wire, frozen=True):
    """Hold the verification keys as raw objects: an unusable one must not fail the configuration (B-10)."""

    keys: Annotated[
        list[dict[str, Any]],
        about(
            "JSON Web Keys. A key that cannot be used is skipped with a warning; it does not fail the configuration."
        ),
    ]


class ComputeCtlConfig(Wire, frozen=True):
    """Hold what configures compute_ctl itself, taken at process start only."""

    jwks: Annotated[Jwks, about("Keys that verify the tokens of callers of the external HTTP API.")]
    tls: Annotated[
        TlsConfig | None,
        about("Key and certificate of Postgres and its neighbours; used only with feature `tls_experimental`."),
    ] = None


class ComputeConfig(Wire, frozen=True):
    """Be config.json: an optional spec and the mandatory configuration of compute_ctl (contract 01 §5)."""

    compute_ctl_config: Annotated[
        ComputeCtlConfig, about("What configures the compute process itself. Read once, at process start.")
    ]
    spec: Annotated[
        ComputeSpec | None, about("What the compute shall be; null starts it empty, to be told by `/configure`.")
    ] = None


class ControlPlaneAnswer(Wire, frozen=True):
    """Be the control plane's answer to a spec request (contract 01 §8)."""

    status: Annotated[
        Literal["empty", "attached"],
        about("`attached` if the compute has been given a spec, `empty` if it shall wait for one."),
    ]
    compute_ctl_config: Annotated[
        ComputeCtlConfig, about("What configures the compute process itself. Read once, at process start.")
    ]
    spec: Annotated[ComputeSpec | None, about("What the compute shall be; needed when `attached`.")] = None
