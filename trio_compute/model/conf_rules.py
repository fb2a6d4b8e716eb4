"""What a spec may not say about Postgres' configuration files (contract 04 F-04, F-06, F-10, F-19)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trio_compute.model.problems import Path, Problem
from trio_compute.model.spec import ComputeAudit, ComputeSpec, DatabricksSettings

# Narrower than the contract's rule: Postgres' lexer of files knows no `$` and no second dot, and one name that it
# cannot read makes it refuse the whole file.
_NAME = re.compile(r"\A[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)?\Z")
_LONGEST_QUOTED_NAME = 80
_INCLUDES = re.compile(r"(?im)^[ \t\r]*include(?:_dir|_if_exists)?(?![A-Za-z0-9_.])")


def is_setting_name(text: str) -> bool:
    """Tell whether postgresql.conf can hold a setting of this name."""
    return _NAME.match(text) is not None


def shown_name(text: str) -> str:
    """Return a name of a setting for a message, quoted and cut short."""
    return repr(text[:_LONGEST_QUOTED_NAME])


def conf_problems(spec: ComputeSpec) -> Iterator[Problem]:
    """Yield what cannot be written into the configuration files."""
    for number, option in enumerate(spec.cluster.settings or ()):
        path: Path = ("cluster", "settings", number)
        if not is_setting_name(option.name):
            yield Problem(
                path=(*path, "name"),
                message=f"setting {shown_name(option.name)} is not a valid name",
                hint="letters, digits and underscores, with one dot at most",
            )
        elif option.value is None:
            yield Problem(
                path=(*path, "value"),
                message=f"setting {option.name!r} has no value",
                hint="give it a value as text, or leave the setting out",
            )
        elif "\0" in option.value:
            yield Problem(
                path=(*path, "value"),
                message=f"setting {option.name!r} holds a NUL character",
                hint="Postgres knows no such text",
            )
    if spec.databricks_settings is not None:
        yield from _databricks_problems(spec.databricks_settings)


def conf_warnings(spec: ComputeSpec) -> Iterator[str]:
    """Yield what is accepted and does not do what it says."""
    if spec.drop_subscriptions_before_start and spec.skip_pg_catalog_updates:
        yield "skip_pg_catalog_updates is set: subscriptions are neither dropped nor stopped"


def library_warnings(spec: ComputeSpec) -> Iterator[str]:
    """Yield why the audit level may replace a list of libraries that is out of our sight (04 F-08)."""
    names = {option.name.lower() for option in spec.cluster.settings or ()}
    is_replaced = spec.audit_log_level is not ComputeAudit.DISABLED and "shared_preload_libraries" not in names
    if is_replaced and _INCLUDES.search(spec.cluster.postgresql_conf or ""):
        yield (
            "postgresql_conf includes other files, which are not read here: if they set shared_preload_libraries, "
            "the list of the audit level takes its place"
        )


def _databricks_problems(settings: DatabricksSettings) -> Iterator[Problem]:
    tls = settings.pg_compute_tls_settings
    places: dict[Path, str] = {
        ("pg_compute_tls_settings", "cert_file"): tls.cert_file,
        ("pg_compute_tls_settings", "key_file"): tls.key_file,
        ("pg_compute_tls_settings", "ca_file"): tls.ca_file,
        ("databricks_pg_hba",): settings.databricks_pg_hba,
        ("databricks_pg_ident",): settings.databricks_pg_ident,
    }
    for place, text in places.items():
        name = text.rpartition("/")[2]
        if name in {"", ".", ".."} or set(text) & set("\0\n\r"):
            yield Problem(
                path=("databricks_settings", *place),
                message=f"{place[-1]} is not the path of a file",
                hint="name a file, without line breaks",
            )
    if set(settings.databricks_workspace_host) & set("\0\n\r"):
        yield Problem(
            path=("databricks_settings", "databricks_workspace_host"),
            message="databricks_workspace_host is not a host",
            hint="name a host, without line breaks",
        )
