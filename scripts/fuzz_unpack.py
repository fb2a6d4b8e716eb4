"""Throw damaged and hostile archives at the unpacker of basebackups until the time is up; exit 1 if it failed once.

Usage: .venv/bin/python scripts/fuzz_unpack.py [--minutes N] [--seed S] [--case N]

Each case takes a good tar (GNU, ustar or pax; some with hostile entries), damages it before or after it is gzip'd, and
feeds it in pieces of random length. Only success, StorageError and HostError are allowed outcomes; nothing outside the
target may change, no descriptor may stay open, a case may take 5 seconds and little memory. A case depends on nothing
but the seed and its number, so a finding is repeated with the same `--seed` and with `--case NUMBER`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from trio_compute.errors import HostError, StorageError
from trio_compute.postgres.unpack import Unpacker, check_complete

HANG_SECONDS = 5.0
TRACED_EVERY = 8  # tracemalloc makes a case several times slower
TRACED_BYTES = 8 << 20
RESIDENT_BYTES = 128 << 20
FILE_BYTES = 8 << 20
LONGEST_MESSAGE = 4096
WORTHY_BYTES = [0, 1, 32, 46, 47, 48, 49, 50, 53, 55, 76, 103, 120, 127, 128, 192, 255]
SIZES = [0, 1, 511, 512, 513, 4096, 1 << 20, (1 << 20) + 1, 8**11 - 1, 2**63 - 1, 2**63, 2**64]
PAX_VALUES = [b"", b"0", b"-1", b"1e3", b"9" * 30, b"9" * 60, b"\xd9\xa1", b"\0", b"../x", b"/x", b"=", b"a\nb", b"7"]
OPEN = Path("/proc/self/fd")


class Hung(BaseException):
    """Interrupt a case that takes too long; no handler of the code under test may swallow it."""


def main(arguments: list[str]) -> int:
    """Run cases for the given time, or one of them; print a summary and return the exit code."""
    parser = argparse.ArgumentParser(description="Fuzz the unpacker of basebackups.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: a random one, printed)")
    parser.add_argument("--case", type=int, default=None, help="run only the case of this number")
    options = parser.parse_args(arguments)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    signal.signal(signal.SIGALRM, _on_alarm)
    print(f"seed {seed}", flush=True)
    outcomes, findings = run(seed, options.minutes, options.case)
    print(f"{outcomes.total()} cases")
    for outcome, times in sorted(outcomes.items()):
        print(f"{times:8} {outcome}")
    print(f"{findings} findings")
    return 1 if findings else 0


def run(seed: int, minutes: float, only: int | None) -> tuple[Counter[str], int]:
    """Run cases; return how often there was which outcome, and how many rules were broken."""
    outcomes: Counter[str] = Counter()
    findings = 0
    ends_at = time.monotonic() + minutes * 60
    for number in itertools.count() if only is None else (only,):
        if only is None and time.monotonic() >= ends_at:
            break
        outcome, wrong = run_case(random.Random(f"{seed}/{number}"), traced=number % TRACED_EVERY == 0)
        outcomes[outcome] += 1
        findings += len(wrong)
        for what in wrong:
            print(f"FINDING in case {number}: {what}", flush=True)
    return outcomes, findings


def run_case(rng: random.Random, *, traced: bool) -> tuple[str, list[str]]:
    """Run one case in directories of its own; return its outcome and the rules it broke."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    outer = Path(tempfile.mkdtemp(prefix="trio-compute-fuzz-", dir=base))
    try:
        planted, (data, is_damaged) = plant(outer, rng), make_input(rng, outer)
        pieces = list(cut(rng, data))
        descriptors = len([*OPEN.iterdir()])
        outcome, wrong = attempt(outer / "pgdata", pieces, traced=traced)
        if len([*OPEN.iterdir()]) != descriptors:
            wrong.append("a descriptor stays open")
        if not is_damaged and not outcome.startswith("unpacked"):
            wrong.append(f"a good archive was refused: {outcome}")
        wrong += inspect(outer, planted)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if resident > RESIDENT_BYTES:
            wrong.append(f"{resident >> 20} MiB are resident")
        return outcome, wrong
    finally:
        remove(outer)


def attempt(root: Path, pieces: list[bytes], *, traced: bool) -> tuple[str, list[str]]:
    """Unpack under a watchdog; return the outcome and the rules it broke."""
    if traced:
        tracemalloc.start()
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        outcome, wrong = unpack(root, pieces), list[str]()
    except Hung:
        outcome, wrong = "hung", [f"it takes longer than {HANG_SECONDS:g} s"]
    except (StorageError, HostError) as error:
        outcome, text = f"{type(error).__name__}: {family(str(error))}", str(error)
        is_fit_to_print = text.isprintable() and len(text) <= LONGEST_MESSAGE
        wrong = [] if is_fit_to_print else [f"a message is unprintable or too long: {text[:200]!r}"]
    except Exception as error:  # noqa: BLE001  (whatever else comes out is what we are looking for)
        outcome, wrong = type(error).__name__, [f"another exception came out: {error!r}"[:300]]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return outcome, [*wrong, f"{peak >> 10} KiB were allocated"] if peak > TRACED_BYTES else wrong


def unpack(root: Path, pieces: list[bytes]) -> str:
    """Do with an archive what a start does with a basebackup."""
    with Unpacker(root, keep=frozenset({"postgresql.conf"})) as unpacker:
        for piece in pieces:
            unpacker.feed(piece)
        unpacker.finish()
    try:
        check_complete(root)
    except StorageError:
        return "unpacked, incomplete"
    return "unpacked"


def family(text: str) -> str:
    """Return what kind of message a text is, without names and numbers."""
    reason = text.partition(": ")[2] if text.startswith("basebackup: ") else text.rpartition(": ")[2]
    words = reason.partition(", in ")[0].partition(": ")[0].split()
    return " ".join(word for word in words if word.strip(",;").isalpha())[:60]


def plant(outer: Path, rng: random.Random) -> dict[str, tuple[int, int, bytes]]:
    """Make the target and traps in it; return what must stay as it is."""
    root = outer / "pgdata"
    root.mkdir()
    (outer / "canary").write_bytes(b"alive")
    (outer / "elsewhere").mkdir()
    (root / "postgresql.conf").write_bytes(b"kept")
    (root / "postgresql.conf").chmod(0o600)
    if rng.random() < 0.7:
        (root / "way").symlink_to(outer / "elsewhere")
        (root / "link").symlink_to(outer / "canary")
        (root / "twin").hardlink_to(outer / "canary")
        os.mkfifo(root / "pipe")
    return snapshot(outer)


def snapshot(outer: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return mode, number of links and content of what lies outside of the target."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for directory in (outer, outer / "elsewhere"):
        for path in directory.iterdir():
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            # The links of a directory count its subdirectories, and those of the target may change.
            found[str(path)] = (status.st_mode, status.st_nlink if content else 0, content)
    return found


def inspect(outer: Path, planted: dict[str, tuple[int, int, bytes]]) -> list[str]:
    """Return what an unpacked archive has done that it must not do."""
    wrong = [] if snapshot(outer) == planted else ["something outside of the target changed"]
    # Neither os.walk nor rglob can go as deep as the unpacker.
    odd = ["(", "-not", "-type", "f", "-not", "-type", "d", "-o", "-perm", "/7077", ")"]
    found = subprocess.run(
        ["find", str(outer / "pgdata"), "-mindepth", "1", *odd, "-print0"], check=False, capture_output=True
    )
    paths = {os.fsdecode(path) for path in found.stdout.split(b"\0") if path}
    traps = {str(outer / "pgdata" / name) for name in ("way", "link", "twin", "pipe")}
    wrong += [f"no file or directory, or with a wrong mode: {path[-80:]!r}" for path in sorted(paths - traps)]
    if found.returncode or found.stderr:
        wrong.append(f"find: {found.stderr[:200]!r}")
    if (outer / "pgdata" / "postgresql.conf").read_bytes() != b"kept":
        wrong.append("a file to be kept was overwritten")
    return wrong


def remove(outer: Path) -> None:
    """Delete a directory, also one that is too deep for shutil."""
    try:
        shutil.rmtree(outer)
    except (RecursionError, OSError):
        subprocess.run(["rm", "-rf", "--", str(outer)], check=True)


def _on_alarm(_number: int, _frame: FrameType | None) -> None:
    raise Hung


def make_input(rng: random.Random, outer: Path) -> tuple[bytes, bool]:
    """Return a gzip'd archive and whether anything may be wrong with it."""
    tar = good_archive(rng)
    is_damaged = rng.random() < 0.98
    if is_damaged and rng.random() < 0.6:
        entries = b"".join(hostile_entry(rng, outer) for _ in range(rng.randint(1, 4)))
        tar = splice(rng, tar, entries)
    if is_damaged and rng.random() < 0.6:
        tar = damage(rng, tar)
        if rng.random() < 0.7:
            tar = with_checksums(tar)
    data = gzip.compress(tar, rng.choice([0, 1, 9]), mtime=0)
    if is_damaged and rng.random() < 0.3:
        data = damage(rng, data)
    if is_damaged and rng.random() < 0.03:
        data = rng.choice([tar, data + data, data[2:], b""])
    return data, is_damaged


def good_archive(rng: random.Random) -> bytes:
    """Return a tar of the least that counts as a data directory, and some more."""
    output = io.BytesIO()
    kind = rng.choice([tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
    segment = rng.choice([1 << 20, *[20_000] * 9])  # a whole one is as good as any, and slow
    with tarfile.open(fileobj=output, mode="w", format=kind) as archive:
        names = ["PG_VERSION", "global/pg_control", f"pg_wal/{'0' * 24}", "base/1/1259", "postgresql.conf"]
        if kind != tarfile.USTAR_FORMAT:
            names.append("long/" + "/".join("é" * rng.randint(1, 60) for _ in range(rng.randint(1, 4))))
        for directory in ("global", "pg_wal", "base/1"):
            entry = tarfile.TarInfo(directory)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = segment if name.startswith("pg_wal/") else rng.choice([0, 1, 511, 512, 513, 3000])
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    return output.getvalue()


def splice(rng: random.Random, tar: bytes, entries: bytes) -> bytes:
    """Return the tar with entries put in, mostly before its first, where they are seen."""
    at = 0 if rng.random() < 0.7 else rng.randrange(len(tar) // 512) * 512
    return tar[:at] + entries + tar[at:]


def hostile_entry(rng: random.Random, outer: Path) -> bytes:
    """Return an entry that a careless reader could be harmed by."""
    name = hostile_name(rng, outer)
    style = rng.randrange(6)
    if style == 0:
        return long_name(rng, name) + header(rng, b"short", rng.choice(b"057"))
    if style == 1:
        records = [(b"path", name)] if rng.random() < 0.7 else []
        keys = [b"size", b"linkpath", b"GNU.sparse.size", b"path", b"mtime", b"\xff", b"", b"hdrcharset", b"uid"]
        records += [(rng.choice(keys), rng.choice(PAX_VALUES)) for _ in range(rng.randrange(4))]
        return pax(rng, records) + header(rng, b"short", rng.choice(b"057"))
    if style == 2:
        return flood(rng)
    return header(rng, name, rng.choice(b"\x000123456789LKSxgVMND"), link=hostile_name(rng, outer))


def flood(rng: random.Random) -> bytes:
    """Return entries that are cheap to send and may be dear to read."""
    way = rng.randrange(4)
    if way == 0:
        body = b"6 ab=\n" * rng.choice([10, 1000, 170_000])
        return header(rng, b"pax", ord(rng.choice("xg")), size=len(body)) + padded(body)
    if way == 1:
        return long_name(rng, b"d/" * rng.choice([10, 900, 2047]) + b"f") + header(rng, b"s", ord("0"))
    if way == 2:
        return bytes(512) * rng.choice([1, 2, 2000])
    return b"".join(header(rng, b"many/%d/f" % number, ord("0")) for number in range(rng.choice([3, 40, 300])))


def hostile_name(rng: random.Random, outer: Path) -> bytes:
    """Return a path out of the target, into a trap, or of an odd kind."""
    escapes = [b"../canary", b"../elsewhere/x", b"a/../../canary", bytes(outer / "canary"), bytes(outer / "new"), b".."]
    traps = b"way/x way link twin pipe pipe/x link/x postgresql.conf ./postgresql.conf".split()
    odd = [b"", b".", b"/", b"//", b"./", b"a//b/", b"a\0b", b"\xff\xfe", b"\n\x1b[2J", b"n" * 99, b"global", b"base/1"]
    long = [b"n" * 255, b"n" * 256, b"n" * 5000, b"d/" * 300 + b"f", b"PG_VERSION/x"]
    return rng.choice(rng.choice([escapes, traps, odd, long]))


def header(rng: random.Random, name: bytes, kind: int, *, size: int | None = None, link: bytes = b"") -> bytes:
    """Return a header block with a sound checksum; without a `size`, often an odd one."""
    size = rng.choice(SIZES) if size is None and rng.random() < 0.2 else size or 0
    octal = b"%011o\0" % size
    field = octal if len(octal) == 12 else (1 << 95 | size).to_bytes(12, "big")
    magic = rng.choice([b"ustar  \0", b"ustar\x0000"])
    block = bytearray(512)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:124] = b"0000777\0" * 3
    block[124:136] = field
    block[136:148] = b"00000000000\0"
    block[156] = kind
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = magic
    if magic.startswith(b"ustar\0") and rng.random() < 0.2:
        block[345:352] = rng.choice([b"../..//", b"way\0\0\0\0", b"/tmp\0\0\0", b"a/b/c/d"])
    return with_checksums(bytes(block))


def long_name(rng: random.Random, name: bytes) -> bytes:
    """Return a GNU long name."""
    body = name + b"\0" * rng.randrange(3)
    return header(rng, b"././@LongLink", rng.choice(b"LLLK"), size=len(body)) + padded(body)


def pax(rng: random.Random, records: list[tuple[bytes, bytes]]) -> bytes:
    """Return a pax header; some records lie about their length."""
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length += 1
        body += b"%d" % (length + (rng.choice([-1, 1, 10**6]) if rng.random() < 0.1 else 0)) + rest
    return header(rng, b"pax", rng.choice(b"xxxg"), size=len(body)) + padded(body)


def padded(body: bytes) -> bytes:
    """Return content filled up to whole blocks."""
    return body + bytes(-len(body) % 512)


def with_checksums(tar: bytes) -> bytes:
    """Return the tar with sound checksums wherever a block looks like a header."""
    repaired = bytearray(tar)
    for start in range(0, len(tar) - 511, 512):
        if repaired[start + 257 : start + 262] == b"ustar":
            repaired[start + 148 : start + 156] = b" " * 8
            repaired[start + 148 : start + 156] = b"%06o\0 " % sum(repaired[start : start + 512])
    return bytes(repaired)


def damage(rng: random.Random, data: bytes) -> bytes:
    """Return the data after one to three changes."""
    changes = [flip_bytes, truncate, double_slice, remove_slice, move_block]
    for _ in range(rng.randint(1, 3)):
        if data:
            data = rng.choice(changes)(rng, data)
    return data


def flip_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change some bytes, half of them in the first few blocks."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        end = len(data) if rng.random() < 0.5 else min(len(data), 4096)
        changed[rng.randrange(end)] = rng.choice([rng.choice(WORTHY_BYTES), rng.randrange(256)])
    return bytes(changed)


def truncate(rng: random.Random, data: bytes) -> bytes:
    """Cut the end off."""
    return data[: rng.choice([rng.randrange(len(data)), max(0, len(data) - rng.randrange(1100))])]


def double_slice(rng: random.Random, data: bytes) -> bytes:
    """Repeat a part."""
    start, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:end] + data[start:end] + data[end:]


def remove_slice(rng: random.Random, data: bytes) -> bytes:
    """Leave a part out."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 511, 512, 1024, rng.randrange(1, 5000)]) :]


def move_block(rng: random.Random, data: bytes) -> bytes:
    """Copy one block over another."""
    source, target = (rng.randrange(len(data) // 512 + 1) * 512 for _ in range(2))
    return data[:target] + data[source : source + 512] + data[target + 512 :]


def cut(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """Yield the data in pieces of random length, sometimes byte by byte."""
    longest = rng.choice([1, 7, 512, 8192, 1 << 17, 1 << 30])
    if len(data) > 8192 * longest:
        longest = 512
    start = 0
    while start < len(data):
        step = int(rng.random() * (longest + 1))  # an empty piece is allowed too
        yield data[start : start + step]
        start += step


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
