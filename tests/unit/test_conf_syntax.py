"""The language of postgresql.conf; the vectors were checked against the lexer of Postgres 17 (postgres -C)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.plan.conf_syntax import effective_settings, is_bare, join_list, quote, read_line, split_list

TEXT = st.text(max_size=40).filter(lambda text: "\0" not in text and text.encode(errors="replace").decode() == text)


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("port=5432", ("port", "5432")),
        ("port = 5432", ("port", "5432")),
        ("port 5432", ("port", "5432")),
        ("\tPort\t=\t5432\r", ("port", "5432")),
        ("port = 5432 # mine", ("port", "5432")),
        ("port = 5432#mine", ("port", "5432")),
        ("x.y 'q''r\\n\\101'", ("x.y", "q'r\nA")),
        ("x.y'z'", ("x.y", "z")),
        ("x.y+1", ("x.y", "+1")),
        ("x.y = a.b-c", ("x.y", "a.b-c")),
        ("X.Y='a\\qz' # com", ("x.y", "aqz")),
        ("x.y = 'ends with a backslash \\\\'", ("x.y", "ends with a backslash \\")),
        ("x.y = 'a # b'", ("x.y", "a # b")),
        ("x.y = '\\303\\244'", ("x.y", "ä")),
        ("x.y = ''", ("x.y", "")),
        ("x.y = 12abc", ("x.y", "12abc")),
        ("x.y = 0x1F", ("x.y", "0x1F")),
        ("x.y = a_b-c/d.e:f", ("x.y", "a_b-c/d.e:f")),
        ("x.y = -1", ("x.y", "-1")),
        ("x.y = .5", ("x.y", ".5")),
        ("x.y = 1.0e5", ("x.y", "1.0e5")),
        ("TimeZone = 'UTC'", ("timezone", "UTC")),
    ],
)
def test_a_line_is_read_as_postgres_reads_it(line: str, setting: tuple[str, str]) -> None:
    assert read_line(line) == setting


@pytest.mark.parametrize(
    "line",
    [
        *("", "  ", "# port = 1", "port", "port =", "= 1", "port = 1 2", "a.b.c = 1", "a$b = 1", "work_mem = 1.5GB"),
        *("a = 1e5", "a = 'x'y", "a = 'open", "a = 'x\\'", "a = b c", "a-1", "1 = 2", "a == 1", "a = %m", "a = b.c"),
        *("include 'other.conf'", "INCLUDE_DIR = 'x'", "include_if_exists = 'y'"),
    ],
)
def test_what_is_no_setting_is_left_out(line: str) -> None:
    assert read_line(line) is None


def test_the_last_setting_of_a_name_counts_whatever_its_case() -> None:
    """F-08."""
    text = "work_mem = 1\nWORK_MEM = '2'\n# work_mem = 3\nwork_mem = = 4\n"
    assert effective_settings(text) == {"work_mem": "2"}


@given(TEXT)
def test_what_is_quoted_reads_back_from_one_line(value: str) -> None:
    line = f"a.b = {quote(value)}"
    assert "\n" not in line
    assert read_line(line) == ("a.b", value)
    assert read_line(f"{line} # comment") == ("a.b", value)


@given(st.text(alphabet="azAZ019.eExXGB+-_ '\"\n#%", max_size=8))
def test_a_value_that_stands_without_quotes_reads_back(value: str) -> None:
    """F-04."""
    if is_bare(value):
        assert read_line(f"a = {value}") == ("a", value)


@given(st.text(max_size=60))
def test_reading_never_fails(line: str) -> None:
    read_line(line)


@given(st.lists(st.text(min_size=1, max_size=10), max_size=5))
def test_a_list_reads_back(members: list[str]) -> None:
    """F-05."""
    assert split_list(join_list(members)) == members


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", []),
        (" ", []),
        ("neon", ["neon"]),
        (" neon , pg_stat_statements ", ["neon", "pg_stat_statements"]),
        (",neon,,x,", ["neon", "x"]),
        ('"a,b", c', ["a,b", "c"]),
        ('"say ""hi"""', ['say "hi"']),
        ('"open', ['"open']),
        ("$libdir/x", ["$libdir/x"]),
    ],
)
def test_a_list_is_split_as_postgres_splits_it(text: str, members: list[str]) -> None:
    assert split_list(text) == members
