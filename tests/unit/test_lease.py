"""The decisions about an LSN lease: delays, verdicts, targets and what makes another lease needed (contract 07 §8)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.builders import TENANT, TIMELINE, parsed_spec
from trio_compute.errors import SpecError
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
