"""The exceptions of trio_compute.

ComputeError
├── UsageError      the command line cannot be used            exit 2
├── SpecError       configuration or spec is not acceptable    exit 1, HTTP 400/422
├── StorageError    pageserver, safekeepers or their answers
├── RemoteError     control plane and other HTTP services
├── PostgresError   the postmaster, its tools, or SQL
│   ├── SqlFailed       a statement or a connection, with its SQLSTATE    HTTP 500
│   ├── NotFound        an object that was named does not exist           HTTP 404
│   ├── Conflicting     something is not in a state that allows it        HTTP 409
│   └── TimedOut        Postgres took too long                            HTTP 504
└── HostError       files, users, processes of this machine

Each adapter translates foreign exceptions once, at its edge. Callers decide by type or by attribute, never by text.
"""

from __future__ import annotations


class ComputeError(Exception):
    """Report a failure that the operator of a compute can act upon."""


class UsageError(ComputeError):
    """Report a command line that cannot be used (contract 01 §1.1)."""


class SpecError(ComputeError):
    """Report a configuration that is not acceptable; `path` is the JSON path of the offending value, or empty."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path

    def __str__(self) -> str:
        message = super().__str__()
        return f"{self.path}: {message}" if self.path else message


class StorageError(ComputeError):
    """Report that Neon storage refused, failed, or answered something unusable (contract 07)."""


class RemoteError(ComputeError):
    """Report that an HTTP service such as the control plane failed (contract 01 §8)."""


class PostgresError(ComputeError):
    """Report that Postgres or one of its tools failed."""


class SqlFailed(PostgresError):
    """Report a statement or a connection that failed; `sqlstate` is None if the server could not tell."""

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class NotFound(PostgresError):
    """Report that an object that was named does not exist."""


class Conflicting(PostgresError):
    """Report that an object or the server is not in a state that allows what was asked for."""


class TimedOut(PostgresError):
    """Report that Postgres did not do in time what was asked for, with the reason if it is known."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(f"timed out: {reason}" if reason else "timed out")


class HostError(ComputeError):
    """Report that this machine did not let us do something."""


def cause_chain(error: BaseException) -> str:
    """Return the texts of an error and of its explicit causes, joined by `: `, each said once."""
    texts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        text = _own_text(current)
        if text and not any(text in earlier for earlier in texts):
            texts.append(text)
        current = current.__cause__
    return ": ".join(texts)


def _own_text(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(cause_chain(inner) for inner in error.exceptions))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip() or type(error).__name__
