"""POST /refresh_configuration on the internal server (contract 03 §6, 02 §8)."""

from __future__ import annotations

import pytest
import trio

from tests.component.http.world import open_world
from trio_compute.lifecycle.status import Status
from trio_compute.telemetry.metrics import PAGESTREAM_REQUEST_ERRORS, metrics

ACCEPTING = {
    Status.RUNNING: Status.REFRESH_CONFIGURATION_PENDING,
    Status.FAILED: Status.REFRESH_CONFIGURATION_PENDING,
    Status.REFRESH_CONFIGURATION_PENDING: Status.REFRESH_CONFIGURATION_PENDING,
    # D-50: remembered until the start is over.
    Status.INIT: Status.INIT,
}


@pytest.mark.parametrize("status", ACCEPTING)
async def test_it_is_accepted_at_once_without_a_token_and_wakes_the_configurator(status: Status) -> None:
    """§6: 200, empty body; T16–T18, T23."""
    async with open_world(status) as world, world.client(token=None, internal=True) as client:
        response = await client.post("/refresh_configuration")
        assert (response.status_code, response.content) == (200, b"")
        assert world.status is ACCEPTING[status]
        with trio.fail_after(5):
            assert await world.queue.next() is None


@pytest.mark.parametrize("status", [status for status in Status if status not in ACCEPTING])
async def test_any_other_status_is_500_with_its_kebab_name(status: Status) -> None:
    """A-14."""
    async with open_world(status) as world, world.client(token=None, internal=True) as client:
        response = await client.post("/refresh_configuration")
        text = f"Cannot refresh compute configuration in state {status.kebab}"
        assert (response.status_code, response.json()) == (500, {"error": text})
        assert world.status is status


async def test_every_call_is_counted_even_a_refused_one() -> None:
    """§7: `pg_cctl_pagestream_request_errors_total`."""
    before = metrics.value(PAGESTREAM_REQUEST_ERRORS)
    for status in (Status.RUNNING, Status.EMPTY):
        async with open_world(status) as world, world.client(token=None, internal=True) as client:
            await client.post("/refresh_configuration")
    assert metrics.value(PAGESTREAM_REQUEST_ERRORS) == before + 2


async def test_the_external_server_does_not_know_it() -> None:
    async with open_world() as world, world.client() as client:
        assert (await client.post("/refresh_configuration")).status_code == 404
