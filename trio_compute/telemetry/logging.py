"""Structured log lines: a stable event name, then key=value pairs, redacted, to one sink (contract 10 §9)."""

from __future__ import annotations

import datetime as dt
import json
import logging
from contextvars import ContextVar
from typing import Final

from trio_compute.telemetry.redaction import redact
from trio_compute.telemetry.sink import Sink

ZERO_WIDTH_SPACE: Final = "\u200b"
LEVELS: Final = {"trace": 5, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "off": 100}

bound_ids: ContextVar[dict[str, str] | None] = ContextVar("bound_ids", default=None)
sink = Sink(2)
_threshold = [LEVELS["info"]]


class Logger:
    """Write events of one part of the program."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, /, **values: object) -> None:
        """Log what only a developer wants to know."""
        self._log("debug", event, values)

    def info(self, event: str, /, **values: object) -> None:
        """Log what an operator may want to know."""
        self._log("info", event, values)

    def warning(self, event: str, /, **values: object) -> None:
        """Log what may need attention."""
        self._log("warning", event, values)

    def error(self, event: str, /, **values: object) -> None:
        """Log what needs attention."""
        self._log("error", event, values)

    def _log(self, level: str, event: str, values: dict[str, object]) -> None:
        if LEVELS[level] >= _threshold[0]:
            sink.write(format_line(level, f"{self._name}: {event}", {**(bound_ids.get() or {}), **values}))


def get_logger(name: str) -> Logger:
    """Return the logger of a part of the program."""
    return Logger(name)


def format_line(level: str, event: str, values: dict[str, object]) -> bytes:
    """Return one redacted log line; line breaks become zero-width spaces so that a record stays one line."""
    moment = dt.datetime.now(dt.UTC)
    pairs = "".join(f" {name}={_value(value)}" for name, value in values.items())
    text = _on_one_line(redact(f"{event}{pairs}"))
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}Z {level.upper()} {text}\n".encode(errors="replace")


def _value(value: object) -> str:
    if isinstance(value, int | float):
        return str(value)
    # Redacted before quoting too: escapes would hide a secret from the redactor.
    text = _on_one_line(redact(str(value)))
    return text if text and not any(c in text for c in ' "=\t') else json.dumps(text, ensure_ascii=False)


def _on_one_line(text: str) -> str:
    return text.replace("\r", "").replace("\n", ZERO_WIDTH_SPACE)


def set_level(log_filter: str) -> None:
    """Set the lowest level that is written from a RUST_LOG-like filter; per-target directives are ignored."""
    words = [part.strip().lower() for part in log_filter.split(",")]
    level = next((word for word in words if word in LEVELS), "info")
    _threshold[0] = LEVELS[level]


class _Bridge(logging.Handler):
    """Bring warnings and errors of the libraries into our log."""

    def emit(self, record: logging.LogRecord) -> None:
        level = {"CRITICAL": "error"}.get(record.levelname, record.levelname.lower())
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {record.exc_info[1]!r}"
        Logger(record.name)._log(level if level in LEVELS else "info", text, {})


def adopt_library_logs() -> None:
    """Send warnings and errors of libraries through our sink instead of straight to stderr."""
    root = logging.getLogger()
    root.handlers[:] = [_Bridge()]
    root.setLevel(logging.WARNING)
