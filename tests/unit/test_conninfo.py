"""Connection strings mean to us what they mean to libpq (contract 11 C-02)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from unittest import mock

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from tests.unit.builders import cluster, document, parsed_spec, setting
from trio_compute.commands.inspection import inspect_configuration
from trio_compute.conninfo import OF_RUST, PARAMETERS, is_url, passwords, read_conninfo
from trio_compute.errors import SpecError
from trio_compute.model.parsed import shard_zero_url
from trio_compute.plan.postgres_conf import ConfContext, render_postgresql_conf

SAMPLES = """\
host=h port=6400|host = h|host= |host='a b'|host=a\\ b|host='a|host|=x|host='a'port=1|host=a\\|host='it\\'s' port=''
host=h\tport=1\n| |host=h host=i|requiressl=1|requiressl=0|HOST=h|host=ps-1 port=6400 user=no_user keepalives_idle=3
postgres://h|postgresql://u:p@h:1,g:2/d?keepalives_idle=3|postgresql://?host=h|postgres://u:%zz@h|postgres://h/?ssl=true
postgres://h?requiressl=1|postgres://h?a|postgres://[::1|postgres://[]|postgres://[::1]x|postgres://[::1]:5/d|postgres://
postgres://u@h?host=|postgresql://h:/x|postgres://h/d?x+y=1|postgres://h?application_name=a+b|postgres://:p@h|postgres://@
postgres://u@h:1@x|postgresql:///a@b|postgres://h?user=a&user=b|postgres://h:1?port=2|postgres://h/x/y|postgres://u:p%00@h
postgres://u:1?s=1@h/d|postgres://u:12/s@h/d|postgres://u:12#s|postgres:// h /d|postgres://a b|postgres://%2Ftmp/d
postgres://h?|postgres://h?&|postgres://h?host=a&|postgres://h?host=a=b|postgres://h?host=%3d%3D|postgres://h/%20
postgres://h?target_session_attrs=read-write&hostaddr=127.0.0.1&load_balance_hosts=random|postgres://,|postgres://a,:1
postgres://h?%68ost=x|postgres://u:p@[fe80::1%25eth0]/d|http://u:p@h|postgres:/h|a://b|postgres://u:%e9@h"""

_PIECES = st.sampled_from(
    (
        *(
            "=",
            "'",
            "\\",
            " ",
            "\t",
            ":",
            "/",
            "?",
            "@",
            ",",
            "&",
            "%",
            "#",
            "[",
            "]",
            "+",
            "host",
            "port",
            "user",
            "h",
        ),
        *("password", "dbname", "sslmode", "colour", "requiressl", "ssl=true", "ps-1", "6400", "::1", "%20", "%2F"),
        *("%00", "%c3%a9", "é", "host=h", "port=1 ", "?host=", "&port=1"),
    )
)
_TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"))


def libpqs(text: str) -> dict[str, str] | None:
    try:
        with mock.patch.dict(os.environ, {}, clear=True):
            return {name: str(value) for name, value in conninfo_to_dict(text).items()}
    except (psycopg.Error, UnicodeError):
        return None


def ours(text: str) -> dict[str, str] | None:
    try:
        return read_conninfo(text)
    except SpecError:
        return None


@pytest.mark.parametrize("text", [text for line in SAMPLES.split("\n") for text in line.split("|")])
def test_a_connection_string_is_read_as_libpq_reads_it(text: str) -> None:
    """C-02."""
    assert ours(text) == libpqs(text)


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(["", "host=h ", "postgres://", "postgresql://u:p@h"]), st.lists(_PIECES, max_size=12))
@example("postgres://", ["h", "?host=", " ", "h", " "])
def test_whatever_is_written_is_read_as_libpq_reads_it(begin: str, pieces: list[str]) -> None:
    """C-02: what it refuses as well."""
    text = begin + "".join(pieces)
    assert ours(text) == libpqs(text)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(PARAMETERS)), st.text(st.characters(exclude_characters="\0", codec="utf-8")))
)
def test_what_is_quoted_as_libpq_wants_it_comes_back(values: dict[str, str]) -> None:
    """C-02: any value in keyword form."""
    quoted = {name: value.replace("\\", "\\\\").replace("'", "\\'") for name, value in values.items()}
    assert read_conninfo(" ".join(f"{name} = '{value}'" for name, value in quoted.items())) == values


def test_every_parameter_of_libpq_is_known() -> None:
    """C-02: those of the libpq that we ship with, and of no other name."""
    of_libpq = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    assert of_libpq - PARAMETERS == set()
    assert OF_RUST & of_libpq == set()


@pytest.mark.parametrize(
    "text",
    [
        "postgres://u:s3cret@h:1?s3cret=1", "host=h password=my s3cret", "host=h password=my s3cret=1",
        "host=h password='s3cret", "postgres://u@h?password=a&s3cret=1", "postgres://u:s3cret%zz@h",
        "postgres://u:s3 cret@h", "postgres://u:p?a/s3cret@h?b=1", "s3cret", "http://u:s3cret@h", "a://u:s3cret@h?x=1",
    ],
)  # fmt: skip
def test_a_refusal_quotes_nothing_that_may_be_a_password(text: str) -> None:
    """C-02: neither its value nor a part of it that looks like a name."""
    with pytest.raises(SpecError) as caught:
        read_conninfo(text)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hots=ps port=6400", "unknown parameter: hots (did you mean host?)"),
        ("postgres://h?colour=red", "unknown parameter: colour"),
        ("host=h prot=1 password=x", "unknown parameter (did you mean port?)"),
        ("ps:6400", "neither a postgres:// URL nor keyword=value"),
        ("host=a b", "a keyword has no value"),
    ],
)
def test_a_typo_is_named(text: str, said: str) -> None:
    """C-02."""
    with pytest.raises(SpecError) as caught:
        read_conninfo(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("postgres://u:s%33cret@h", {"s%33cret", "s3cret"}),
        ("host=h password='s 3'", {"s 3"}),
        ("postgres://u@h?password=s3", {"s3"}),
        ("postgres://u:a?b@h", {"a?b"}),
        ("postgres://u:s3@[x", {"s3"}),
        ("postgres://h", set()),
        ("", set()),
    ],
)
def test_passwords_are_found_in_every_form(text: str, found: set[str]) -> None:
    """C-02, B-12: they must be known before anything is printed."""
    assert set(passwords(text)) == found


def test_reading_needs_no_libpq() -> None:
    """C-02: psycopg costs a cold start too much."""
    code = (
        "import sys; from trio_compute.db.target import Target; from trio_compute.model import parsed; "
        "Target.parse('host=h port=1'); sys.exit('psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert is_url("postgres://h")
    assert not is_url("host=h")


@pytest.mark.parametrize(
    "url",
    ["hots=ps", "host=ps port=x", "host=ps port=0", "ps:6400", "postgresql://ps:99999", "postgresql://ps?colour=red",
     "postgresql://ps?sslmode=require", "host=ps,ps2 port=6400", "postgresql://ps?keepalives_retries=3", "port=6400"],
)  # fmt: skip
def test_a_pageserver_that_can_never_be_reached_is_refused_with_the_spec(url: str) -> None:
    """C-02: at once, and in `validate`, however it is given; Postgres reads the same text with libpq."""
    in_info = {"shard_count": 0, "shards": {"0000": {"pageservers": [{"libpq_url": url}]}}}
    shapes: list[tuple[dict[str, object], str]] = [
        ({"pageserver_connstring": url}, "$.pageserver_connstring"),
        (
            {"pageserver_connstring": None, "cluster": cluster(setting("neon.pageserver_connstring", url))},
            "$.cluster.settings[0].value",
        ),
        (
            {"pageserver_connection_info": in_info, "pageserver_connstring": None},
            "$.pageserver_connection_info.shards.0000.pageservers[0].libpq_url",
        ),
    ]
    for changes, path in shapes[2:] if "," in url else shapes:
        with pytest.raises(SpecError) as caught:
            parsed_spec(**changes)
        assert str(caught.value).startswith(f"{path}: pageserver connection string: ")
        report = inspect_configuration(json.dumps(document(**changes)).encode())
        assert [("pageserver connection string" in finding.rule) for finding in report.errors] == [True]


@pytest.mark.parametrize(
    "url",
    ["host=pageserver port=6400", "postgresql://no_user@ps:6400?keepalives_idle=60&target_session_attrs=read-write",
     "host=name hostaddr=127.0.0.1 user=no_user", "postgresql://no_user:@ps:6400/?tcp_user_timeout=1000"],
)  # fmt: skip
def test_a_pageserver_may_be_given_in_any_form_of_libpq(url: str) -> None:
    """C-02: and Postgres gets it as it is written."""
    parsed = parsed_spec(pageserver_connstring=url)
    assert shard_zero_url(parsed.pageservers) == url
    text = render_postgresql_conf(parsed, ConfContext(privileged_role_name="neon_superuser", internal_http_port=1))
    assert f"neon.pageserver_connstring='{url}'\n" in text


def test_a_malformed_grpc_url_is_refused_with_the_spec() -> None:
    """C-02: as one for libpq is."""
    shards = {"0000": {"pageservers": [{"grpc_url": "grpc://nowhere"}]}}
    info = {"shard_count": 0, "shards": shards, "prefer_protocol": "grpc"}
    with pytest.raises(SpecError, match="grpc_url 'nowhere' is not host:port"):
        parsed_spec(pageserver_connection_info=info)
