"""What would change in postgresql.conf, without secrets (contract 04 F-26)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.plan.conf_diff import HIDDEN, changed_settings, diff_postgresql_conf, shown_value
from trio_compute.telemetry.redaction import redact


def diff(old: str, new: str) -> str:
    return diff_postgresql_conf(old, new, hide=redact)


def test_a_change_is_shown_as_a_unified_diff() -> None:
    """F-26."""
    text = diff("a = 1\nb = 2\n", "a = 1\nb = 3\n")
    assert text == (
        "--- postgresql.conf (present)\n+++ postgresql.conf (new)\n@@ -1,3 +1,3 @@\n a = 1\n-b = 2\n+b = 3\n \n"
    )
    assert diff("a = 1\n", "a = 1\n") == ""


@pytest.mark.parametrize(
    "line",
    [
        "neon.pageserver_connstring='postgresql://user:s3cret@ps:6400'",
        "neon.pageserver_connstring='postgresql://user:pa@s3cret@ps:6400,postgresql://u:s3cret/x@ps2'",
        "primary_conninfo = 'host=h password=s3cret user=u'",
        "primary_conninfo = 'host=h password=''s3cret and s3cret'' user=u'",
        "primary_conninfo 'password=\\'s3cret s3cret\\''",
        "neon.endpoint_storage_token = 's3cret'",
        "x.PassWord = 's3cret'",
        "ssl_passphrase_command = 'echo s3cret'",
        "x.y = 'Bearer s3cret'",
        "# postgresql://user:s3cret@ps:6400",
        "# x.password = s3cret",
        "# the token: s3cret",
        "archive_command = 'AWS_SECRET_ACCESS_KEY=s3cret aws s3 cp'",
        "archive_command = 'TOKEN=\"s3cret s3cret\" cp'",
        "broken.password = 's3cret",
        "broken = 'password=s3cret",
    ],
)
def test_secrets_do_not_appear(line: str) -> None:
    """F-26, F-23."""
    text = diff(f"{line}\nport = 1\n", f"port = 1\n{line.replace('s3cret', 's3cret2')}\n")
    assert "s3cret" not in text
    assert text.count(HIDDEN) >= 2
    assert " port = 1\n" in text


def test_what_was_learned_is_hidden_too() -> None:
    redact.learn(["learned-token"])
    assert "learned-token" not in diff("", "x.y = 'a learned-token b'")
    assert shown_value("x.y", "a learned-token b", hide=redact) == f"a {HIDDEN} b"


def test_changed_settings_are_those_whose_last_value_differs() -> None:
    """F-26: order, quotes, case and comments do not matter."""
    old = "port = 1\nwork_mem = '4MB'\ngone = x\nfsync = off\n"
    new = "fsync = on\nPORT = '2'\n# work_mem = 1\nwork_mem = 4MB\nfsync = off\nadded.x = ''\n"
    assert changed_settings(old, new) == {"added.x": (None, ""), "gone": ("x", None), "port": ("1", "2")}
    assert changed_settings(old, old) == {}


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_two_texts_can_be_compared(old: str, new: str) -> None:
    assert (diff(old, new) == "") is (old == new)
    changes, back = changed_settings(old, new), changed_settings(new, old)
    assert {name: (after, before) for name, (before, after) in changes.items()} == back
