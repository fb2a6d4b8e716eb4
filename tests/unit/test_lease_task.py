"""The task that keeps a lease, on an exact clock and with pageservers that answer as told (contract 07 §8)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.component.http.logs import LogLines
from tests.unit.builders import NOON, TENANT, TIMELINE, make_settings, parsed_spec
from tests.unit.test_lease import LSN, TOKEN, shards, static
from trio_compute.errors import SpecError, StorageError
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.plan.lease import LeaseTerms, lease_terms
from trio_compute.services.lsn_lease import LeaseState, LsnLease
from trio_compute.telemetry import logging as telemetry

Answer = float | None | Exception


class Pageservers:
    """Answer requests for leases as scripted, the last answer for ever; floats are seconds of validity."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[float, LeaseTerms]] = []
        self.takes_seconds = 0.0

    async def __call__(self, wanted: LeaseTerms) -> float | None:
        self.asked.append((trio.current_time(), wanted))
        await trio.sleep(self.takes_seconds)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else unix_time() + answer

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.asked]


def unix_time() -> float:
    return 1_800_000_000 + trio.current_time()


class World:
    """Hold a running compute, its pageservers and its lease."""

    def __init__(self, spec: Any, *answers: Answer) -> None:
        self.compute = Compute(make_settings())
        self.compute.apply(ev.SpecKnown(spec=spec, at=NOON))
        self.compute.apply(ev.Started())
        self.pageservers = Pageservers(*answers)
        self.lease = LsnLease(self.compute, self.pageservers, unix_time=unix_time)

    def change_to(self, spec: Any) -> None:
        self.compute.apply(ev.ApplyQueued())
        self.compute.apply(ev.ApplyBegan())
        self.compute.apply(ev.Applied(spec=spec))

    async def run(self, seconds: float, *, task: Callable[[], Awaitable[None]] | None = None) -> None:
        with trio.move_on_after(seconds):
            await (task or self.lease.keep)()


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> LogLines:
    lines = LogLines()
    monkeypatch.setattr(telemetry, "sink", lines)
    return lines


async def at(seconds: float, action: Callable[[], object]) -> None:
    await trio.sleep_until(seconds)
    action()


async def test_a_lease_is_renewed_at_half_time_for_ever(autojump_clock: MockClock) -> None:
    """S-02."""
    world = World(static(), 600.0)
    await world.run(1000)
    assert world.pageservers.times == [0, 300, 600, 900]
    assert world.lease.state is LeaseState.HELD
    assert world.lease.requests[LeaseState.HELD] == 4
    assert world.lease.expires_at == 1_800_000_000 + 1500


async def test_a_lease_that_is_over_when_it_comes_makes_no_busy_loop(autojump_clock: MockClock) -> None:
    """S-02: clocks that disagree."""
    world = World(static(), -3600.0)
    await world.run(3.5)
    assert world.pageservers.times == [0, 1, 2, 3]


async def test_success_is_logged_in_the_words_that_neons_tests_look_for(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    """Contract 07 §8."""
    await World(static(), 600.0).run(1)
    (line,) = log_lines.with_text("Request succeeded")
    assert " INFO lsn_lease_bg_task: Request succeeded, sleeping for 300 seconds" in line
    assert f"tenant_id={TENANT} timeline_id={TIMELINE} lsn={LSN}" in line


async def test_transient_errors_are_retried_for_ever_on_the_schedule(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    """Contract 07 §8: 0.5 s, half longer each time, a minute at most."""
    world = World(static(), StorageError("pageserver: shutdown"))
    await world.run(1000)
    times = world.pageservers.times
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == pytest.approx([min(60, 0.5 * 1.5**n) for n in range(len(pauses))])
    assert pauses[-1] == pytest.approx(60)
    assert world.lease.state is LeaseState.FAILED
    assert world.lease.error == "pageserver: shutdown"
    assert world.lease.requests[LeaseState.FAILED] == len(times) == world.lease.failures_in_a_row
    assert all(" WARNING " in line for line in log_lines.with_text("pageserver: shutdown"))


async def test_a_success_starts_the_schedule_of_retries_anew(autojump_clock: MockClock) -> None:
    failure = StorageError("no")
    world = World(static(), failure, failure, 10.0, failure, 600.0)
    await world.run(20)
    assert world.pageservers.times == [0, 0.5, 1.25, 6.25, 6.75]


async def test_failures_after_the_end_of_the_lease_are_errors(autojump_clock: MockClock, log_lines: LogLines) -> None:
    world = World(static(), 10.0, StorageError("gone"))
    await world.run(40)
    lines = log_lines.with_text("gone")
    assert " WARNING " in lines[0]
    assert " ERROR " in lines[-1]


async def test_a_defect_in_a_request_does_not_end_the_lease(autojump_clock: MockClock) -> None:
    """S-05: never a silent end."""
    world = World(static(), ZeroDivisionError("what"), 600.0)
    await world.run(1)
    assert world.pageservers.times == [0, 0.5]


async def test_a_refusal_is_an_error_in_the_log_and_tried_again_every_minute(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    """S-03, D-30."""
    world = World(static(), None, None, 600.0)
    await world.run(130)
    assert world.pageservers.times == [0, 60, 120]
    assert world.lease.requests[LeaseState.REFUSED] == 2
    assert len(log_lines.with_text(" ERROR lsn_lease_bg_task: lease refused")) == 2
    assert world.lease.state is LeaseState.HELD


CHANGES = {
    "pageservers": {"pageserver_connection_info": shards("0000", libpq_url="postgresql://no_user@new:6400")},
    "transport": {"pageserver_connection_info": shards("0000", protocol="grpc")},
    "token": {"storage_auth_token": "new token"},
    "lsn": {"mode": {"Static": "2/0"}},
    "tenant": {"tenant_id": "e" * 32},
    "timeline": {"timeline_id": "e" * 32},
}


@pytest.mark.parametrize("answer", [600.0, None, StorageError("no"), SpecError("no libpq_url")], ids=str)
@pytest.mark.parametrize("change", CHANGES)
async def test_every_sleep_ends_when_what_the_request_depends_on_changes(
    change: str, answer: Answer, autojump_clock: MockClock
) -> None:
    """S-03, S-04, S-05: renewal, retry, refusal and a misconfigured spec alike."""
    world = World(static(), answer)
    new = static(**CHANGES[change])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, 0.3, lambda: world.change_to(new))
        await world.run(0.4)
    assert world.pageservers.times == [0, 0.3]
    assert world.pageservers.asked[1][1] == lease_terms(new)


async def test_other_changes_of_the_spec_wake_nobody(autojump_clock: MockClock) -> None:
    world = World(static(), 600.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, 10, lambda: world.change_to(static(operation_uuid="x")))
        nursery.start_soon(at, 20, lambda: world.compute.apply(ev.Active(at=NOON)))
        await world.run(299)
    assert world.pageservers.times == [0]


async def test_a_spec_that_changes_and_changes_back_is_noticed(autojump_clock: MockClock) -> None:
    world = World(static(), 600.0)

    def there_and_back() -> None:
        world.change_to(static(mode={"Static": "9/9"}))
        world.change_to(static())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, 10, there_and_back)
        await world.run(20)
    assert world.pageservers.times == [0, 10]


async def test_a_request_to_a_pageserver_that_is_gone_does_not_hold_up_the_next(autojump_clock: MockClock) -> None:
    """S-04: a change interrupts the request itself, too."""
    world = World(static(), 600.0)
    world.pageservers.takes_seconds = 40
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, 1, lambda: world.change_to(static(**CHANGES["pageservers"])))
        await world.run(10)
    assert world.pageservers.times == [0, 1]


async def test_the_lease_ends_with_the_static_mode(autojump_clock: MockClock, log_lines: LogLines) -> None:
    """S-04."""
    world = World(static(), 600.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, 10, lambda: world.change_to(static(mode="Replica")))
        await world.lease.keep()
        assert trio.current_time() == 10
    assert world.lease.state is LeaseState.NOT_NEEDED
    assert world.lease.expires_at is None
    assert log_lines.with_text("not static any more")


async def test_the_served_lease_comes_and_goes_with_the_static_mode(autojump_clock: MockClock) -> None:
    world = World(parsed_spec(), 600.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, 10, lambda: world.change_to(static()))
        nursery.start_soon(at, 20, lambda: world.change_to(parsed_spec()))
        nursery.start_soon(at, 1000, lambda: world.change_to(static()))
        await world.run(1001, task=world.lease.serve)
    assert world.pageservers.times == [10, 1000]


async def test_a_spec_without_a_usable_url_is_reported_once_and_waits_for_another(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    """S-05: a configuration error, never a silent end."""
    world = World(static(), SpecError("no libpq_url for shard 0000"), 600.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, 5000, lambda: world.change_to(static(**CHANGES["pageservers"])))
        nursery.start_soon(at, 4999, lambda: states.append(world.lease.state))
        states: list[LeaseState] = []
        await world.run(5001)
    assert states == [LeaseState.MISCONFIGURED]
    assert world.pageservers.times == [0, 5000]
    assert world.lease.state is LeaseState.HELD
    assert len(log_lines.with_text(" ERROR ")) == 1


async def test_no_log_line_shows_the_token(autojump_clock: MockClock, log_lines: LogLines) -> None:
    from trio_compute.telemetry.redaction import learn_spec

    learn_spec(static())
    world = World(static(), StorageError(f"bad token {TOKEN}"), None, 600.0)
    await world.run(100)
    assert log_lines.with_text("bad token")
    assert not log_lines.with_text(TOKEN)
    assert TOKEN not in str(world.lease.error)


async def test_the_expiry_is_forgotten_for_another_lsn_and_kept_for_another_token(autojump_clock: MockClock) -> None:
    world = World(static(), 600.0, StorageError("no"))
    seen: list[float | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, 1, lambda: world.change_to(static(**CHANGES["token"])))
        nursery.start_soon(at, 1.1, lambda: seen.append(world.lease.expires_at))
        nursery.start_soon(at, 2, lambda: world.change_to(static(**CHANGES["lsn"])))
        nursery.start_soon(at, 2.1, lambda: seen.append(world.lease.expires_at))
        await world.run(3)
    assert seen == [1_800_000_600, None]
