"""What `trio-compute dev failover` shows of a switch, and how the load counts gaps and losses."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from trio_compute.embedded.dev_failover import run_failover
from trio_compute.embedded.failover import FailoverReport, Stretch
from trio_compute.embedded.failover_chart import svg_chart, text_chart
from trio_compute.embedded.failover_load import Commit, Gap, WriteLoad
from trio_compute.embedded.progress import Progress

SVG = "{http://www.w3.org/2000/svg}"


def report(**changes: Any) -> FailoverReport:
    fields: dict[str, Any] = {
        "rows_written": 1000,
        "rows_lost": 0,
        "write_gap_ms": 120.4,
        "lsn": "0/1",
        "offload": {},
        "prewarm": {},
        "terminate_ms": 50.0,
        "promote": {},
        "timeline": [
            Stretch("primary", "terminate", 1000.0, 50.0),
            Stretch("writes", "no commit <acknowledged>", 1010.0, 120.4),
            Stretch("secondary", "POST /promote", 1050.0, 100.0),
        ],
    }
    return FailoverReport(**{**fields, **changes})


def test_the_text_has_a_line_for_each_stretch_with_its_bar_in_place() -> None:
    lines = text_chart(report()).splitlines()
    assert [line.split("█")[0].split()[0] for line in lines] == ["primary", "writes", "secondary"]
    starts = [line.index("█") for line in lines]
    assert starts == sorted(starts)
    assert starts[0] < starts[2]
    assert lines[1].count("█") > lines[0].count("█")
    assert all(line.endswith(" ms") for line in lines)


def test_a_switch_of_no_time_can_be_drawn() -> None:
    drawn = report(timeline=[Stretch("primary", "terminate", 5.0, 0.0)])
    assert "█" in text_chart(drawn)
    ElementTree.fromstring(svg_chart(drawn))


def test_the_svg_is_well_formed_and_tells_the_figures() -> None:
    root = ElementTree.fromstring(svg_chart(report(rows_lost=2)))
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert "write gap 120 ms, 2 of 1000 acknowledged rows lost" in texts
    assert "no commit <acknowledged>" in texts
    bars = [element for element in root.iter(f"{SVG}rect") if element.get("rx")]
    assert len(bars) == 3
    width = float(root.attrib["viewBox"].split()[2])
    assert all(float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width for bar in bars)


def test_the_gap_is_the_longest_pause_between_any_two_commits() -> None:
    load = WriteLoad(["postgresql://u@h/d"], writers=2)
    assert load.gap() == Gap(0.0, 0.0)
    load.commits = [Commit(0, 0, 1.0, 0), Commit(1, 0, 5.0, 1), Commit(0, 1, 1.5, 0)]
    assert load.gap() == Gap(1.5, 3.5)


@pytest.mark.parametrize(
    "arguments", [["--writers", "0"], ["--writers", "x"], ["--settle", "-1"], ["--settle", "nan"], ["--postgres", "9"]]
)
def test_a_flag_that_cannot_be_used_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_failover(arguments, Progress())
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err
