"""Small files written whole: a crash leaves the old one or the new one (contract 04 F-01)."""

from __future__ import annotations

import os
from pathlib import Path

from trio_compute.errors import HostError
from trio_compute.host.run_as import RunAs


def write_atomically(path: Path, text: str, run_as: RunAs, *, mode: int = 0o600) -> None:
    """Replace a file through a temporary one beside it; raise HostError naming the path."""
    write_bytes_atomically(path, text.encode(), run_as, mode=mode)


def append_line_once(path: Path, line: str, run_as: RunAs) -> bool:
    """Append a line unless an identical one exists; return whether the file changed (contract 04 §7)."""
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    wanted = line.encode()
    # Bytes, since the file may be in any encoding; bytes.splitlines knows only real line ends.
    if wanted in content.splitlines():
        return False
    write_bytes_atomically(path, content + (b"\n" if content else b"") + wanted, run_as)
    return True


def write_bytes_atomically(path: Path, content: bytes, run_as: RunAs, *, mode: int = 0o600) -> None:
    """Replace a file of any content through a temporary one beside it; raise HostError naming the path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            if run_as.owner is not None:
                os.fchown(fd, *run_as.owner)
            file.write(content)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HostError(f"cannot write {path}: {error.strerror}") from error
