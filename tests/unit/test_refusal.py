"""Why a session was refused, read from the bare protocol however the network cuts it (contract 05 K-10, K-11)."""

from __future__ import annotations

import struct
from functools import partial

import pytest
import trio

from trio_compute.db.refusal import refusal
from trio_compute.db.target import Target

OK = b"R" + struct.pack("!ii", 8, 0)
WANTS_PASSWORD = b"R" + struct.pack("!ii", 8, 10)
READY = b"Z" + struct.pack("!i", 5) + b"I"


def error(state: str) -> bytes:
    body = b"SFATAL\0C" + state.encode() + b"\0MCe n'est pas possible\0\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body


async def answers_with(data: bytes, step: int, stream: trio.SocketStream) -> None:
    await stream.receive_some(4096)
    for start in range(0, len(data), step):
        await stream.send_all(data[start : start + step])
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("step", [1, 9, 4096])
@pytest.mark.parametrize(
    ("data", "state"),
    [
        (error("53300"), "53300"),
        (OK + error("3D000"), "3D000"),
        (OK + READY, "00000"),
        (WANTS_PASSWORD, "28P01"),
        (error("57P03")[:7], None),
        (b"", None),
    ],
)
async def test_the_state_is_found_in_any_language_and_any_portions(data: bytes, state: str | None, step: int) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(partial(trio.serve_listeners, partial(answers_with, data, step), listeners))
        assert await refusal(Target("127.0.0.1", port), timeout_seconds=5) == state
        nursery.cancel_scope.cancel()


async def test_nobody_listening_is_no_state() -> None:
    assert await refusal(Target("127.0.0.1", 1), timeout_seconds=5) is None


async def test_a_server_that_never_answers_is_no_state(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]

        async def silent(_stream: trio.SocketStream) -> None:
            await trio.sleep_forever()

        nursery.start_soon(partial(trio.serve_listeners, silent, listeners))
        assert await refusal(Target("127.0.0.1", port), timeout_seconds=5) is None
        nursery.cancel_scope.cancel()
