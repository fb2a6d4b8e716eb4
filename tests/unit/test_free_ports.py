"""Ports for servers that cannot choose one."""

from __future__ import annotations

import socket

import pytest

from trio_compute.embedded import free_ports
from trio_compute.embedded.free_ports import free_port
from trio_compute.errors import HostError


def test_the_kernel_never_gives_a_port_of_ours_to_somebody_who_lets_it_choose() -> None:
    lowest = free_ports._ephemeral_start()
    assert all(free_ports.LOWEST_PORT <= free_port() < lowest for _ in range(50))


def test_no_port_is_given_twice_or_while_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        monkeypatch.setattr(free_ports, "_numbers", iter(range(taken.getsockname()[1] - free_ports.LOWEST_PORT, 10**6)))
        found = [free_port() for _ in range(200)]
        assert len(set(found)) == 200
        assert taken.getsockname()[1] not in found


def test_none_left_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        monkeypatch.setattr(free_ports, "_numbers", iter([port - free_ports.LOWEST_PORT] * 30_000))
        with pytest.raises(HostError, match="no TCP port between"):
            free_port()
