"""pg_hba.conf and pg_ident.conf: an included file comes first (contract 04 §7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.plan.access_files import include_line, with_line_first

LINE = "include_if_exists /etc/hba"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"{LINE}\n"),
        ("local all all trust\n", f"{LINE}\nlocal all all trust\n"),
        ("# a\n\n  # b\nlocal\nhost", f"# a\n\n  # b\n{LINE}\nlocal\nhost"),
        ("# only a comment", f"# only a comment\n{LINE}\n"),
        ("# goes on \\\nlocal all\n# b\nhost\n", f"# goes on \\\nlocal all\n# b\n{LINE}\nhost\n"),
        ("# a\r\nlocal\r\n", f"# a\r\n{LINE}\nlocal\r\n"),
        ("# a\x0blocal\nhost\n", f"# a\x0blocal\n{LINE}\nhost\n"),
        (f"local\n{LINE}\n", None),
        (f"{LINE}", None),
        (f"{LINE}\r\nlocal", None),
        (f"{LINE}x\n", f"{LINE}\n{LINE}x\n"),
    ],
)
def test_the_line_comes_before_the_first_record_unless_it_is_there(before: str, after: str | None) -> None:
    """F-17: the first match wins, and a second pass changes nothing."""
    assert with_line_first(before, LINE) == after
    if after is not None:
        assert with_line_first(after, LINE) is None


@given(st.text(alphabet='a# \n\r\\"x', max_size=30))
def test_nothing_else_of_the_file_changes(text: str) -> None:
    after = with_line_first(text, LINE)
    assert after is not None
    head, _, tail = after.partition(f"{LINE}\n")
    assert text in {head + tail, head.removesuffix("\n") + tail}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/etc/hba.conf", "include_if_exists /etc/hba.conf"),
        ("/a b", 'include_if_exists "/a b"'),
        ('/a"b', 'include_if_exists "/a""b"'),
        ("/a,b", 'include_if_exists "/a,b"'),
        ("/a#b", 'include_if_exists "/a#b"'),
        ("@x", 'include_if_exists "@x"'),
    ],
)
def test_an_odd_path_is_quoted(path: str, line: str) -> None:
    """F-04."""
    assert include_line(path) == line
