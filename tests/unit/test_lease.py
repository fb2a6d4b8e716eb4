"""The LSN lease: delays, verdicts and targets as pure functions, and the task that keeps it, on an exact clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.component.http.logs import LogLines
from tests.unit.builders import NOON, TENANT, TIMELINE, make_settings, parsed_spec
from trio_compute.errors import SpecError, StorageError
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.model.ids import Lsn, TenantId
from trio_compute.plan.lease import (
    LeaseTarget,
    LeaseTerms,
    earliest_expiry,
    lease_command,
    lease_targets,
    lease_terms,
    renewal_delay_seconds,
    retry_delay_seconds,
    tenant_shard_id,
)
from trio_compute.services.lsn_lease import LeaseState, LsnLease
from trio_compute.telemetry import logging as telemetry

TOKEN = "a-secret-token"
LSN = "1/ABCDEF"


def shards(*indexes: str, protocol: str = "libpq", **urls: str | None) -> dict[str, Any]:
    """Return connection info whose pageservers have both kinds of URL unless told otherwise."""
    both = {"libpq_url": "postgresql://no_user@ps:6400", "grpc_url": "grpc://ps:51051", **urls}
    return {
        "shard_count": bytes.fromhex(indexes[0])[1],
        "shards": {index: {"pageservers": [both]} for index in indexes},
        "prefer_protocol": protocol,
    }


def static(**changes: Any) -> Any:
    return parsed_spec(
        **{
            "mode": {"Static": LSN},
            "storage_auth_token": TOKEN,
            "pageserver_connection_info": shards("0000"),
            **changes,
        }
    )


def terms(**changes: Any) -> LeaseTerms:
    found = lease_terms(static(**changes))
    assert found is not None
    return found


# ---------------------------------------------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("left", "delay"), [(600, 300), (100, 50), (14, 7), (2.5, 1.25), (2, 1), (1, 1), (0, 1), (-5, 1)]
)
def test_a_lease_is_renewed_at_half_of_its_time_and_never_in_a_busy_loop(left: float, delay: float) -> None:
    """S-02: the required row of the table in contract 07 §8."""
    assert renewal_delay_seconds(1000 + left, 1000) == delay


def test_retries_grow_by_half_up_to_a_minute() -> None:
    """Contract 07 §8."""
    delays = [retry_delay_seconds(failures) for failures in range(1, 16)]
    assert delays[:4] == [0.5, 0.75, 1.125, 1.6875]
    assert delays == sorted(delays)
    assert delays[-3:] == [60.0, 60.0, 60.0]
    assert max(delay for delay in delays if delay < 60) == 0.5 * 1.5**11
    assert retry_delay_seconds(10**9) == 60.0


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [([5.0], 5.0), ([7.0, 5.0, 6.0], 5.0), ([5.0, None], None), ([None], None), ([None, None, 1.0], None), ([], None)],
)
def test_the_earliest_end_counts_and_one_refusal_refuses_all(
    answers: list[float | None], verdict: float | None
) -> None:
    assert earliest_expiry(answers) == verdict


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e12)), min_size=1))
def test_a_verdict_is_never_later_than_any_answer(answers: list[float | None]) -> None:
    verdict = earliest_expiry(answers)
    assert (verdict is None) == (None in answers)
    assert verdict is None or all(answer is not None and verdict <= answer for answer in answers)


def test_only_a_static_compute_needs_a_lease() -> None:
    assert lease_terms(None) is None
    assert lease_terms(parsed_spec()) is None
    assert lease_terms(parsed_spec(mode="Replica")) is None
    assert terms().lsn == Lsn.parse(LSN)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": {"Static": "1/ABCDF0"}},
        {"tenant_id": "f" * 32},
        {"timeline_id": "f" * 32},
        {"storage_auth_token": "another token"},
        {"storage_auth_token": None},
        {"pageserver_connection_info": shards("0000", protocol="grpc")},
        {"pageserver_connection_info": shards("0000", libpq_url="postgresql://no_user@another:6400")},
        {"pageserver_connection_info": shards("0002", "0102")},
    ],
)
def test_what_a_request_depends_on_makes_other_terms(changes: dict[str, Any]) -> None:
    """S-04."""
    assert terms(**changes) != terms()


def test_other_changes_of_the_spec_leave_the_terms_alone() -> None:
    assert terms(operation_uuid="1", skip_pg_catalog_updates=True) == terms()


def test_terms_do_not_print_the_token() -> None:
    assert TOKEN not in repr(terms())


def test_every_pageserver_of_every_shard_is_asked_in_order() -> None:
    both = [{"libpq_url": "postgresql://a"}, {"libpq_url": "postgresql://b"}]
    info = {"shard_count": 2, "shards": {"0102": {"pageservers": both}, "0002": {"pageservers": both[:1]}}}
    assert lease_targets(terms(pageserver_connection_info=info)) == (
        LeaseTarget("postgresql://a", "0002"),
        LeaseTarget("postgresql://a", "0102"),
        LeaseTarget("postgresql://b", "0102"),
    )


@pytest.mark.parametrize(("protocol", "text"), [("libpq", "no libpq_url for shard 0000"), ("grpc", "no grpc_url for")])
def test_a_pageserver_without_the_preferred_url_is_an_error_of_the_spec(protocol: str, text: str) -> None:
    """S-05: validation looks at the first pageserver only; a lease needs all."""
    url = {"libpq_url": "postgresql://a", "grpc_url": "grpc://a:1"}
    info = {
        "shard_count": 0,
        "shards": {"0000": {"pageservers": [url, {"id": 2}]}},
        "prefer_protocol": protocol,
    }
    with pytest.raises(SpecError, match=text):
        lease_targets(terms(pageserver_connection_info=info))


def test_no_shards_at_all_are_an_error_of_the_spec_and_no_refusal() -> None:
    """S-05."""
    wanted = terms()
    empty = LeaseTerms(
        tenant_id=wanted.tenant_id,
        timeline_id=wanted.timeline_id,
        lsn=wanted.lsn,
        pageservers=type(wanted.pageservers)(shard_count=0, shards={}),
        token=None,
    )
    with pytest.raises(SpecError, match="at least one pageserver"):
        lease_targets(empty)


def test_the_invalid_lsn_cannot_be_leased() -> None:
    with pytest.raises(SpecError, match="0/0"):
        lease_targets(terms(mode={"Static": "0/0"}))


@pytest.mark.parametrize(("shard", "name"), [("0000", TENANT), ("0001", f"{TENANT}-0001"), ("0b10", f"{TENANT}-0b10")])
def test_a_tenant_shard_is_named_with_its_index_unless_unsharded(shard: str, name: str) -> None:
    """Contract 07 §1: a count of 1 is not a count of 0."""
    assert tenant_shard_id(TenantId(TENANT), shard) == name
    assert lease_command(terms(), LeaseTarget("", shard)) == f"lease lsn {name} {TIMELINE} {LSN}"


# ----------------------------------------------------------------------------------------------------------- the task

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
