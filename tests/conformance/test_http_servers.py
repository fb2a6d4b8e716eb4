"""Where the servers listen: contract 03 §1, A-05, A-06, D-10."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.component.http.raw import open_sockets
from tests.component.http.world import open_world
from tests.fakes import specs
from trio_compute.errors import HostError
from trio_compute.http.sockets import BoundSockets, bind_sockets


@contextmanager
def bound(**changes: object) -> Iterator[BoundSockets]:
    sockets = bind_sockets(specs.settings(**{"external_http_port": 0, "internal_http_port": 0, **changes}))
    try:
        yield sockets
    finally:
        sockets.close()


def own_address() -> str:
    """Return an address of this machine that is not loopback, or skip."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError as error:
            pytest.skip(f"this machine has loopback only: {error}")
        return str(sock.getsockname()[0])


def connects(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        return sock.connect_ex((address, port)) == 0


class TestBind:
    @pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
    def test_the_external_server_is_dual_stack(self, address: str) -> None:
        """§1: `[::]` with IPV6_V6ONLY=0."""
        with bound() as sockets:
            assert connects(address, sockets.external_port)

    def test_the_external_server_is_reachable_from_outside(self) -> None:
        """§1."""
        with bound() as sockets:
            assert connects(own_address(), sockets.external_port)

    def test_the_internal_server_is_reachable_from_this_machine_only(self) -> None:
        """§1, A-05: loopback `127.0.0.1` and `::1`, one port, nothing else."""
        with bound() as sockets:
            assert {sock.getsockname()[0] for sock in sockets.internal} == {"127.0.0.1", "::1"}
            assert {sock.getsockname()[1] for sock in sockets.internal} == {sockets.internal_port}
            assert not connects(own_address(), sockets.internal_port)

    def test_a_switch_may_widen_the_internal_server(self) -> None:
        """§1."""
        address = own_address()
        with bound(internal_http_bind=(address,)) as sockets:
            assert connects(address, sockets.internal_port)
            assert not connects("127.0.0.1", sockets.internal_port)

    def test_an_address_that_the_machine_does_not_have_is_done_without(self) -> None:
        """§1: `::1` may be missing; that must not keep the compute from starting."""
        with bound(internal_http_bind=("127.0.0.1", "2001:db8::1")) as sockets:
            assert [sock.getsockname()[0] for sock in sockets.internal] == ["127.0.0.1"]
        with pytest.raises(HostError, match="2001:db8::1"), bound(internal_http_bind=("2001:db8::1",)):
            pass

    def test_a_listening_socket_does_not_leak_into_children(self) -> None:
        with bound() as sockets:
            for sock in (*sockets.external, *sockets.internal):
                assert not sock.get_inheritable()


class TestTakenPort:
    """D-10, A-06: bind before going on; a failure ends the process with 1."""

    @pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
    @pytest.mark.parametrize("name", ["external_http_port", "internal_http_port"])
    def test_it_is_a_host_error_that_names_the_port_and_leaves_nothing(self, name: str, address: str) -> None:
        before = open_sockets()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, 0), family=family) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(HostError, match=rf"\b{port}\b.*{os.strerror(errno.EADDRINUSE)}"), bound(**{name: port}):
                pass
        assert open_sockets() == before

    def test_the_process_exits_with_1_and_says_why(self) -> None:
        with socket.create_server(("0.0.0.0", 0)) as taken:
            port = taken.getsockname()[1]
            command = [sys.executable, "-m", "trio_compute", "run", "-D", "/nonexistent/pgdata", "-i", "x"]
            command += ["-C", "postgresql://a@127.0.0.1/postgres", "--config", "/nonexistent/config.json"]
            command += ["--external-http-port", str(port), "--internal-http-port", "0"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert str(port) in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_port_just_left_can_be_had_again(self) -> None:
        """A restart must not wait for the connections of the process before."""
        with bound() as sockets:
            port = sockets.external_port
            with socket.create_connection(("127.0.0.1", port)) as client, sockets.external[0].accept()[0] as accepted:
                accepted.close()
                client.recv(1)
        with bound(external_http_port=port) as again:
            assert again.external_port == port


class TestTwoServers:
    async def test_the_internal_server_needs_no_token(self) -> None:
        """§1: Auth none; the other routes of §6 come later."""
        async with open_world() as world, world.client(None, internal=True) as client:
            response = await client.get("/spans")
            assert (response.status_code, response.json()) == (200, [])

    @pytest.mark.parametrize("path", ["/status", "/configure", "/terminate", "/metrics.json"])
    async def test_external_routes_are_unknown_to_the_internal_server(self, path: str) -> None:
        """§5, §6: what needs a token outside must not be had inside without one."""
        async with open_world() as world, world.client(internal=True) as client:
            for method in ("GET", "POST"):
                assert (await client.request(method, path)).status_code == 404

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
    async def test_callers_use_the_name_and_the_literals(self, host: str) -> None:
        """§1: callers use the name `localhost` and the literal `127.0.0.1`."""
        async with open_world() as world, httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{host}:{world.internal_port}/spans")).status_code == 200
            assert (await client.get(f"http://{host}:{world.port}/status")).status_code == 400
