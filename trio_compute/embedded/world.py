"""An embedded world: the stand-ins for Neon's storage on loopback, with their state in one directory."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from trio_compute.embedded.branches import MAIN, Branch, add_branch, load_identity
from trio_compute.embedded.endpoints import Addresses, Endpoint, mode_settings, primary_conninfo, spec_of
from trio_compute.embedded.http_services import ObjectFaults
from trio_compute.embedded.own_wal import OwnWal
from trio_compute.embedded.pageserver import Pageserver
from trio_compute.embedded.receiver import Receiver, open_receiver
from trio_compute.embedded.safekeeper import SafekeeperGroup
from trio_compute.embedded.snapshots import Snapshots
from trio_compute.embedded.timelines import Timeline
from trio_compute.embedded.tokens import Issuer
from trio_compute.errors import HostError
from trio_compute.host.files import write_atomically
from trio_compute.host.run_as import RunAs
from trio_compute.model.catalog_rules import SUPERUSER
from trio_compute.model.ids import Lsn

COMPUTE_ID = "dev-compute"
ENDPOINT_ID = "ep-dev"
TOKEN_SECONDS = 7 * 24 * 3600
TOOLS = ("pg_ctl", "initdb", "pg_config", "pg_isready", "pg_dump", "psql", "pg_controldata")


class World:
    """Own the directory of an embedded world; `run_as` is the user that Postgres runs as there.

    Everything here is about one branch, but the services answer for all of them.
    """

    def __init__(self, directory: Path, tree: Path, major: int, run_as: RunAs, *, branch: str = MAIN) -> None:
        self.directory = directory
        self.run_as = run_as
        self.branch = branch
        self.real_bin = tree / "bin"
        self.pgbin = directory / "bin" / "postgres"
        self._make_directory()
        self.identity = load_identity(directory, major)
        self.timeline_id = self.identity.timeline_of(branch)
        self.issuer = Issuer.load(directory / "issuer.key")
        self.timelines: dict[tuple[str, str], Timeline] = {}
        self.served: dict[tuple[str, str], Snapshots] = {}
        self._add_timeline(self.identity.timeline_id, MAIN)
        for known in self.identity.branches:
            self._add_timeline(known.timeline_id, known.name)
        self.timeline = self.timelines[self.identity.tenant_id, self.timeline_id]
        self.snapshots = self.timeline.snapshots
        self.safekeepers = SafekeeperGroup(directory / "safekeepers", self.timelines)
        self.pageserver = Pageserver(self.served)
        self.object_faults = ObjectFaults()
        self.control_plane_token = secrets.token_urlsafe(16)
        self.primary = self._primary()
        self.pgdata = self.primary.pgdata
        self.config_path = self.primary.config_path
        self._write_wrapper()

    def _add_timeline(self, timeline_id: str, branch: str) -> Timeline:
        directory = self.directory / "timelines" / timeline_id
        own_wals = partial(self._own_wals, branch)
        timeline = Timeline(timeline_id, directory, self.real_bin, self.run_as, own_wals)
        key = (self.identity.tenant_id, timeline_id)
        self.timelines[key], self.served[key] = timeline, timeline.snapshots
        return timeline

    def _primary(self) -> Endpoint:
        if self.branch == MAIN:
            OwnWal(self.directory / "pgdata").prepare(self.run_as)
            return Endpoint("primary", COMPUTE_ID, ENDPOINT_ID, self.directory)
        return self.endpoint("primary", "Primary")

    def _own_wals(self, branch: str) -> list[OwnWal]:
        """Return where the computes of a branch keep their WAL, the primary's first."""
        return [OwnWal(pgdata) for pgdata in self._data_directories(branch)]

    def endpoint(self, name: str, mode: str | dict[str, str]) -> Endpoint:
        """Return one more compute on this branch, with a place of its own."""
        directory = self.directory / "computes" / self.branch / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for place in (directory, directory.parent, directory.parent.parent):
                place.chmod(0o755)
        except OSError as error:
            raise HostError(f"cannot use {directory}: {error.strerror}") from error
        OwnWal(directory / "pgdata").prepare(self.run_as)
        unique = f"{self.branch}-{name}"
        return Endpoint(name, f"dev-{unique}", f"ep-{unique}", directory, mode)

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Postgres runs as another user when we are root, and must pass through to its data directory.
            self.directory.chmod(0o755)
        except OSError as error:
            raise HostError(f"cannot use {self.directory}: {error.strerror}") from error

    def _write_wrapper(self) -> None:
        self.pgbin.parent.mkdir(exist_ok=True)
        self.pgbin.parent.chmod(0o755)
        script = resources.files("trio_compute.embedded").joinpath("wrapper.sh").read_text(encoding="utf-8")
        write_atomically(self.pgbin, script.replace("@REAL_BIN@", f"'{self.real_bin}'"), RunAs(), mode=0o755)
        self.pgbin.chmod(0o755)
        for tool in TOOLS:
            link, target = self.pgbin.with_name(tool), self.real_bin / tool
            # Another branch's compute may be running it: what is right is left alone.
            if not (link.is_symlink() and link.readlink() == target):
                link.unlink(missing_ok=True)
                link.symlink_to(target)

    def seed(self) -> None:
        """Make the first snapshot with initdb, if there is none; blocking, one to two seconds."""
        if self.snapshots.newest() is not None:
            return
        template = self.directory / "template"
        shutil.rmtree(template, ignore_errors=True)
        template.mkdir(mode=0o700)
        self.run_as.own(template)
        command = [str(self.real_bin / "initdb"), "-D", str(template), "-U", SUPERUSER, "-N", "-A", "trust"]
        result = subprocess.run(
            [*command, "-E", "UTF8", "--locale=C.UTF-8"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **self.run_as.process_options(),
        )
        if result.returncode != 0:
            raise HostError(f"initdb failed: {result.stderr.strip()}")
        self.timeline.pgdatas = [template]
        self.timeline.recover()
        shutil.rmtree(template)

    def recover(self) -> Lsn | None:
        """Make a snapshot of what was left since the newest one, by a clean stop or by a crash; blocking.

        Returns its LSN, or None when there is nothing new. Streams of WAL must have ended.
        """
        self.timeline.pgdatas = self.data_directories()
        lsn = self.timeline.recover()
        if lsn is not None:
            # Computes ask for what the safekeepers know; it must not be less than what there is.
            self.safekeepers.sync(f"{self.identity.tenant_id}/{self.timeline_id}", [str(lsn)])
        return lsn

    def data_directories(self) -> list[Path]:
        """Return where computes of this branch have or had their data, the primary's first."""
        return [path for path in self._data_directories(self.branch) if path == self.pgdata or path.exists()]

    def _data_directories(self, branch: str) -> list[Path]:
        """Return where computes of a branch may have their data, the primary's first."""
        computes = self.directory / "computes" / branch
        first = self.directory if branch == MAIN else computes / "primary"
        return [path / "pgdata" for path in dict.fromkeys([first, *sorted(computes.glob("*"))])]

    def make_branch(self, name: str, at: Lsn | None = None) -> Lsn:
        """Make a branch of this one from its last state, or from an earlier one; return the LSN it begins at; blocking.

        This branch stays as it is, and may be running. Raises HostError for a name that is bad or taken, StorageError
        for an LSN that is not kept.
        """
        self.identity.require_free(name)
        timeline = self._add_timeline(secrets.token_hex(16), name)
        try:
            lsn = self.timeline.copy_state(timeline, at)
            branch = Branch(name, timeline.timeline_id, self.branch, str(lsn if at is None else at))
            self.identity = add_branch(self.directory, branch)
        except BaseException:
            shutil.rmtree(timeline.directory, ignore_errors=True)
            raise
        self.safekeepers.sync(f"{self.identity.tenant_id}/{timeline.timeline_id}", [str(lsn)])
        return lsn

    def storage_token(self, tenant_id: str | None = None) -> str:
        """Return a token for pageserver and safekeepers, of this tenant unless told otherwise."""
        return self.issuer.sign({"scope": "tenant", "tenant_id": tenant_id or self.identity.tenant_id})

    def object_token(self, endpoint: Endpoint) -> str:
        """Return a token for the endpoint storage, to read objects of this branch and to write those of an endpoint."""
        whose = {"tenant_id": self.identity.tenant_id, "timeline_id": self.timeline_id}
        expiry = int(time.time()) + TOKEN_SECONDS
        return self.issuer.sign({**whose, "endpoint_id": endpoint.endpoint_id, "exp": expiry})

    def api_token(self, endpoint: Endpoint | None = None) -> str:
        """Return a token for the external API of a compute, the primary's unless told otherwise."""
        return self.issuer.sign({"compute_id": (endpoint or self.primary).compute_id})

    def config(
        self,
        addresses: Addresses,
        postgresql_conf: dict[str, str],
        *,
        endpoint: Endpoint | None = None,
        durable: bool = False,
        primary_port: int | None = None,
    ) -> dict[str, Any]:
        """Return config.json for a compute, the primary unless told otherwise.

        `durable` makes commits wait for the safekeepers, so `open_receiver` must run beside it. A replica streams from
        `primary_port`.
        """
        endpoint = endpoint or self.primary
        conninfo = None
        if primary_port is not None and endpoint.mode == "Replica":
            conninfo = primary_conninfo(primary_port, SUPERUSER, endpoint.endpoint_id)
        spec = spec_of(
            endpoint,
            tenant_id=self.identity.tenant_id,
            timeline_id=self.timeline_id,
            addresses=addresses,
            token=self.storage_token(),
            object_token=self.object_token(endpoint),
            settings={**postgresql_conf, **mode_settings(endpoint.mode, self.timeline.wal.directory, conninfo)},
            durable=durable,
        )
        return {"spec": spec, "compute_ctl_config": {"jwks": {"keys": [self.issuer.jwk()]}, "tls": None}}

    def write_config(self, config: dict[str, Any], endpoint: Endpoint | None = None) -> None:
        """Write config.json of a compute, the primary's unless told otherwise."""
        path = self.config_path if endpoint is None else endpoint.config_path
        write_atomically(path, msgspec.json.format(msgspec.json.encode(config)).decode(), RunAs())

    def open_receiver(
        self, *ports: int, say: Callable[[str], object] = lambda _text: None
    ) -> AbstractAsyncContextManager[Receiver]:
        """Let the safekeepers receive the WAL of this branch from the primary that will be at one of the ports."""
        return open_receiver(self.timeline, SUPERUSER, *ports, say=say)


def base_settings(port: int) -> dict[str, str]:
    """Return the lines of postgresql.conf that an embedded compute starts from."""
    return {
        "port": str(port),
        "listen_addresses": "'127.0.0.1'",
        "unix_socket_directories": "''",
        "shared_buffers": "32MB",
        "max_connections": "100",
        "fsync": "off",
        "wal_level": "logical",
        "max_wal_senders": "10",
        "wal_sender_timeout": "5s",
        "max_replication_slots": "10",
        "hot_standby": "on",
        "restart_after_crash": "off",
        "log_line_prefix": "'%m [%p] '",
    }


def default_data_directory() -> Path:
    """Return where a world lives unless told otherwise: per user, and passable for Postgres' user when we are root."""
    if os.geteuid() == 0:
        return Path("/var/tmp/trio-compute-dev")  # noqa: S108  (made 0755 by us, holds no secrets readable by others)
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "trio-compute-dev"
