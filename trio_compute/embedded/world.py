"""An embedded world: the stand-ins for Neon's storage on loopback, with their state in one directory."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec import Struct

from trio_compute.embedded.http_services import control_plane, endpoint_storage
from trio_compute.embedded.pageserver import Pageserver
from trio_compute.embedded.safekeeper import SafekeeperGroup
from trio_compute.embedded.snapshots import Snapshots, capture_if_at_rest
from trio_compute.embedded.tokens import Issuer
from trio_compute.embedded.wire import Session, WireError, serve_session
from trio_compute.errors import HostError
from trio_compute.host.files import write_atomically
from trio_compute.host.run_as import RunAs
from trio_compute.http.exchange import App
from trio_compute.http.serve import serve_app
from trio_compute.model.ids import Lsn

SUPERUSER = "cloud_admin"
COMPUTE_ID = "dev-compute"
ENDPOINT_ID = "ep-dev"
TOOLS = ("pg_ctl", "initdb", "pg_config", "pg_isready", "pg_dump", "psql", "pg_controldata")


class Identity(Struct, frozen=True):
    """Hold what a world is called; written once."""

    tenant_id: str
    timeline_id: str
    postgres_major: int


class Addresses(Struct, frozen=True):
    """Say where the embedded services listen."""

    pageserver: str
    safekeepers: list[str]
    control_plane: str
    endpoint_storage: str


class World:
    """Own the directory of an embedded world; `run_as` is the user that Postgres runs as there."""

    def __init__(self, directory: Path, tree: Path, major: int, run_as: RunAs) -> None:
        self.directory = directory
        self.run_as = run_as
        self.real_bin = tree / "bin"
        self.pgdata = directory / "pgdata"
        self.pgbin = directory / "bin" / "postgres"
        self.config_path = directory / "config.json"
        self._make_directory()
        self.identity = self._load_identity(major)
        self.issuer = Issuer.load(directory / "issuer.key")
        self.safekeepers = SafekeeperGroup(directory / "safekeepers")
        self.snapshots = Snapshots(directory / "timelines" / self.identity.timeline_id)
        timelines = {(self.identity.tenant_id, self.identity.timeline_id): self.snapshots}
        self.pageserver = Pageserver(timelines)
        self.control_plane_token = secrets.token_urlsafe(16)
        self._write_wrapper()

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Postgres runs as another user when we are root, and must pass through to its data directory.
            self.directory.chmod(0o755)
        except OSError as error:
            raise HostError(f"cannot use {self.directory}: {error.strerror}") from error

    def _load_identity(self, major: int) -> Identity:
        path = self.directory / "world.json"
        if path.exists():
            identity = msgspec.json.decode(path.read_bytes(), type=Identity)
            if identity.postgres_major != major:
                raise HostError(f"{self.directory} was made for Postgres {identity.postgres_major}, not {major}")
            return identity
        identity = Identity(secrets.token_hex(16), secrets.token_hex(16), major)
        write_atomically(path, msgspec.json.encode(identity).decode(), RunAs(), mode=0o644)
        return identity

    def _write_wrapper(self) -> None:
        self.pgbin.parent.mkdir(exist_ok=True)
        self.pgbin.parent.chmod(0o755)
        script = resources.files("trio_compute.embedded").joinpath("wrapper.sh").read_text(encoding="utf-8")
        write_atomically(self.pgbin, script.replace("@REAL_BIN@", f"'{self.real_bin}'"), RunAs(), mode=0o755)
        self.pgbin.chmod(0o755)
        for tool in TOOLS:
            link = self.pgbin.with_name(tool)
            link.unlink(missing_ok=True)
            link.symlink_to(self.real_bin / tool)

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
        capture_if_at_rest(self.snapshots, self.real_bin, template)
        shutil.rmtree(template)

    def recover(self) -> Lsn | None:
        """Take in the data directory that a clean stop left, if it is newer than the last snapshot; blocking."""
        return capture_if_at_rest(self.snapshots, self.real_bin, self.pgdata)

    def storage_token(self) -> str:
        """Return a token for pageserver and safekeepers."""
        return self.issuer.sign({"scope": "tenant", "tenant_id": self.identity.tenant_id})

    def api_token(self) -> str:
        """Return a token for the external API of the compute."""
        return self.issuer.sign({"compute_id": COMPUTE_ID})

    def authenticate(self, _session: Session, password: str) -> None:
        """Accept storage tokens of this tenant; raise WireError otherwise."""
        try:
            claims = self.issuer.claims(password)
        except ValueError:
            raise WireError("JWT authentication error", fatal=True) from None
        if claims.get("tenant_id") != self.identity.tenant_id:
            raise WireError("JWT authentication error", fatal=True)

    def config(self, addresses: Addresses, postgresql_conf: dict[str, str]) -> dict[str, Any]:
        """Return config.json for a primary compute on this world."""
        spec = {
            "format_version": 1.0,
            "suspend_timeout_seconds": -1,
            "cluster": {
                "cluster_id": "dev",
                "name": "dev",
                "roles": [{"name": "test", "encrypted_password": None, "options": None}],
                "databases": [{"name": "neondb", "owner": "test", "options": None}],
                "postgresql_conf": "".join(f"{name}={value}\n" for name, value in postgresql_conf.items()),
                "settings": None,
            },
            "tenant_id": self.identity.tenant_id,
            "timeline_id": self.identity.timeline_id,
            "endpoint_id": ENDPOINT_ID,
            "pageserver_connection_info": {
                "shard_count": 0,
                "shards": {"0000": {"pageservers": [{"libpq_url": addresses.pageserver}]}},
            },
            "safekeeper_connstrings": addresses.safekeepers,
            "storage_auth_token": self.storage_token(),
            "endpoint_storage_addr": addresses.endpoint_storage,
            "mode": "Primary",
        }
        return {"spec": spec, "compute_ctl_config": {"jwks": {"keys": [self.issuer.jwk()]}, "tls": None}}

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json."""
        write_atomically(self.config_path, msgspec.json.format(msgspec.json.encode(config)).decode(), RunAs())


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
        "max_replication_slots": "10",
        "hot_standby": "on",
        "restart_after_crash": "off",
        "log_line_prefix": "'%m [%p] '",
    }


@asynccontextmanager
async def open_services(
    world: World, *, answer: Callable[[str], dict[str, Any] | None] = lambda _compute_id: None
) -> AsyncIterator[Addresses]:
    """Run the embedded services on free loopback ports for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        serve_wire = partial(_serve_wire, nursery, world)
        pageserver_port = await serve_wire(world.pageserver.handle)
        safekeeper_ports = [
            await serve_wire(partial(world.safekeepers.handle, member)) for member in world.safekeepers.members
        ]
        control_plane_port = await _serve_http(nursery, control_plane(answer, world.control_plane_token))
        storage_port = await _serve_http(nursery, endpoint_storage(world.directory / "objects", world.issuer))
        yield Addresses(
            pageserver=f"postgresql://no_user@127.0.0.1:{pageserver_port}",
            safekeepers=[f"127.0.0.1:{port}" for port in safekeeper_ports],
            control_plane=f"http://127.0.0.1:{control_plane_port}",
            endpoint_storage=f"127.0.0.1:{storage_port}",
        )
        nursery.cancel_scope.cancel()


async def _serve_wire(nursery: trio.Nursery, world: World, handle: Callable[[Session, str], Awaitable[None]]) -> int:
    async def session(stream: trio.SocketStream) -> None:
        if world.pageserver.faults.fail_connections > 0 and handle == world.pageserver.handle:
            world.pageserver.faults.fail_connections -= 1
            await trio.aclose_forcefully(stream)
            return
        await serve_session(stream, authenticate=world.authenticate, handle_query=handle)

    listeners = await nursery.start(partial(trio.serve_tcp, session, 0, host="127.0.0.1"))
    return int(listeners[0].socket.getsockname()[1])


async def _serve_http(nursery: trio.Nursery, app: App) -> int:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    sock.setblocking(False)
    await nursery.start(partial(serve_app, app, [sock], draining=trio.sleep_forever, drain_seconds=0.0))
    return int(sock.getsockname()[1])


def free_port() -> int:
    """Return a TCP port that was free a moment ago, for a server that cannot choose one itself, such as Postgres."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def default_data_directory() -> Path:
    """Return where a world lives unless told otherwise: per user, and passable for Postgres' user when we are root."""
    if os.geteuid() == 0:
        return Path("/var/tmp/trio-compute-dev")  # noqa: S108  (made 0755 by us, holds no secrets readable by others)
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "trio-compute-dev"
