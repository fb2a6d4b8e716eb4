"""Our own log lines: one per record, levels, no secrets (contract 10 §9, 01 §2)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.telemetry import logging as telemetry
from trio_compute.telemetry.logging import bound_ids, format_line, get_logger, set_level
from trio_compute.telemetry.redaction import redact


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Give what the loggers write, and the level back afterwards."""
    written: list[str] = []

    class Lines:
        def write(self, record: bytes) -> None:
            written.append(record.decode())

    monkeypatch.setattr(telemetry, "sink", Lines())
    yield written
    set_level("info")


def text_of(line: bytes) -> str:
    return line.decode().split(" ", 2)[2]


def test_a_line_has_time_level_name_event_and_values(lines: list[str]) -> None:
    get_logger("part").info("it happened", number=5, text="two words", empty="", plain="word")
    moment, level, text = lines[0].split(" ", 2)
    assert len(moment) == len("2026-01-15T12:00:00.000000Z")
    assert moment.endswith("Z")
    assert level == "INFO"
    assert text == 'part: it happened number=5 text="two words" empty="" plain=word\n'


def test_ids_that_are_bound_are_in_every_line(lines: list[str]) -> None:
    token = bound_ids.set({"tenant": "t1"})
    get_logger("part").info("event", a=1)
    bound_ids.reset(token)
    get_logger("part").info("event")
    assert lines[0].endswith("part: event tenant=t1 a=1\n")
    assert lines[1].endswith("part: event\n")


@pytest.mark.parametrize("text", ["one\ntwo", "one\r\ntwo", "a word\nand more", '"quoted"\nline', "\n"])
def test_a_line_break_becomes_a_zero_width_space(text: str) -> None:
    """10 §9: a record stays one line that can be found."""
    for line in (format_line("info", text, {}), format_line("info", "event", {"value": text})):
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert b"\r" not in line
        assert "\u200b" in line.decode()
        assert b"\\n" not in line


@given(st.text(), st.dictionaries(st.from_regex(r"\A[a-z]+\Z"), st.text(), max_size=3))
def test_a_record_is_always_exactly_one_line(event: str, values: dict[str, object]) -> None:
    line = format_line("info", event, values)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert b"\r" not in line


def test_text_that_cannot_be_encoded_is_still_logged() -> None:
    assert b"?" in format_line("info", "lone \ud800", {"a": "\udcff"})


@pytest.mark.parametrize(
    "secret", ["plain-secret", 'quo"ted-secret', "back\\slash-secret", "two\nline-secret", "tab\tsecret"]
)
@pytest.mark.parametrize("template", ["{}", "a value with {} inside", '"{}"', "key={}"])
def test_a_secret_is_redacted_however_its_value_is_quoted(secret: str, template: str) -> None:
    redact.learn([secret])
    for line in (
        format_line("info", template.format(secret), {}),
        format_line("info", "e", {"v": template.format(secret)}),
    ):
        assert "secret" not in line.decode()
        assert "[redacted]" in line.decode()


@pytest.mark.parametrize(
    ("log_filter", "written"),
    [
        ("trace", "debug info warning error"),
        ("debug", "debug info warning error"),
        ("info", "info warning error"),
        ("INFO", "info warning error"),
        ("warn", "warning error"),
        ("warning", "warning error"),
        ("error", "error"),
        ("off", ""),
        ("", "info warning error"),
        ("nonsense", "info warning error"),
        ("hyper=debug", "info warning error"),
        ("hyper=trace,error", "error"),
        (" debug , tokio=warn", "debug info warning error"),
        ("compute_ctl::http=debug,info,[span]=trace", "info warning error"),
    ],
)
def test_the_level_filter(lines: list[str], log_filter: str, written: str) -> None:
    set_level(log_filter)
    log = get_logger("part")
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)("event")
    assert [line.split(" ")[1].lower() for line in lines] == written.split()


def test_warnings_of_libraries_come_the_same_way(lines: list[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        telemetry.adopt_library_logs()
        logging.getLogger("library").warning("mind %s", "the gap")
        logging.getLogger("library").critical("broken")
        logging.getLogger("library").info("chatter")
        try:
            raise ValueError("reason")
        except ValueError:
            logging.getLogger("library").exception("failed")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    texts = [line.split(" ", 1)[1] for line in lines]
    assert texts[:2] == ["WARNING library: mind the gap\n", "ERROR library: broken\n"]
    assert len(texts) == 3
    assert "reason" in texts[2]
    assert "Traceback" not in texts[2]
