"""The unpacker of basebackups: what it accepts, what it refuses, and that it never leaves the data directory."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_compute.errors import HostError, StorageError
from trio_compute.postgres import file_tree, unpack
from trio_compute.postgres.pgdata import empty
from trio_compute.postgres.tar_stream import RefusedEntryError, parse_pax, safe_path
from trio_compute.postgres.unpack import Summary, Unpacker, check_complete

END = bytes(1024)
USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
Content = dict[str, bytes | None]


def header(
    name: bytes,
    *,
    size: int | bytes = 0,
    kind: bytes = b"0",
    magic: bytes = GNU,
    prefix: bytes = b"",
    checksum: Callable[[bytes], int] = sum,
) -> bytes:
    """Return one header block; a `size` of bytes is written as it is."""
    fields = [
        name.ljust(100, b"\0"),
        b"0000777\0",
        b"0000000\0" * 2,
        size if isinstance(size, bytes) else b"%011o\0" % size,
        b"00000000000\0",
        b" " * 8,
        kind,
        bytes(100),
        magic,
    ]
    block = (b"".join(fields).ljust(345, b"\0") + prefix).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % checksum(block) + block[156:]


def entry(name: bytes, content: bytes = b"", *, kind: bytes = b"0", magic: bytes = GNU) -> bytes:
    """Return a header, its content and the padding."""
    return header(name, size=len(content), kind=kind, magic=magic) + content + bytes(-len(content) % 512)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """Return a pax header with the given records."""
    return entry(b"pax", b"".join(pax_record(key, value) for key, value in records), kind=kind)


def pax_record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


def made_by_tarfile(content: Content, tar_format: int) -> bytes:
    """Pack a tar of the named files and, where the content is None, directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.mode = 0o4777
            if data is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data or b""))
    return buffer.getvalue()


def slices(data: bytes, borders: Sequence[int]) -> Iterator[memoryview]:
    """Yield the data cut at the given places."""
    cuts = [0, *sorted(border % (len(data) + 1) for border in borders), len(data)]
    for start, end in pairwise(cuts):
        yield memoryview(data)[start:end]


def unpack_gzip(root: Path, data: bytes, *, step: int = 1 << 20, keep: frozenset[str] = frozenset()) -> Summary:
    with Unpacker(root, keep=keep) as unpacker:
        for start in range(0, len(data), step):
            unpacker.feed(data[start : start + step])
        return unpacker.finish()


def unpack_tar(root: Path, data: bytes, *, keep: frozenset[str] = frozenset()) -> Summary:
    return unpack_gzip(root, gzip.compress(data, 1), keep=keep)


def tree(root: Path) -> Content:
    """Read everything below a directory."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if not path.is_symlink()
    }


def refusal(root: Path, data: bytes) -> str:
    """Return the text of the StorageError that a tar leads to."""
    with pytest.raises(StorageError) as caught:
        unpack_tar(root, data)
    return str(caught.value)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def no_descriptor_leaks() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Make an empty data directory; at the end no descriptor may be left open."""
    directory = tmp_path / "pgdata"
    directory.mkdir(mode=0o700)
    with no_descriptor_leaks():
        yield directory


SMALL: Content = {
    "PG_VERSION": b"15\n",
    "base": None,
    "base/1": None,
    "base/1/1259": b"\x01relation" * 120,
    "empty": b"",
    "global/pg_control": bytes(range(256)) * 4,
}
SMALL_TREE: Content = {**SMALL, "global": None}
SMALL_TAR = made_by_tarfile(SMALL, tarfile.GNU_FORMAT)


class TestRoundTrip:
    names = st.lists(st.text("ab.é", min_size=1, max_size=70), min_size=1, max_size=4).map("/".join)
    formats = st.sampled_from([tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])

    @settings(deadline=None, max_examples=150)
    @given(
        content=st.dictionaries(names, st.one_of(st.none(), st.binary(max_size=2000)), max_size=6),
        tar_format=formats,
        borders=st.lists(st.integers(0, 1 << 20), max_size=12),
    )
    def test_whatever_tarfile_packs_comes_out_the_same_wherever_the_slices_end(
        self, content: Content, tar_format: int, borders: list[int]
    ) -> None:
        content = consistent(content, longest_name=90 if tar_format == tarfile.USTAR_FORMAT else 4096)
        data = gzip.compress(made_by_tarfile(content, tar_format), 1)
        with tempfile.TemporaryDirectory() as directory, no_descriptor_leaks():
            with Unpacker(Path(directory)) as unpacker:
                for piece in slices(data, borders):
                    unpacker.feed(piece)
                summary = unpacker.finish()
            unpacked = tree(Path(directory))
        assert {name: unpacked[name] for name in content} == content
        implied = {str(parent) for name in content for parent in Path(name).parents} - {"."}
        assert set(unpacked) == set(content) | implied
        assert summary.files == sum(data is not None for data in content.values())
        assert summary.directories == len(unpacked) - summary.files
        assert summary.bytes_in == len(data)

    @pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
    def test_long_names_survive_every_format(self, root: Path, tar_format: int) -> None:
        parts = ["d" * 90, "e" * 40, "f" * 90] if tar_format == tarfile.USTAR_FORMAT else ["d" * 200] * 9
        name = "/".join(parts)
        unpack_tar(root, made_by_tarfile({name: b"x" * 513}, tar_format))
        assert (root / name).read_bytes() == b"x" * 513

    def test_an_archive_of_the_tar_and_gzip_commands_comes_out_the_same(self, tmp_path: Path, root: Path) -> None:
        source = tmp_path / "source"
        for name, data in sorted(SMALL_TREE.items()):
            path = source / name
            if data is None:
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        packed = subprocess.run(f"tar -C {source} -cf - . | gzip -1", shell=True, check=True, capture_output=True)
        unpack_gzip(root, packed.stdout)
        assert tree(root) == SMALL_TREE

    def test_one_byte_at_a_time_is_enough(self, root: Path) -> None:
        data = gzip.compress(SMALL_TAR)
        assert unpack_gzip(root, data, step=1) == Summary(4, 3, len(data), len(SMALL_TAR))
        assert tree(root) == SMALL_TREE

    def test_dots_and_slashes_in_names_are_normalised(self, root: Path) -> None:
        unpack_tar(root, entry(b"./", kind=b"5") + entry(b"./a//b/./", kind=b"5") + entry(b"././a/c", b"x") + END)
        assert tree(root) == {"a": None, "a/b": None, "a/c": b"x"}

    def test_modes_are_private_whatever_the_archive_says(self, root: Path) -> None:
        unpack_tar(root, SMALL_TAR)
        modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in root.rglob("*")}
        assert modes == {(False, 0o600), (True, 0o700)}

    def test_more_directories_than_the_cache_holds_are_fine(self, root: Path) -> None:
        names = [b"/".join(b"%d" % (number % (7 + depth)) for depth in range(30)) for number in range(60)]
        before = open_descriptors()
        with Unpacker(root) as unpacker:
            unpacker.feed(gzip.compress(b"".join(entry(name + b"/f", name) for name in names) + END))
            assert open_descriptors() <= before + 1 + file_tree._OPEN_DIRECTORIES
            unpacker.finish()
        assert all((root / os.fsdecode(name) / "f").read_bytes() == name for name in names)

    def test_an_old_checksum_of_signed_bytes_is_accepted(self, root: Path) -> None:
        def signed(block: bytes) -> int:
            return sum(byte - 256 if byte > 127 else byte for byte in block)

        unpack_tar(root, header("é".encode(), checksum=signed) + END)
        assert tree(root) == {"é": b""}

    def test_a_size_in_base_256_is_understood(self, root: Path) -> None:
        block = header(b"a", size=b"\x80" + (600).to_bytes(11, "big"))
        unpack_tar(root, block + b"x" * 600 + bytes(424) + END)
        assert tree(root) == {"a": b"x" * 600}

    def test_a_pax_size_overrides_the_size_of_the_header(self, root: Path) -> None:
        data = pax((b"size", b"512")) + header(b"a", size=0) + entry(b"inner") + entry(b"b") + END
        unpack_tar(root, data)
        assert tree(root) == {"a": entry(b"inner"), "b": b""}

    def test_a_global_pax_header_with_a_comment_is_skipped(self, root: Path) -> None:
        unpack_tar(root, pax((b"comment", b"hello"), kind=b"g") + entry(b"a", b"x") + END)
        assert tree(root) == {"a": b"x"}

    def test_a_file_that_comes_twice_has_its_last_content(self, root: Path) -> None:
        unpack_tar(root, entry(b"a", b"long first") + entry(b"a", b"last") + END)
        assert tree(root) == {"a": b"last"}


class TestExistingFiles:
    def test_an_existing_file_is_replaced_and_made_private(self, root: Path) -> None:
        (root / "PG_VERSION").write_bytes(b"something much longer")
        (root / "PG_VERSION").chmod(0o644)
        (root / "postgresql.conf").write_bytes(b"port = 1")
        (root / "base").mkdir()
        unpack_tar(root, SMALL_TAR)
        assert tree(root) == {**SMALL_TREE, "postgresql.conf": b"port = 1"}
        assert stat.S_IMODE((root / "PG_VERSION").stat().st_mode) == 0o600

    def test_a_kept_file_stays_and_what_follows_is_unpacked(self, root: Path) -> None:
        (root / "base").mkdir()
        (root / "base/keep").write_bytes(b"mine")
        data = entry(b"base/keep", b"theirs" * 300) + entry(b"./new", b"kept only if it exists") + entry(b"z") + END
        summary = unpack_tar(root, data, keep=frozenset({"base/keep", "new"}))
        assert tree(root) == {"base": None, "base/keep": b"mine", "new": b"kept only if it exists", "z": b""}
        assert summary.files == 2

    def test_a_file_in_place_of_a_directory_is_refused(self, root: Path) -> None:
        (root / "base").mkdir()
        assert "not a regular file" in refusal(root, entry(b"base", b"x") + END)

    def test_a_file_in_place_of_the_root_is_refused(self, root: Path) -> None:
        assert "root directory" in refusal(root, entry(b"./", b"x") + END)

    @pytest.mark.parametrize("name", [b"a", b"a/b"])
    def test_a_directory_in_place_of_a_file_is_refused(self, root: Path, name: bytes) -> None:
        assert "'a' exists and is not a directory" in refusal(root, entry(b"a", b"x") + entry(name, kind=b"5") + END)

    @pytest.mark.parametrize(
        "data",
        [entry(b"way/a", b"x"), entry(b"way", kind=b"5"), entry(b"way/a/b/c", kind=b"5"), entry(b"way", b"x")],
        ids=["file below", "directory", "directory below", "file"],
    )
    def test_a_symbolic_link_in_the_way_is_never_followed(self, tmp_path: Path, root: Path, data: bytes) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (root / "way").symlink_to(outside)
        assert "'way" in refusal(root, data + END)
        assert tree(outside) == {}

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_symbolic_link_in_place_of_a_file_is_not_written_through(
        self, tmp_path: Path, root: Path, exists: bool
    ) -> None:
        outside = tmp_path / "outside"
        if exists:
            outside.write_bytes(b"precious")
        (root / "way").symlink_to(outside)
        assert "not a regular file" in refusal(root, entry(b"way", b"x") + END)
        assert not exists or outside.read_bytes() == b"precious"
        assert outside.exists() == exists

    def test_a_hard_link_to_a_file_outside_is_not_written_through(self, tmp_path: Path, root: Path) -> None:
        outside = tmp_path / "outside"
        outside.write_bytes(b"precious")
        (root / "way").hardlink_to(outside)
        assert "second name" in refusal(root, entry(b"way", b"x") + END)
        assert outside.read_bytes() == b"precious"

    def test_a_fifo_in_the_way_is_refused_without_waiting(self, root: Path) -> None:
        os.mkfifo(root / "way")
        assert "not a regular file" in refusal(root, entry(b"way", b"x") + END)


class TestBrokenArchives:
    """The rows of contract 07 §4.5 that Python's tarfile lets pass (S-08), and their neighbours."""

    def test_a_corrupt_header_in_the_middle_is_an_error_with_name_and_offset(self, root: Path) -> None:
        """S-08: tarfile silently ends there, or skips the entry."""
        broken = bytearray(entry(b"second", b"x"))
        broken[110] ^= 1
        text = refusal(root, entry(b"first", b"y") + broken + entry(b"third") + END)
        assert "header is corrupt" in text
        assert "'second' at byte 1024" in text

    @pytest.mark.parametrize("end", [b"", bytes(512), bytes(100), bytes(1023), bytes(1025)])
    def test_a_missing_or_half_end_marker_is_an_error(self, root: Path, end: bytes) -> None:
        """S-08: tarfile takes the end of the bytes for the end of the archive."""
        text = refusal(root, entry(b"a", b"x") + end)
        assert "no end marker" in text or "inside a block" in text

    def test_an_archive_of_nothing_but_an_end_marker_is_sound(self, root: Path) -> None:
        assert unpack_tar(root, END)[:2] == (0, 0)

    @pytest.mark.parametrize("cut", [1, 4, 7, 8])
    def test_a_gzip_stream_cut_in_its_trailer_is_an_error(self, root: Path, cut: int) -> None:
        """S-08: tarfile does not read the trailer at all."""
        data = gzip.compress(SMALL_TAR)[:-cut]
        with pytest.raises(StorageError, match=f"gzip stream ends early, after {len(data)} bytes"):
            unpack_gzip(root, data)

    def test_an_empty_stream_is_an_error(self, root: Path) -> None:
        with pytest.raises(StorageError, match="ends early, after 0 bytes"):
            unpack_gzip(root, b"")

    def test_a_stream_that_is_not_gzip_is_an_error(self, root: Path) -> None:
        with pytest.raises(StorageError, match="gzip stream is corrupt, at or after its byte 0"):
            unpack_gzip(root, SMALL_TAR)

    @pytest.mark.parametrize("place", [-8, -1])
    def test_a_wrong_crc_or_length_is_an_error(self, root: Path, place: int) -> None:
        """S-08: the trailer is verified, not only demanded."""
        data = bytearray(gzip.compress(SMALL_TAR))
        data[place] ^= 1
        with pytest.raises(StorageError, match=r"gzip stream is corrupt.*at byte \d+ of the tar stream"):
            unpack_gzip(root, bytes(data))

    def test_data_cut_inside_an_entry_is_an_error_that_says_how_much_is_missing(self, root: Path) -> None:
        """S-08: even when the gzip stream around it is sound."""
        text = refusal(root, entry(b"a", b"x") + entry(b"b", b"y" * 700)[:-1000])
        assert "ends at byte 1560, 1000 bytes short, in entry 'b' at byte 1024" in text

    @pytest.mark.parametrize("step", [1, 1 << 20])
    def test_cutting_anywhere_is_always_an_error(self, root: Path, step: int) -> None:
        """S-08: no prefix of an archive is an archive."""
        data = gzip.compress(SMALL_TAR)
        for length in range(len(data)):
            with pytest.raises(StorageError):
                unpack_gzip(root, data[:length], step=step)

    def test_cutting_the_tar_anywhere_inside_sound_gzip_is_an_error(self, root: Path) -> None:
        """S-08: the whole end marker is demanded, whatever the gzip trailer says."""
        data = entry(b"a", b"x" * 20) + entry(b"dir", kind=b"5") + END
        for length in range(len(data)):
            refusal(root, data[:length])

    def test_any_changed_byte_is_an_error_or_changes_nothing(self, root: Path) -> None:
        """S-08: what the checks let pass is the archive that was sent."""
        data = gzip.compress(SMALL_TAR)
        for place in range(len(data)):
            for change in (0x01, 0x80, 0xFF):
                changed = bytearray(data)
                changed[place] ^= change
                try:
                    unpack_gzip(root, bytes(changed))
                except StorageError:
                    continue
                assert tree(root) == SMALL_TREE

    @pytest.mark.parametrize("zeros", [1, 2, 3, 40])
    def test_entries_after_zero_blocks_are_unpacked(self, root: Path, zeros: int) -> None:
        """S-07: an end marker is no reason to stop, the stream is read to its end."""
        unpack_tar(root, entry(b"a", b"x") + bytes(512 * zeros) + entry(b"b", b"y") + END)
        assert tree(root) == {"a": b"x", "b": b"y"}

    def test_an_error_after_the_end_marker_is_seen(self, root: Path) -> None:
        """S-07: an older server wrote the marker first and failed afterwards."""
        whole = entry(b"a", b"x") + END
        assert "header is neither" in refusal(root, whole + header(b"b", magic=bytes(8)))
        assert "not a number" in refusal(root, whole + b"server failed".ljust(512))
        assert "no end marker" in refusal(root, whole + entry(b"b", b"y"))
        assert "inside a block" in refusal(root, whole + b"server failed")

    @pytest.mark.parametrize("step", [1, 100, 1 << 20])
    def test_a_second_gzip_member_is_an_error(self, root: Path, step: int) -> None:
        """S-07: nothing may follow the gzip trailer."""
        first = gzip.compress(SMALL_TAR)
        with pytest.raises(StorageError, match=f"follows the gzip stream, which ended at byte {len(first)}"):
            unpack_gzip(root, first + gzip.compress(END), step=step)

    @pytest.mark.parametrize("tail", [b"\0", b"error", gzip.compress(END), bytes(70_000)])
    def test_what_follows_much_output_of_little_input_is_an_error_and_no_endless_loop(
        self, root: Path, tail: bytes
    ) -> None:
        """S-07, found by scripts/fuzz_unpack.py: zlib keeps saying that the same input is not consumed yet."""
        data = gzip.compress(entry(b"zeros", bytes(1 << 20)) + END)
        with pytest.raises(StorageError, match=f"follows the gzip stream, which ended at byte {len(data)}"):
            unpack_gzip(root, data + tail)

    @pytest.mark.parametrize("step", [1, 1 << 20])
    @pytest.mark.parametrize("tail", [b"\0", b"error", bytes(70_000)])
    def test_data_after_the_gzip_trailer_is_an_error(self, root: Path, step: int, tail: bytes) -> None:
        """S-07: not even zeros may follow."""
        data = gzip.compress(SMALL_TAR)
        with pytest.raises(StorageError, match=f"data follows the gzip stream, which ended at byte {len(data)}"):
            unpack_gzip(root, data + tail, step=step)

    def test_zero_padding_after_the_end_marker_is_fine(self, root: Path) -> None:
        unpack_tar(root, entry(b"a", b"x") + bytes(10_240))
        assert tree(root) == {"a": b"x"}

    def test_an_output_that_exactly_fills_the_steps_loses_nothing(self, root: Path) -> None:
        step = unpack._OUTPUT_STEP_BYTES
        for size in (step - 1536, step - 1535, 2 * step - 1536, 3 * step - 512):
            content = os.urandom(100).ljust(size, b"z")
            unpack_tar(root, entry(b"a", content) + END)
            assert (root / "a").read_bytes() == content


class TestHostileArchives:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            (b"/etc/passwd", "absolute"),
            (b"//x", "absolute"),
            (b"..", "holds `..`"),
            (b"../x", "holds `..`"),
            (b"a/../../x", "holds `..`"),
            (b"a/..", "holds `..`"),
            (b"./../x", "holds `..`"),
            (b"", "empty"),
            (b"a\0b", "NUL"),
        ],
    )
    @pytest.mark.parametrize("spelling", ["header", "gnu", "pax"])
    @pytest.mark.parametrize("kind", [b"0", b"5"])
    def test_a_name_that_could_leave_the_root_is_refused(
        self, tmp_path: Path, root: Path, name: bytes, reason: str, spelling: str, kind: bytes
    ) -> None:
        """S-08: however the name is spelled."""
        data = {
            "header": entry(name, kind=kind),
            "gnu": entry(b"././@LongLink", name + b"\0", kind=b"L") + entry(b"a", kind=kind),
            "pax": pax((b"path", name)) + entry(b"a", kind=kind),
        }[spelling]
        assert reason in refusal(root, data + END)
        assert [path.name for path in tmp_path.rglob("*")] == ["pgdata"]

    def test_the_prefix_of_a_ustar_header_cannot_hide_a_bad_name(self, root: Path) -> None:
        assert "absolute" in refusal(root, header(b"x", magic=USTAR, prefix=b"/etc") + END)
        assert "`..`" in refusal(root, header(b"x", magic=USTAR, prefix=b"a/..") + END)

    def test_the_prefix_field_of_a_gnu_header_is_no_name(self, root: Path) -> None:
        unpack_tar(root, header(b"x", prefix=b"00000000000") + END)
        assert tree(root) == {"x": b""}

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            (b"1", "a hard link"),
            (b"2", "a symbolic link"),
            (b"3", "a character device"),
            (b"4", "a block device"),
            (b"6", "a fifo"),
            (b"S", "a sparse file"),
            (b"M", "unknown type"),
            (b"X", "unknown type"),
            (b"\xff", "unknown type"),
        ],
    )
    def test_anything_but_files_and_directories_is_refused(self, root: Path, kind: bytes, reason: str) -> None:
        """S-08: links of any kind, devices and fifos."""
        text = refusal(root, entry(b"PG_VERSION", b"15") + header(b"evil", kind=kind) + END)
        assert reason in text
        assert "'evil' at byte 1024" in text
        assert tree(root) == {"PG_VERSION": b"15"}

    @pytest.mark.parametrize("key", [b"GNU.sparse.map", b"GNU.sparse.major"])
    def test_a_sparse_file_in_pax_clothes_is_refused(self, root: Path, key: bytes) -> None:
        assert "sparse" in refusal(root, pax((key, b"1")) + entry(b"a", b"x") + END)

    @pytest.mark.parametrize(
        ("size", "reason"),
        [
            (b"\xff" * 12, "negative"),
            (b"\x80\x80" + bytes(10), "overflows"),
            (b"\x80" + (2**63).to_bytes(11, "big"), "overflows"),
            (b"777777777777", "ends at byte"),
            (b"\x80" + (2**63 - 1).to_bytes(11, "big"), "ends at byte"),
            (bytes(12), "not a number"),
            (b" " * 12, "not a number"),
            (b"-0000000001\0", "not a number"),
            (b"0x000000001\0", "not a number"),
            (b"0000_000001\0", "not a number"),
            (b"00000000008\0", "not a number"),
            (b"001\x000000001\0", "not a number"),
        ],
    )
    def test_an_absurd_size_is_refused(self, root: Path, size: bytes, reason: str) -> None:
        assert reason in refusal(root, header(b"a", size=size) + END)

    @pytest.mark.parametrize("size", [b"-1", b"", b"1_0", b"+1", b"0x1", b"9" * 30, b"9" * 5000, b"1.5", "１".encode()])
    def test_an_absurd_pax_size_is_refused(self, root: Path, size: bytes) -> None:
        text = refusal(root, pax((b"size", size)) + entry(b"a", b"x") + END)
        assert "not a number" in text or "overflows" in text

    def test_a_directory_with_content_is_refused(self, root: Path) -> None:
        assert "claims to have content" in refusal(root, entry(b"a", b"x", kind=b"5") + END)

    @pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
    def test_an_endless_extended_header_is_refused_before_it_is_read(self, root: Path, kind: bytes) -> None:
        size = b"\x80" + (2**40).to_bytes(11, "big")
        assert "too long" in refusal(root, header(b"a", size=size, kind=kind) + END)

    def test_a_name_longer_than_any_path_is_refused(self, root: Path) -> None:
        text = refusal(root, entry(b"l", b"a/" * 2049, kind=b"L") + entry(b"a") + END)
        assert "too long" in text
        assert len(text) < 500
        assert tree(root) == {}

    def test_a_deep_path_is_unpacked_and_can_be_removed_again(self, root: Path) -> None:
        assert unpack_tar(root, entry(b"l", b"a/" * 63 + b"f", kind=b"L") + entry(b"a") + END)[:2] == (1, 63)
        empty(root)
        assert tree(root) == {}

    @pytest.mark.parametrize("depth", [65, 2000])
    def test_a_path_too_deep_to_be_removed_again_is_refused(self, root: Path, depth: int) -> None:
        """From the inputs of scripts/fuzz_unpack.py: such a directory stopped the cleaning before every later start."""
        text = refusal(root, entry(b"l", b"a/" * (depth - 1) + b"f", kind=b"L") + entry(b"a") + END)
        assert f"a name of {depth} components is too deep" in text
        assert tree(root) == {}

    @pytest.mark.parametrize("kind", [b"x", b"g"])
    def test_a_flood_of_pax_records_does_not_fill_the_memory(self, root: Path, kind: bytes) -> None:
        """Found with the inputs of scripts/fuzz_unpack.py: 1600 bytes of gzip were worth 21 MiB of memory."""
        data = entry(b"pax", b"6 ab=\n" * (64 * 1024 // 6), kind=kind) + entry(b"a") + END
        assert peak_memory(lambda: unpack_tar(root, data)) < 4 << 20
        assert "is too long" in refusal(root, entry(b"pax", b"6 ab=\n" * 170_000, kind=kind) + END)

    @pytest.mark.parametrize(
        "data",
        [
            entry(b"l", b"one", kind=b"L") + entry(b"l", b"two", kind=b"L"),
            entry(b"l", b"one", kind=b"L") + pax((b"path", b"two")),
            pax((b"path", b"one"), (b"path", b"two")),
            pax((b"size", b"1")) + pax((b"size", b"2")),
        ],
    )
    def test_two_answers_to_one_question_are_refused(self, root: Path, data: bytes) -> None:
        assert "two extended headers" in refusal(root, data + entry(b"a", b"x") + END)

    def test_an_extended_header_that_belongs_to_nothing_is_refused(self, root: Path) -> None:
        assert "followed by no entry" in refusal(root, entry(b"l", b"one", kind=b"L") + END)

    @pytest.mark.parametrize("key", [b"path", b"size", b"linkpath"])
    def test_a_global_header_must_not_rename_or_resize(self, root: Path, key: bytes) -> None:
        assert "pax global header sets" in refusal(root, pax((key, b"1"), kind=b"g") + entry(b"a") + END)

    def test_a_gnu_long_link_does_not_make_a_link_acceptable(self, root: Path) -> None:
        data = entry(b"././@LongLink", b"/etc/passwd\0", kind=b"K")
        unpack_tar(root, data + entry(b"a", b"x") + END)
        assert tree(root) == {"a": b"x"}
        assert "symbolic link" in refusal(root, data + header(b"b", kind=b"2") + END)

    @pytest.mark.parametrize(
        "data",
        [b"x", b"9 a=b\n", b"6 a=bc", b"0 a=b\n", b"-6 a=b\n", b"6 ab=\n\n", b"5 =b\n", b"4 a\n", b"2 ", b"9" * 9],
    )
    def test_a_malformed_pax_record_is_refused(self, data: bytes) -> None:
        with pytest.raises(RefusedEntryError, match="pax record"):
            parse_pax(data)

    def test_a_message_quotes_what_a_terminal_could_mistake_for_a_command(self, root: Path) -> None:
        assert refusal(root, header(b"a\n\x1b[2Jb\xff", kind=b"2") + END).isprintable()

    @given(name=st.lists(st.sampled_from([b".", b"..", b"/", b"a", b"\0", b"\xff"]), max_size=12).map(b"".join))
    def test_a_safe_path_has_only_ordinary_components(self, name: bytes) -> None:
        try:
            path = safe_path(name)
        except RefusedEntryError:
            return
        assert path == b"" or not {b"", b".", b".."} & set(path.split(b"/"))
        assert b"\0" not in path

    @pytest.mark.parametrize("where", ["content", "padding", "one feed"])
    def test_a_gzip_bomb_does_not_fill_the_memory(self, root: Path, where: str) -> None:
        zeros = bytes(64 << 20)
        (root / "bomb").touch()
        bomb = entry(b"bomb", zeros) + END if where != "padding" else entry(b"a") + zeros
        data = gzip.compress(bomb, 9)
        assert len(data) * 900 < len(bomb)
        del bomb, zeros
        step = 1 << 30 if where == "one feed" else 4096
        assert peak_memory(lambda: unpack_gzip(root, data, step=step, keep=frozenset({"bomb"}))) < 2 << 20

    def test_incompressible_data_in_one_huge_feed_does_not_fill_the_memory(self, root: Path) -> None:
        data = gzip.compress(entry(b"a", os.urandom(16 << 20)) + END, 1)
        assert peak_memory(lambda: unpack_gzip(root, data, step=1 << 30)) < 2 << 20


class TestMutations:
    archive = b"".join(
        [
            entry(b"dir", kind=b"5"),
            entry(b"././@LongLink", b"dir/" + b"n" * 120 + b"\0", kind=b"L"),
            entry(b"dir/n", b"content" * 100),
            pax((b"path", b"dir/p"), (b"size", b"3")),
            entry(b"dir/q", b"abc"),
            header(b"u", magic=USTAR, prefix=b"dir/deep"),
            END,
        ]
    )
    places = st.integers(0, len(archive) - 1)
    interesting = st.sampled_from([0, 1, 32, 46, 47, 48, 49, 50, 53, 55, 76, 103, 120, 127, 128, 255])

    @settings(deadline=None, max_examples=200)
    @given(
        changes=st.lists(st.tuples(places, st.one_of(interesting, st.integers(0, 255))), min_size=1, max_size=8),
        moves=st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), max_size=3),
        repaired=st.booleans(),
        borders=st.lists(places, max_size=4),
    )
    def test_a_damaged_archive_is_unpacked_or_refused_and_touches_nothing_outside(
        self, changes: list[tuple[int, int]], moves: list[tuple[int, int]], repaired: bool, borders: list[int]
    ) -> None:
        """S-08: no other outcome, also when the attacker repairs the checksums."""
        damaged = bytearray(self.archive)
        for place, value in changes:
            damaged[place] = value
        blocks = [bytes(damaged[start : start + 512]) for start in range(0, len(damaged), 512)]
        for source, target in moves:
            blocks.insert(target % len(blocks), blocks[source % len(blocks)])
        if repaired:
            blocks = [with_checksum(block) if block[257:262] == b"ustar" else block for block in blocks]
        survive_attack(gzip.compress(b"".join(blocks), 1), borders)

    @settings(deadline=None, max_examples=100)
    @given(data=st.binary(max_size=200), borders=st.lists(st.integers(0, 2000), max_size=4), zipped=st.booleans())
    def test_noise_is_refused(self, data: bytes, borders: list[int], zipped: bool) -> None:
        """S-08: no other outcome."""
        survive_attack(gzip.compress(data, 1) if zipped else data, borders)


class TestThisMachine:
    def test_a_file_that_outgrows_the_limit_is_a_host_error_with_path_and_reason(self, root: Path) -> None:
        script = dedent("""
            import resource, sys
            from pathlib import Path
            from trio_compute.errors import HostError
            from trio_compute.postgres.unpack import Unpacker

            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            with Unpacker(Path(sys.argv[1])) as unpacker:
                try:
                    unpacker.feed(sys.stdin.buffer.read())
                except HostError as error:
                    sys.stdout.write(str(error))
        """)
        data = gzip.compress(entry(b"base/big", bytes(200_000)) + END)
        done = subprocess.run([sys.executable, "-c", script, str(root)], input=data, capture_output=True)
        assert done.stderr == b""
        assert done.stdout.decode() == f"cannot unpack '{root}/base/big': File too large"
        assert (root / "base/big").stat().st_size == 100_000

    def test_a_full_disk_is_a_host_error_and_leaves_nothing_open(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real_write = os.write
        with Path("/dev/full").open("wb", buffering=0) as full:
            monkeypatch.setattr(os, "write", lambda _, data: real_write(full.fileno(), data))
            with pytest.raises(HostError, match="base/1/1259': No space left on device"):
                unpack_tar(root, entry(b"base/1/1259", b"x") + END)

    def test_short_writes_are_continued(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real_write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, bytes(data[:7])))
        unpack_tar(root, SMALL_TAR)
        monkeypatch.undo()
        assert tree(root) == SMALL_TREE

    def test_a_name_the_file_system_refuses_is_a_host_error(self, root: Path) -> None:
        with pytest.raises(HostError, match="File name too long"):
            unpack_tar(root, entry(b"l", b"a" * 300, kind=b"L") + entry(b"a", b"x") + END)

    def test_a_root_that_does_not_exist_is_a_host_error(self, root: Path) -> None:
        with pytest.raises(HostError, match=r"cannot open .*/absent: No such file or directory"):
            Unpacker(root / "absent")

    def test_a_root_that_is_a_file_is_a_host_error(self, root: Path) -> None:
        (root / "file").touch()
        with pytest.raises(HostError, match="Not a directory"):
            Unpacker(root / "file")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_directory_that_may_not_be_written_is_a_host_error(self, root: Path) -> None:
        root.chmod(0o500)
        with pytest.raises(HostError, match="Permission denied"):
            unpack_tar(root, entry(b"a", b"x") + END)
        root.chmod(0o700)

    def test_everything_that_is_written_gets_the_owner(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[tuple[str, int, int]] = []
        real_fchown = os.fchown

        def fchown(descriptor: int, uid: int, gid: int) -> None:
            given.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(f"{root}/"), uid, gid))
            real_fchown(descriptor, uid, gid)

        monkeypatch.setattr(os, "fchown", fchown)
        (root / "empty").write_bytes(b"replaced")
        (root / "base").mkdir()
        owner = os.getuid(), os.getgid()
        with Unpacker(root, owner=owner) as unpacker:
            unpacker.feed(gzip.compress(SMALL_TAR))
            unpacker.finish()
        assert sorted(given) == [(name, *owner) for name in sorted(SMALL_TREE) if name != "base"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
    def test_root_gives_files_and_directories_away(self, root: Path) -> None:
        with Unpacker(root, owner=(12345, 54321)) as unpacker:
            unpacker.feed(gzip.compress(SMALL_TAR))
            unpacker.finish()
        assert {(path.stat().st_uid, path.stat().st_gid) for path in root.rglob("*")} == {(12345, 54321)}

    def test_an_owner_that_may_not_be_given_is_a_host_error(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "fchown", refuse)
        for data in (entry(b"a", b"x"), entry(b"b", kind=b"5")):
            with Unpacker(root, owner=(1, 1)) as unpacker:
                with pytest.raises(HostError, match="Operation not permitted"):
                    unpacker.feed(gzip.compress(data + END))


class TestClosing:
    def test_closing_half_way_leaves_nothing_open_and_may_be_repeated(self, root: Path) -> None:
        unpacker = Unpacker(root)
        unpacker.feed(gzip.compress(entry(b"a/b", os.urandom(5000)) + END)[:3000])
        assert (root / "a/b").exists()
        unpacker.close()
        unpacker.close()

    def test_a_closed_unpacker_accepts_nothing(self, root: Path) -> None:
        unpacker = Unpacker(root)
        unpacker.feed(gzip.compress(SMALL_TAR))
        unpacker.finish()
        with pytest.raises(StorageError, match="closed"):
            unpacker.feed(b"x")
        with pytest.raises(StorageError, match="closed"):
            unpacker.finish()

    def test_after_an_error_the_unpacker_is_closed(self, root: Path) -> None:
        with Unpacker(root) as unpacker:
            with pytest.raises(StorageError, match="corrupt"):
                unpacker.feed(b"noise")
            with pytest.raises(StorageError, match="closed"):
                unpacker.finish()


class TestCheckComplete:
    segment = "pg_wal/000000010000000000000001"

    def build(self, root: Path, *, without: str = "", segment: str = segment, size: int = 16 << 20) -> None:
        for name in ("PG_VERSION", "global/pg_control", segment):
            if name != without:
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).touch()
        os.truncate(root / segment, size)

    @pytest.mark.parametrize("size", [1 << 20, 16 << 20, 1 << 30])
    def test_a_whole_directory_is_accepted(self, root: Path, size: int) -> None:
        """S-08: with a WAL segment of any size that initdb can choose."""
        self.build(root, size=size)
        check_complete(root)

    @pytest.mark.parametrize("name", ["PG_VERSION", "global/pg_control"])
    def test_a_missing_file_is_named(self, root: Path, name: str) -> None:
        """S-08: a directory without it is no data directory."""
        self.build(root, without=name)
        with pytest.raises(StorageError, match=f"lacks {name}$"):
            check_complete(root)

    def test_everything_missing_is_named_at_once(self, root: Path) -> None:
        """S-08: an empty archive is well formed and still useless."""
        unpack_tar(root, END)
        with pytest.raises(StorageError, match=r"lacks PG_VERSION, global/pg_control, a whole segment in pg_wal$"):
            check_complete(root)

    @pytest.mark.parametrize("size", [0, 8192, (16 << 20) - 1, 3 << 20, 1 << 19, 1 << 31])
    def test_a_segment_of_an_odd_size_does_not_count(self, root: Path, size: int) -> None:
        """S-08: half a segment is no place to start from."""
        self.build(root, size=size)
        with pytest.raises(StorageError, match=r"lacks a whole segment in pg_wal$"):
            check_complete(root)

    @pytest.mark.parametrize(
        "name", ["00000001000000000000000g", "000000010000000000000001.partial", "00000001.history"]
    )
    def test_a_file_with_another_name_is_no_segment(self, root: Path, name: str) -> None:
        """S-08: only 24 hexadecimal digits name a segment."""
        self.build(root, segment=f"pg_wal/{name}")
        with pytest.raises(StorageError, match=r"lacks a whole segment in pg_wal$"):
            check_complete(root)

    def test_a_link_or_directory_is_no_segment(self, root: Path) -> None:
        """S-08: a segment is a regular file."""
        self.build(root, segment="elsewhere")
        (root / "pg_wal").mkdir()
        (root / self.segment).symlink_to(root / "elsewhere")
        (root / self.segment).with_name("0" * 24).mkdir()
        with pytest.raises(StorageError, match=r"lacks a whole segment in pg_wal$"):
            check_complete(root)

    def test_a_file_in_place_of_pg_wal_is_a_missing_segment(self, root: Path) -> None:
        """S-08: whatever stands there, no segment does."""
        self.build(root, segment="elsewhere")
        (root / "pg_wal").touch()
        with pytest.raises(StorageError, match=r"lacks a whole segment in pg_wal$"):
            check_complete(root)

    def test_a_directory_that_cannot_be_read_is_a_host_error(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(HostError, match="pg_wal: Permission denied"):
            check_complete(root)
        monkeypatch.undo()


def consistent(content: Content, *, longest_name: int) -> Content:
    """Return the same content without names that are no path, clash with each other or are too long."""
    result: Content = {}
    for name, data in content.items():
        parts = name.split("/")
        is_below_a_file = any(result.get("/".join(parts[:count])) is not None for count in range(1, len(parts)))
        is_above_an_entry = data is not None and any(other.startswith(f"{name}/") for other in result)
        clashes = is_below_a_file or is_above_an_entry
        if not {".", ".."} & set(parts) and not clashes and len(name.encode()) <= longest_name:
            result[name] = data
    return result


def peak_memory(call: Callable[[], object]) -> int:
    """Return the bytes that Python holds at most during a call, beyond what it held before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def with_checksum(block: bytes) -> bytes:
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


def survive_attack(data: bytes, borders: Sequence[int]) -> None:
    """Unpack hostile data beside a canary; only our own errors may come out and the canary must live."""
    with tempfile.TemporaryDirectory() as directory, no_descriptor_leaks():
        outer = Path(directory)
        (outer / "canary").write_bytes(b"alive")
        (outer / "pgdata").mkdir()
        (outer / "pgdata/way").symlink_to(outer)
        message = ""
        with Unpacker(outer / "pgdata") as unpacker:
            try:
                for piece in slices(data, borders):
                    unpacker.feed(piece)
                unpacker.finish()
            except (StorageError, HostError) as error:
                message = str(error)
        assert message == "" or message.isprintable()
        assert {path.name for path in outer.iterdir()} == {"canary", "pgdata"}
        assert (outer / "canary").read_bytes() == b"alive"
        kinds = {stat.S_IFMT(path.lstat().st_mode) for path in outer.rglob("*") if path.name != "way"}
        assert kinds <= {stat.S_IFREG, stat.S_IFDIR}
