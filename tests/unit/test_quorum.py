"""What safekeepers' answers prove, and when to try again (contract 07 §4.8, §6, §7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.model.ids import Lsn
from trio_compute.plan.quorum import Ballot, TimelineStatus
from trio_compute.plan.schedules import (
    CONTROL_PLANE_ATTEMPTS,
    CONTROL_PLANE_PAUSE_SECONDS,
    basebackup_delays,
    sync_safekeepers_delays,
)

A, B = Lsn(0x16ABCDE), Lsn(0x16ABCDF)
IN_SYNC, AHEAD, SPLIT = TimelineStatus(A, A), TimelineStatus(B, B), TimelineStatus(B, A)
UNKNOWN = None
FAIL = "failure"
Vote = TimelineStatus | str | None


def ballot(members: int, *votes: Vote) -> Ballot:
    result = Ballot(members)
    for vote in votes:
        if isinstance(vote, str):
            result.failure()
        else:
            result.answer(vote)
    return result


@pytest.mark.parametrize(("members", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_it_is_decided_at_a_quorum_of_answers_or_of_failures(members: int, quorum: int) -> None:
    """Rule 2."""
    for vote in (IN_SYNC, UNKNOWN, FAIL):
        assert not ballot(members, *[vote] * (quorum - 1)).decided
        assert ballot(members, *[vote] * quorum).decided


TABLE: list[tuple[int, tuple[Vote, ...], Lsn | None]] = [
    (3, (IN_SYNC, IN_SYNC), A),
    (3, (IN_SYNC, FAIL, IN_SYNC), A),
    (3, (FAIL, IN_SYNC), None),  # rule 3: not proven
    (3, (IN_SYNC,), None),
    (3, (FAIL, FAIL), None),
    (3, (FAIL, FAIL, IN_SYNC), None),
    (3, (), None),
    (3, (IN_SYNC, AHEAD), None),  # rule 4: positions differ
    (3, (IN_SYNC, UNKNOWN), None),  # rule 4: one had no row
    (3, (UNKNOWN, UNKNOWN), None),
    (3, (SPLIT, SPLIT), None),  # rule 4: flush and commit differ
    (3, (IN_SYNC, SPLIT), None),
    (1, (IN_SYNC,), A),
    (1, (UNKNOWN,), None),
    (2, (IN_SYNC, IN_SYNC), A),
    (2, (IN_SYNC, FAIL), None),
    (4, (IN_SYNC, IN_SYNC), None),
    (4, (IN_SYNC, FAIL, IN_SYNC, IN_SYNC), A),
    (4, (IN_SYNC, FAIL, IN_SYNC, FAIL), None),  # neither side has three
    (5, (IN_SYNC, IN_SYNC, IN_SYNC), A),
    (5, (IN_SYNC, IN_SYNC, AHEAD), None),
    (3, (TimelineStatus(Lsn(0), Lsn(0)),) * 2, Lsn(0)),
]


@pytest.mark.parametrize(("members", "votes", "lsn"), TABLE)
def test_what_the_votes_prove(members: int, votes: tuple[Vote, ...], lsn: Lsn | None) -> None:
    assert ballot(members, *votes).synced_at() == lsn


def test_a_slower_member_does_not_change_what_was_decided() -> None:
    """S-20: found and equal on exactly a quorum counts, whatever the slower members say."""
    for late in (AHEAD, UNKNOWN, SPLIT, FAIL):
        assert ballot(3, IN_SYNC, IN_SYNC, late).synced_at() == A
    assert ballot(3, FAIL, FAIL, IN_SYNC, IN_SYNC, IN_SYNC).synced_at() is None


def test_a_split_vote_of_an_even_number_is_never_decided_but_proves_nothing() -> None:
    """Two answers and two failures of four: everybody was heard and no rule of 07 §6 stops the wait."""
    votes = ballot(4, IN_SYNC, IN_SYNC, FAIL, FAIL)
    assert not votes.decided
    assert votes.synced_at() is None


@given(st.integers(1, 7), st.lists(st.sampled_from([IN_SYNC, AHEAD, SPLIT, UNKNOWN, FAIL]), max_size=7))
def test_a_proof_always_rests_on_a_quorum_that_agrees(members: int, votes: list[Vote]) -> None:
    lsn = ballot(members, *votes[:members]).synced_at()
    if lsn is not None:
        agreeing = [v for v in votes[:members] if isinstance(v, TimelineStatus) and v.flush_lsn == v.commit_lsn == lsn]
        assert len(agreeing) >= members // 2 + 1


def test_the_pauses_between_basebackups() -> None:
    delays = [0.5, 0.75, 1.125, 1.687, 2.531, 3.796, 5.695, 8.542, 12.814, 19.221]
    assert list(basebackup_delays()) == delays
    assert sum(delays) == pytest.approx(56.7, abs=0.05)
    assert basebackup_delays(0) == ()
    assert basebackup_delays(3) == (0.5, 0.75, 1.125)


def test_the_pauses_between_safekeeper_syncs() -> None:
    assert sync_safekeepers_delays() == (0.0, 1.1, 1.21, 1.331, 1.4641)
    assert sum(sync_safekeepers_delays()) == pytest.approx(5.1, abs=0.01)


def test_the_control_plane_is_asked_three_times() -> None:
    assert (CONTROL_PLANE_ATTEMPTS, CONTROL_PLANE_PAUSE_SECONDS) == (3, 0.1)


def test_a_very_large_number_of_retries_is_possible() -> None:
    """NEON_COMPUTE_TESTING_BASEBACKUP_RETRIES is a u16."""
    assert len(basebackup_delays(65535)) == 65535
