"""Passwords of the superuser, and passwords in plain text (contract 11 C-03, C-04)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from psycopg import pq

from tests.unit.builders import cluster, document, parsed_spec
from trio_compute.commands.inspection import inspect_configuration
from trio_compute.plan.catalog.operations import Operation
from trio_compute.plan.catalog.passwords import MOST_ITERATIONS, matches, verifier
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.snapshot import RoleFacts, Snapshot, fresh_snapshot
from trio_compute.plan.catalog.wanted import wanted_of

PLAIN = "a plain 's3cret'"
MD5 = "0f" * 16
SALT = b"sixteen bytes it"


def planned(state: Snapshot, *roles: dict[str, Any]) -> tuple[list[Operation], Snapshot]:
    """Return what is to be done for roles, and what will be."""
    wanted = wanted_of(parsed_spec(cluster=cluster(roles=list(roles))), privileged_role="neon_superuser")
    plan, after = plan_catalog(wanted, state)
    phases = [phase for _, phase in plan.located() if phase.name == "CreateAndAlterRoles"]
    return [operation for phase in phases for operation in phase.operations], after


def settled() -> Snapshot:
    return planned(fresh_snapshot("cloud_admin", major=17))[1]


def of_libpq(plain: str) -> str:
    connection = pq.PGconn.connect_start(b"host=/nowhere")
    return connection.encrypt_password(plain.encode(), b"u", b"scram-sha-256").decode()


# The superuser.


def test_a_listed_superuser_gets_its_password_and_nothing_else() -> None:
    """C-03: its attributes stay, whatever the options say; afterwards there is nothing to do."""
    options = [{"name": name, "value": None, "vartype": "bool"} for name in ("NOLOGIN", "NOCREATEDB")]
    listed = {"name": "cloud_admin", "encrypted_password": MD5, "options": options}
    operations, after = planned(settled(), listed)
    assert [step.statement for step in operations] == [f"""ALTER ROLE "cloud_admin" PASSWORD 'md5{MD5}'"""]
    assert MD5 not in operations[0].shown
    assert after.roles["cloud_admin"] == structs.replace(settled().roles["cloud_admin"], password=f"md5{MD5}")
    assert planned(after, listed)[0] == []


def test_a_listed_superuser_without_password_has_none() -> None:
    """C-03: as every listed role; one that is not listed stays as it is."""
    state = settled()
    state.roles["cloud_admin"] = RoleFacts(f"md5{MD5}", is_superuser=True)
    assert planned(state)[0] == []
    operations, _ = planned(state, {"name": "cloud_admin", "encrypted_password": None})
    assert [step.statement for step in operations] == ['ALTER ROLE "cloud_admin" PASSWORD NULL']


def test_listing_the_superuser_as_neon_does_causes_no_warning() -> None:
    """C-03: compose file and tests of Neon do so in every spec."""
    listed = {"name": "cloud_admin", "encrypted_password": "b093c0d3b281ba6da1eacc608620abd8", "options": None}
    assert parsed_spec(cluster=cluster(roles=[listed])).warnings == ()


# Plain text.


def test_a_plain_password_becomes_a_verifier_once() -> None:
    """C-04: planning again, over what was planned, finds nothing, although each verifier has a salt of its own."""
    listed = {"name": "r", "encrypted_password": PLAIN}
    (created,), after = planned(settled(), listed)
    assert created.what == "create role r"
    stored = after.roles["r"].password
    assert stored is not None
    assert matches(stored, PLAIN)
    assert f"'{stored}'" in created.statement
    assert planned(after, listed)[0] == []
    (other,), _ = planned(settled(), listed)
    assert other.statement != created.statement


@pytest.mark.parametrize("stored", [None, f"md5{MD5}", verifier("another", SALT), "SCRAM-SHA-256$nonsense"])
def test_a_plain_password_replaces_another_one(stored: str | None) -> None:
    """C-04: also for the superuser."""
    for name in ("r", "cloud_admin"):
        state = settled()
        state.roles[name] = RoleFacts(stored)
        (operation,), after = planned(state, {"name": name, "encrypted_password": PLAIN})
        assert operation.statement.startswith(f'ALTER ROLE "{name}" ')
        assert matches(str(after.roles[name].password), PLAIN)


def test_a_plain_password_is_in_no_text() -> None:
    """C-04: neither in statements, nor in what is told of them, nor in a warning."""
    listed = {"name": "r", "encrypted_password": PLAIN}
    (operation,), after = planned(settled(), listed)
    report = inspect_configuration(json.dumps(document(cluster=cluster(roles=[listed]))).encode())
    warnings = parsed_spec(cluster=cluster(roles=[listed])).warnings
    assert len(warnings) == len(report.warnings) == 1
    assert report.errors == []
    told = [operation.statement, operation.what, operation.why, *warnings, str(report.lines(report.warnings))]
    assert "s3cret" not in "".join(told)
    assert str(after.roles["r"].password) not in operation.shown


def test_an_empty_password_is_none() -> None:
    """C-04."""
    listed = {"name": "r", "encrypted_password": ""}
    (created,), after = planned(settled(), listed)
    assert created.statement.endswith("LOGIN PASSWORD NULL")
    assert after.roles["r"].password is None
    assert planned(after, listed)[0] == []
    assert parsed_spec(cluster=cluster(roles=[listed])).warnings == ()


# The verifier.


def test_the_verifier_is_that_of_the_standard() -> None:
    """C-04: RFC 7677 §3, whose example has this salt and 4096 iterations; its server signature follows from the key."""
    made = verifier("pencil", b"[m\x99h\x9d\x125\x8e\xec\xa0K\x14\x126\xfa\x81")
    assert made == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12)
    | st.text(st.sampled_from("aZ1 \u00ad\u00a0\u2168\u05d0\u0627é\u0301ﬁ\u200b\u3000\ud7a3🐘"), min_size=1, max_size=6)
)
def test_a_password_is_prepared_as_libpq_prepares_it(plain: str) -> None:
    """C-04: SASLprep, or the bytes as they are where it prohibits something."""
    assert matches(of_libpq(plain), plain)
    assert not matches(of_libpq(plain), plain + "x")


@pytest.mark.parametrize(
    "stored",
    ["", "md5" + MD5, "SCRAM-SHA-256$4096:!!$a:b", "SCRAM-SHA-256$0:c2FsdA==$a:b", "SCRAM-SHA-256$4096:c2FsdA$a:b"],
)
def test_what_is_no_verifier_matches_nothing(stored: str) -> None:
    """C-04."""
    assert not matches(stored, PLAIN)


def test_a_verifier_that_takes_for_ever_to_check_counts_as_another_one() -> None:
    """C-04: a role may have given itself one; a start must not wait for it."""
    assert not matches(verifier(PLAIN, SALT, 1).replace("$1:", f"${MOST_ITERATIONS + 1}:"), PLAIN)
    assert not matches(verifier(PLAIN, SALT, 1).replace("$1:", "$999999999:"), PLAIN)
    assert matches(verifier(PLAIN, SALT, 1), PLAIN)
