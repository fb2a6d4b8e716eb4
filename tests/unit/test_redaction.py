"""No secret is ever printed (contract 01 B-12, 02 §6, 03 A-07)."""

from __future__ import annotations

import base64
import json
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from tests.unit.builders import cluster, parsed_spec, setting
from trio_compute.telemetry import redaction
from trio_compute.telemetry.logging import format_line
from trio_compute.telemetry.redaction import REDACTED, Redactor, learn_spec, redact

SECRET = "s3cr3tvalue"
JWT = ".".join(
    base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in ('{"alg":"EdDSA"}', '{"a":1}', SECRET)
)
SCRAM = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVkczNjcjN0:c2VydmVyczNjcjN0"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: bearer  {SECRET}",
        f'{{"authorization": "Bearer {SECRET}"}}',
        f"Bearer {JWT}",
        f"token {JWT} was refused",
        f"postgresql://user:{SECRET}@host:5432/db",
        f"cannot connect to postgres://:{SECRET}@host",
        f"https://a:{SECRET}@h/x and https://b:{SECRET}@h/y",
        f"host=h user=u password={SECRET} dbname=d",
        f"password = '{SECRET}'",
        f"password='it\\'s {SECRET} with blanks'",
        f"PASSWORD={SECRET}",
        f"CREATE ROLE a LOGIN PASSWORD '{SECRET}'",
        f"ALTER ROLE a ENCRYPTED PASSWORD '{SECRET}''{SECRET}' NOINHERIT",
        f"alter role a password E'back\\\\slash {SECRET}'",
        f"PGPASSWORD={SECRET} psql",
        f"PGBOUNCER_PASSWORD={SECRET}",
        f"NEON_AUTH_TOKEN={SECRET}",
        f'{{"storage_auth_token": "{SECRET}"}}',
        f'{{"storage_auth_token":"{SECRET}","mode":"Primary"}}',
        f'{{"endpoint_storage_token": "a\\"b{SECRET}"}}',
        f'{{"name": "r", "encrypted_password": "{SECRET}"}}',
        f'"password": "{SECRET}"',
    ],
)
def test_what_looks_like_a_secret_is_removed_even_if_nobody_knows_it(text: str) -> None:
    result = Redactor()(text)
    assert SECRET not in result
    assert JWT not in result
    assert REDACTED in result


def test_a_scram_verifier_is_removed() -> None:
    result = Redactor()(f"stored {SCRAM} there")
    assert "c3RvcmVkczNjcjN0" not in result
    assert result.endswith(" there")


def test_the_statement_of_a_role_with_a_backslash_in_its_password_is_redacted() -> None:
    literal = sql.Literal(f"md5\\{SECRET}'").as_string(None)
    assert SECRET not in Redactor()(f"ALTER ROLE a LOGIN PASSWORD {literal}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "status changed source=init target=running",
        "cannot connect to postgresql://no_user@ps-1.local:6400/db?x=y",
        "http://127.0.0.1:3080/status answered 200",
        "GET /configure took 5 ms",
        'password authentication failed for user "cloud_admin"',
        "role passwords differ",
        "2026-01-15 12:00:00.000 UTC [1] LOG:  database system is ready to accept connections",
        "delta operation rename_db requires new_name",
        "a@b.c and d:e@f",
        "0/16ABCDE",
        "c843bad4370fbb618bae6ba8a9eeb18a",
        "pgbouncer.ini: default_pool_size=30",
        "storage_auth_token is missing",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert Redactor()(text) == text


def test_the_rest_of_a_text_stays_readable() -> None:
    text = Redactor()(f"connect postgresql://user:{SECRET}@host:5432/db failed: timeout")
    assert text == f"connect postgresql://user:{REDACTED}@host:5432/db failed: timeout"


def test_what_was_learned_is_removed_wherever_it_stands() -> None:
    redactor = Redactor()
    redactor.learn([SECRET, None, ""])
    assert redactor(f"x{SECRET}y {SECRET}") == f"x{REDACTED}y {REDACTED}"


def test_very_short_values_are_not_learned_since_they_would_black_out_ordinary_words() -> None:
    redactor = Redactor()
    redactor.learn(["a", "ab", "abc"])
    assert redactor("a abc of abstractions") == "a abc of abstractions"


@pytest.mark.parametrize("order", [0, 1])
def test_a_secret_that_begins_another_one_does_not_leave_its_tail(order: int) -> None:
    redactor = Redactor()
    secrets = ["hunter", "hunter2-and-more"]
    redactor.learn(secrets if order == 0 else secrets[::-1])
    assert redactor("= hunter2-and-more =") == f"= {REDACTED} ="


@given(st.text(max_size=60))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    redactor = Redactor()
    redactor.learn([SECRET])
    once = redactor(f"{text} Bearer {SECRET} a://b:{SECRET}@c {text}")
    assert redactor(once) == once
    assert SECRET not in once


UNITS = [
    *("a", "a:", "a-", "a.", "a+a", "://", "a://b:", "eyJ", "eyJ-", "eyJa.", "eyJa.eyJ-", "\\", "'", '"', " "),
    *("password ", "password='", 'password":', "password = ", "password" + " " * 50),
    *("bearer ", "bearer\t\t", "SCRAM-SHA-256$"),
]


@pytest.mark.parametrize("unit", UNITS)
def test_a_long_text_of_any_shape_takes_no_more_than_linear_time(unit: str) -> None:
    """04 F-16: clients decide what Postgres logs, and a record may have a mebibyte."""
    began = process_time()
    Redactor()(unit * (100_000 // len(unit)))
    assert process_time() - began < 0.5


SECRETS = {
    "storage_auth_token": "storage-s3cret-1",
    "endpoint_storage_token": "endpoint-s3cret-2",
    "setting": "setting-s3cret-3",
    "scram": "SCRAM-SHA-256$4096:c2FsdHM=$c3Mz" + "A" * 39 + "=:czNj" + "B" * 39 + "=",
    "md5": "0f343b0931126a20f133d67c2b018a3b",
    "url": "url-s3cret-5",
}


def test_nothing_of_a_spec_that_is_secret_survives_a_scan_of_everything_about_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B-12: print all there is in every form that a log, an error or an answer may have, and search it."""
    fresh = Redactor()
    monkeypatch.setattr(redaction, "redact", fresh)
    roles = [
        {"name": "scram", "encrypted_password": SECRETS["scram"]},
        {"name": "md5", "encrypted_password": SECRETS["md5"]},
        {"name": "without", "encrypted_password": None},
    ]
    parsed = parsed_spec(
        storage_auth_token=SECRETS["storage_auth_token"],
        pageserver_connstring=f"postgresql://user:{SECRETS['url']}@ps:6400",
        cluster=cluster(setting("neon.endpoint_storage_token", SECRETS["setting"]), roles=roles),
    )
    learn_spec(parsed)
    fresh.learn([SECRETS["endpoint_storage_token"]])
    everything = [
        repr(parsed),
        str(parsed.spec),
        json.dumps({"roles": roles, **SECRETS}),
        f"CREATE ROLE md5 LOGIN PASSWORD 'md5{SECRETS['md5']}'",
        *SECRETS.values(),
    ]
    for text in everything:
        shown = fresh(text)
        for name, secret in SECRETS.items():
            if name != "url" or "://" in text:
                assert secret not in shown, name


def test_learning_a_spec_reaches_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    learn_spec(parsed_spec(storage_auth_token="token-of-the-log", endpoint_storage_token="token-of-the-store"))
    line = format_line("info", "event token-of-the-log", {"value": "token-of-the-store"}).decode()
    assert "token-of" not in line
    assert redact("token-of-the-store") == REDACTED
