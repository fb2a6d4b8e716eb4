"""What Databricks settings put into PGDATA: key, certificate, lines in the access files (contract 04 §2 step 6, §7)."""

from __future__ import annotations

from pathlib import Path

from trio_compute.errors import HostError
from trio_compute.host.files import write_bytes_atomically
from trio_compute.host.run_as import RunAs
from trio_compute.model.spec import DatabricksSettings
from trio_compute.plan.access_files import FIRST_MAJOR_WITH_INCLUDES, include_line, with_line_first
from trio_compute.postgres.data_version import major_of


def install_databricks_files(pgdata: Path, run_as: RunAs, settings: DatabricksSettings) -> None:
    """Copy key and certificate, include the access files; blocking, raises HostError naming what is wrong.

    Refuses Postgres before 16, which cannot read the lines (F-17).
    """
    major = major_of(pgdata)
    if major < FIRST_MAJOR_WITH_INCLUDES:
        raise HostError(f"databricks_settings need Postgres {FIRST_MAJOR_WITH_INCLUDES} or newer, this is {major}")
    tls = settings.pg_compute_tls_settings
    _copy_once(Path(tls.cert_file), pgdata, run_as)
    _copy_once(Path(tls.key_file), pgdata, run_as).chmod(0o600)
    _include_first(pgdata / "pg_hba.conf", settings.databricks_pg_hba, run_as)
    _include_first(pgdata / "pg_ident.conf", settings.databricks_pg_ident, run_as)


def _copy_once(source: Path, pgdata: Path, run_as: RunAs) -> Path:
    target = pgdata / source.name
    if not target.exists():
        try:
            content = source.read_bytes()
        except OSError as error:
            raise HostError(f"cannot read {source}: {error.strerror}") from error
        write_bytes_atomically(target, content, run_as)
    return target


def _include_first(path: Path, included: str, run_as: RunAs) -> None:
    # The file may be in any encoding; what we do not understand is kept as it is.
    text = path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""
    changed = with_line_first(text, include_line(included))
    if changed is not None:
        write_bytes_atomically(path, changed.encode(errors="surrogateescape"), run_as)
