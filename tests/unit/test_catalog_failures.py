"""What is told of objects that are at fault (issue: errors that help; contract 05 §2.3, §6, K-07, K-08, K-33)."""

from __future__ import annotations

import msgspec
import pytest

from trio_compute.errors import PostgresError, cause_chain
from trio_compute.http.problems import Problem
from trio_compute.plan.catalog.failures import SHOWN_FAILURES, CatalogFailed, Failure


def failure(number: int = 1, **changes: str | None) -> Failure:
    given: dict[str, str | None] = {
        "phase": "CreateAndAlterRoles",
        "database": "postgres",
        "object": f"role r{number}",
        "operation": f"create role r{number}",
        "sqlstate": "42710",
        "message": f'role "r{number}" already exists',
        "statement": f'CREATE ROLE "r{number}"',
    }
    return Failure(**{**given, **changes})  # type: ignore[arg-type]


def test_the_text_names_what_was_done_where_and_what_postgres_said() -> None:
    """K-07: phase, database, operation and SQLSTATE; no SQL, as the text goes to logs (K-33)."""
    assert str(failure()) == (
        'could not create role r1 [CreateAndAlterRoles, database postgres]: role "r1" already exists (SQLSTATE 42710)'
    )
    assert "CREATE ROLE" not in str(failure())


def test_a_detail_follows_and_a_missing_code_is_left_out() -> None:
    told = str(failure(sqlstate=None, message="server closed the connection", detail="it waited for a lock"))
    assert told.endswith("]: server closed the connection: it waited for a lock")


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_the_text_stays_short_and_says_how_many_more_there_are(extra: int) -> None:
    """K-08: every failed object is kept, the text shows the first ones."""
    failures = [failure(number) for number in range(SHOWN_FAILURES + extra)]
    error = CatalogFailed(failures)
    assert isinstance(error, PostgresError)
    assert error.failures == tuple(failures)
    text = str(error)
    assert text.count("could not create role") == SHOWN_FAILURES
    assert text.endswith(f"; and {extra} more") == (extra > 0)
    assert cause_chain(error) == text


def test_the_json_of_an_answer_has_one_object_for_each_failure_without_secrets() -> None:
    """K-33: whatever Postgres repeats of a secret is taken out."""
    failures = [failure(), failure(2, detail="password=hush-hush", statement="ALTER ROLE x PASSWORD 'hush-hush'")]
    body = Problem(500, "compute configuration failed: x", failures).log_and_encode()
    answer = msgspec.json.decode(body)
    assert [entry["object"] for entry in answer["failures"]] == ["role r1", "role r2"]
    assert answer["failures"][0] == {**msgspec.structs.asdict(failure()), "detail": None}
    assert b"hush-hush" not in body


def test_an_answer_without_objects_at_fault_has_no_such_field() -> None:
    assert "failures" not in msgspec.json.decode(Problem(500, "no").log_and_encode())
