"""Small files written whole, and lines appended once (contract 04 F-01, F-23, §7)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_compute.errors import HostError
from trio_compute.host.files import append_line_once, write_atomically
from trio_compute.host.run_as import RunAs

ME = RunAs()


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.conf"


@pytest.fixture(params=[0o022, 0o000, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


KILLED_BEFORE_THE_RENAME = """
import os, pathlib, signal, sys
from trio_compute.host import files, run_as
pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(pathlib.Path(sys.argv[1]), "new", run_as.RunAs())
"""


def test_a_writer_that_is_killed_before_the_rename_leaves_the_old_file(file: Path) -> None:
    """F-01, contract 04 §16."""
    file.write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(file)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    write_atomically(file, "newer", ME)
    assert file.read_text() == "newer"


@pytest.mark.usefixtures("umask")
def test_a_file_is_written_whole_and_for_its_owner_only(file: Path) -> None:
    """F-23."""
    write_atomically(file, "täxt\n", ME)
    assert file.read_bytes() == "täxt\n".encode()
    assert file.stat().st_mode & 0o7777 == 0o600
    assert names_in(file.parent) == [file.name]


def test_an_existing_file_is_replaced_and_narrowed(file: Path) -> None:
    """F-01: who has the old file open keeps reading the old text."""
    file.write_text("old text that is longer")
    file.chmod(0o666)
    with file.open() as reader:
        write_atomically(file, "new", ME)
        assert reader.read() == "old text that is longer"
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o7777 == 0o600


def test_another_mode_can_be_asked_for(file: Path) -> None:
    write_atomically(file, "x", ME, mode=0o640)
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_left_over_temporary_file_does_not_widen_the_mode(file: Path) -> None:
    left = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    left.write_text("left over from a crash, and longer than the new text")
    left.chmod(0o666)
    write_atomically(file, "x", ME)
    assert file.read_text() == "x"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_planted_link_is_not_followed(file: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    file.with_name(f".{file.name}.{os.getpid()}.tmp").symlink_to(victim)
    with pytest.raises(HostError):
        write_atomically(file, "x", ME)
    assert victim.read_text() == "precious"


def test_a_link_in_place_of_the_file_is_replaced_and_not_followed(file: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    file.symlink_to(victim)
    write_atomically(file, "x", ME)
    assert victim.read_text() == "precious"
    assert not file.is_symlink()


def test_a_failure_names_the_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=str(tmp_path / "missing" / "file")):
        write_atomically(tmp_path / "missing" / "file", "x", ME)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "content").touch()
    with pytest.raises(HostError, match="directory"):
        write_atomically(tmp_path / "directory", "x", ME)
    assert names_in(tmp_path) == ["directory"]


def test_text_that_cannot_be_encoded_leaves_the_old_file(file: Path) -> None:
    file.write_text("old")
    with pytest.raises((HostError, UnicodeEncodeError)):
        write_atomically(file, "\ud800", ME)
    assert file.read_text() == "old"
    assert names_in(file.parent) == [file.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_is_given_to_the_user_of_postgres(file: Path) -> None:
    write_atomically(file, "x", RunAs(1234, 2345, "/home"))
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 2345)


@pytest.mark.parametrize(
    ("before", "line", "after"),
    [
        (b"line1\nline2\nline3", "line4", b"line1\nline2\nline3\nline4"),
        (None, "line4", b"line4"),
        (b"", "line4", b"line4"),
        (b"line1\n", "line2", b"line1\n\nline2"),
        (b"\n", "line2", b"\n\nline2"),
        (b"line1", "line", b"line1\nline"),
        (b" line1", "line1", b" line1\nline1"),
        (b"line1\r\nline2\r\n", "line3", b"line1\r\nline2\r\n\nline3"),
        (b"caf\xe9", "line2", b"caf\xe9\nline2"),
        ("a\u2028b\x0bc\x85d".encode(), "c", "a\u2028b\x0bc\x85d\nc".encode()),
    ],
)
def test_a_line_that_is_absent_is_appended(file: Path, before: bytes | None, line: str, after: bytes) -> None:
    if before is not None:
        file.write_bytes(before)
    assert append_line_once(file, line, ME) is True
    assert file.read_bytes() == after
    assert append_line_once(file, line, ME) is False
    assert file.read_bytes() == after


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"line1\nline2.1\t line2.2\nline3", "line2.1\t line2.2"),
        (b"line1\r\nline2\r\n", "line1"),
        (b"line1", "line1"),
        (b"a\xe9\nline1", "line1"),
    ],
)
def test_a_line_that_is_present_changes_nothing(file: Path, text: bytes, line: str) -> None:
    file.write_bytes(text)
    before = file.stat()
    assert append_line_once(file, line, ME) is False
    assert file.read_bytes() == text
    assert file.stat().st_ino == before.st_ino


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=str(tmp_path)):
        append_line_once(tmp_path, "line", ME)
