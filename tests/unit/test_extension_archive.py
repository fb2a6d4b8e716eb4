"""What an archive may bring, and where it ends up (contract 06 §10.5, R-18, R-19, R-20)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from textwrap import dedent

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.extensions import FILES, archive, entry, packed, tar_of
from trio_compute.errors import ComputeError, HostError, StorageError
from trio_compute.postgres.extension_archive import ArchiveUnpacker, Limits
from trio_compute.postgres.extension_staging import PREFIX, Places, Staging, sweep


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("share", "share/extension", "lib"):
        (tmp_path / name).mkdir()
    return Places(tmp_path / "share" / "extension", tmp_path / "lib")


def install(places: Places, data: bytes, *, step: int = 4096, sha256: str | None = None, **limits: int) -> int:
    staging = Staging(places)
    try:
        with ArchiveUnpacker(staging, "demo.tar.zst", sha256=sha256, limits=Limits(**limits)) as unpacker:
            for start in range(0, len(data), step):
                unpacker.feed(data[start : start + step])
            unpacker.finish()
        return staging.install()
    finally:
        staging.remove()


def tree(places: Places) -> dict[str, str]:
    root = places.library.parent
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if not path.is_dir()}


def assert_refused(places: Places, data: bytes, words: str, **limits: int) -> None:
    (places.library / "old.so").write_text("old")
    with pytest.raises(ComputeError) as raised:
        install(places, data, **limits)
    assert words in str(raised.value)
    assert "demo.tar.zst" in str(raised.value)
    assert "basebackup" not in str(raised.value)
    assert tree(places) == {"lib/old.so": "old"}
    assert sorted(path.name for path in places.extension.parent.parent.rglob("*") if path.is_dir()) == [
        *("extension", "lib", "share")
    ]


@pytest.mark.parametrize("step", [1, 7, 512, 1 << 20])
def test_scripts_and_libraries_go_to_their_directories(places: Places, step: int) -> None:
    assert install(places, archive(), step=step) == 3
    assert tree(places) == FILES
    assert (places.library / "demo.so").stat().st_mode & 0o777 == 0o755
    assert (places.extension / "demo.control").stat().st_mode & 0o777 == 0o644


def test_directories_below_are_made_for_everybody_to_read(places: Places) -> None:
    files = {"lib/bitcode/demo/a.bc": "a", "share/extension/demo/b.sql": "b", "./lib/c.so": "c"}
    before = os.umask(0o077)
    try:
        install(places, archive(files))
    finally:
        os.umask(before)
    assert tree(places) == {name.removeprefix("./"): text for name, text in files.items()}
    for path in (places.library / "bitcode", places.library / "bitcode" / "demo", places.extension / "demo"):
        assert path.stat().st_mode & 0o777 == 0o755


def test_what_is_neither_script_nor_library_is_left_out(places: Places) -> None:
    install(places, archive({"share/doc/readme": "x", "library/x.so": "x", "lib/demo.so": "y", "README": "z"}))
    assert tree(places) == {"lib/demo.so": "y"}


@pytest.mark.parametrize("files", [{"share/extension/demo.control": "x"}, {"lib/demo.so": "x"}, {}])
def test_a_missing_directory_is_fine(places: Places, files: dict[str, str]) -> None:
    assert install(places, archive(files)) == len(files)


def test_a_file_that_is_there_is_replaced_as_a_whole(places: Places) -> None:
    old = places.library / "demo.so"
    old.write_text("old")
    with old.open() as still_open:
        install(places, archive())
        assert still_open.read() == "old"
    assert tree(places) == FILES


def test_several_frames_of_zstd_are_one_stream(places: Places) -> None:
    tar = tar_of(FILES)
    assert install(places, packed(tar[:1000]) + packed(tar[1000:]), step=13) == 3


HOSTILE = {
    "climbs": (archive({**FILES, "share/extension/../../../evil": "x"}), "`..`"),
    "climbs at once": (archive({"../evil": "x"}), "`..`"),
    "absolute": (archive({**FILES, "/tmp/evil": "x"}), "absolute"),
    "symbolic link": (archive(FILES, entry("lib/evil.so", tarfile.SYMTYPE, "/etc/passwd")), "symbolic link"),
    "link outside of both": (archive(FILES, entry("other/evil", tarfile.SYMTYPE, "x")), "symbolic link"),
    "hard link": (archive(FILES, entry("lib/evil.so", tarfile.LNKTYPE, "lib/demo.so")), "hard link"),
    "character device": (archive(FILES, entry("lib/evil", tarfile.CHRTYPE)), "character device"),
    "block device": (archive(FILES, entry("lib/evil", tarfile.BLKTYPE)), "block device"),
    "fifo": (archive(FILES, entry("lib/evil", tarfile.FIFOTYPE)), "fifo"),
    "file for a directory": (archive({**FILES, "lib": "x"}), "root directory"),
    "junk": (b"this is no archive at all", "corrupt"),
    "junk in zstd": (packed(b"this is no tar at all" * 100), "checksum is"),
    "empty": (b"", "ends early"),
    "empty zstd": (packed(b""), "no end marker"),
    "window": (
        zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters.from_level(3, window_log=30))
        .compressobj()
        .compress(b"x" * 4_000_000),
        "corrupt",
    ),
    "junk behind it": (archive() + b"junk", "corrupt"),
    "half the tar": (packed(tar_of(FILES)[:1500]), "ends"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_installed(places: Places, name: str) -> None:
    """R-19."""
    data, words = HOSTILE[name]
    assert_refused(places, data, words)


@pytest.mark.parametrize("kept", [0, 1, 10, -1, -5])
def test_a_truncated_archive_is_refused(places: Places, kept: int) -> None:
    assert_refused(places, archive()[:kept], "ends early")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"compressed_bytes": 100}, "larger than 100 bytes"),
        ({"unpacked_bytes": 5000}, "unpacks to more than 5000 bytes"),
        ({"entries": 2}, "too many entries"),
    ],
)
def test_an_archive_that_is_too_large_is_refused(places: Places, limits: dict[str, int], words: str) -> None:
    """R-18, A-23."""
    assert_refused(places, archive(), words, **limits)


def test_a_bomb_is_noticed_before_it_fills_the_disk(places: Places) -> None:
    tar = tar_of({})[:-1024]
    bomb = packed(tar + entry("lib/zeros", tarfile.REGTYPE).tobuf() + bytes(100_000_000))
    assert len(bomb) < 10_000
    assert_refused(places, bomb, "unpacks to more than", unpacked_bytes=1_000_000)


def test_a_digest_that_the_spec_gives_is_checked(places: Places) -> None:
    """R-18."""
    data = archive()
    with pytest.raises(StorageError, match="SHA-256"):
        install(places, data, sha256=hashlib.sha256(b"other").hexdigest())
    assert tree(places) == {}
    install(places, data, sha256=hashlib.sha256(data).hexdigest().upper())
    assert tree(places) == FILES


def test_unpacking_ends_soon_when_it_is_aborted(places: Places) -> None:
    staging = Staging(places)
    with ArchiveUnpacker(staging, "demo.tar.zst") as unpacker:
        unpacker.abort()
        with pytest.raises(StorageError, match="interrupted"):
            unpacker.feed(archive())
    staging.remove()


def test_an_installation_that_fails_in_the_middle_is_taken_back(places: Places) -> None:
    """R-19: any failure is an error and leaves what was there."""
    (places.library / "demo.so").write_text("old")
    (places.extension / "demo.control").mkdir()
    files = {**FILES, "lib/new/more.so": "x"}
    with pytest.raises(HostError, match=r"cannot install .*demo\.control"):
        install(places, archive(files))
    assert tree(places) == {"lib/demo.so": "old"}
    assert not (places.library / "new").exists()


@pytest.mark.parametrize("missing", ["lib", "share/extension"])
def test_a_target_that_is_missing_is_a_clear_error(places: Places, missing: str) -> None:
    (places.library.parent / missing).rmdir()
    with pytest.raises(HostError, match=f"cannot write into .*{missing}: No such file or directory"):
        install(places, archive())
    assert tree(places) == {}


def test_without_descriptors_nothing_is_left(places: Places) -> None:
    code = dedent("""
        import resource, sys
        from pathlib import Path
        from trio_compute.errors import HostError
        from trio_compute.postgres.extension_staging import Places, Staging
        staging = Staging(Places(Path(sys.argv[1]), Path(sys.argv[2])))
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
        try:
            staging.library
        except HostError as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            print(error)
    """)
    argv = [sys.executable, "-c", code, str(places.extension), str(places.library)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert "cannot write into" in done.stdout, done.stderr
    assert list(places.library.iterdir()) == []


def test_what_no_library_needs_may_be_missing(places: Places) -> None:
    places.library.rmdir()
    assert install(places, archive({"share/extension/demo.control": "x"})) == 1
    staging = Staging(places)
    assert staging.add_new([("more.control", "y")]) == []
    staging.remove()


def test_control_files_are_written_unless_they_are_there(places: Places) -> None:
    """R-20: the local one wins."""
    (places.extension / "a.control").write_text("local")
    staging = Staging(places)
    assert staging.add_new([("a.control", "spec"), ("b.control", "spec ü")]) == ["a.control"]
    staging.remove()
    assert tree(places) == {"share/extension/a.control": "local", "share/extension/b.control": "spec ü"}
    assert (places.extension / "b.control").stat().st_mode & 0o777 == 0o644


def test_leftovers_of_a_killed_process_are_swept_and_others_are_not(places: Places) -> None:
    code = dedent("""
        import os, sys
        from pathlib import Path
        from trio_compute.postgres.extension_staging import Places, Staging
        staging = Staging(Places(Path(sys.argv[1]), Path(sys.argv[2])))
        (staging.library / "half.so").write_text("half")
        (staging.extension / "half.control").write_text("half")
        os._exit(9)  # as SIGKILL does, this leaves everything
    """)
    done = subprocess.run([sys.executable, "-c", code, str(places.extension), str(places.library)])
    assert done.returncode == 9
    busy = Staging(places)
    kept = {busy.library, busy.extension}
    assert sweep(places) == 2
    left = [path for path in (*places.library.iterdir(), *places.extension.iterdir()) if path.name.startswith(PREFIX)]
    assert {path / "new" for path in left} == kept
    busy.remove()
    assert sweep(places) == 0


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_archive_is_refused_or_installed_as_a_whole(data: st.DataObject) -> None:
    """Whatever the bytes are: no other error, nothing outside, nothing half."""
    whole = archive() if data.draw(st.booleans()) else store_only(tar_of(FILES))
    at = data.draw(st.integers(0, len(whole) - 1))
    until = data.draw(st.integers(at, min(at + 20, len(whole))))
    damaged = whole[:at] + data.draw(st.binary(max_size=20)) + whole[until:]
    with tempfile.TemporaryDirectory() as directory:
        places = Places(Path(directory) / "extension", Path(directory) / "lib")
        for path in (places.extension, places.library):
            path.mkdir()
        try:
            files = install(places, damaged)
        except ComputeError:
            files = 0
        found = [path for path in Path(directory).rglob("*") if path.is_file()]
        assert len(found) == files
        assert sorted(path.name for path in Path(directory).iterdir()) == ["extension", "lib"]


def store_only(tar: bytes) -> bytes:
    """Return a tar in zstd with each byte as it is, so that damage reaches the tar itself."""
    return b"\x28\xb5\x2f\xfd\xa0" + len(tar).to_bytes(4, "little") + raw_blocks(tar)


def raw_blocks(tar: bytes) -> bytes:
    pieces = [tar[start : start + 100_000] for start in range(0, len(tar), 100_000)]
    heads = [(len(piece) << 3) | (number == len(pieces) - 1) for number, piece in enumerate(pieces)]
    return b"".join(head.to_bytes(3, "little") + piece for head, piece in zip(heads, pieces, strict=True))


def test_the_undamaged_form_of_it_is_installed(places: Places) -> None:
    assert install(places, store_only(tar_of(FILES))) == 3
