"""The status page without a browser: how it is put together, its policy, its diagram (issue 5)."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from hatchling.builders.wheel import WheelBuilder

import trio_compute
from trio_compute.http.page import drawing
from trio_compute.http.page.document import HERE, SCRIPTS, combine, document
from trio_compute.http.page.drawing import HALF_HEIGHT, HALF_WIDTH, MEANINGS, PLACES, ROUTES, Edge, edges, points, svg
from trio_compute.lifecycle.status import Status
from trio_compute.lifecycle.transitions import TABLE

SKELETON = "<style>{{style}}</style>{{diagram}}<script>{{script}}</script>"
FILES = ["index.html", "style.css", *SCRIPTS]
SVG = Xml.fromstring(svg())


def sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def rules(policy: str) -> dict[str, str]:
    return dict(rule.split(" ", 1) for rule in policy.split("; "))


class TestDocument:
    def test_every_part_is_in_its_place(self) -> None:
        made = combine(SKELETON, style="a{}", script="b()", diagram="<svg/>")
        assert made.body == b"<style>a{}</style><svg/><script>b()</script>"

    def test_the_policy_names_what_is_between_the_tags(self) -> None:
        """A hash that is wrong would leave the page without style or script."""
        text = document().body.decode()
        for tag, rule in (("style", "style-src"), ("script", "script-src")):
            (inner,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
            assert rules(document().policy)[rule] == f"'sha256-{sha256(inner)}'"

    def test_the_policy_allows_nothing_else(self) -> None:
        policy = rules(document().policy)
        assert {name: rule for name, rule in policy.items() if name not in {"script-src", "style-src"}} == {
            "default-src": "'none'",
            "connect-src": "'self'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
            "require-trusted-types-for": "'script'",
            "trusted-types": "'none'",
        }
        assert "unsafe" not in document().policy

    @pytest.mark.parametrize(
        "parts", [{"script": "'</Script>'"}, {"script": "<!--"}, {"script": "\r"}, {"style": "</style>"}]
    )
    def test_a_part_that_would_end_too_early_is_refused(self, parts: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="a part of the page"):
            combine(SKELETON, **{"style": "", "script": "", "diagram": "", **parts})

    @pytest.mark.parametrize("skeleton", [SKELETON.replace("{{style}}", ""), SKELETON + "{{diagram}}"])
    def test_a_place_that_is_missing_or_twice_there_is_refused(self, skeleton: str) -> None:
        with pytest.raises(ValueError, match="not one place"):
            combine(skeleton, style="", script="", diagram="")

    @pytest.mark.parametrize("name", FILES)
    def test_no_file_does_what_the_page_promises_not_to_do(self, name: str) -> None:
        text = (HERE / name).read_text("utf-8")
        banned = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|Storage\b|cookie|indexedDB"
        assert not re.findall(banned, text)
        assert not re.findall(r"""\s(on[a-z]+|style)=["']""", text)
        assert len(text.splitlines()) <= 400

    def test_the_waterfall_knows_only_phases_that_exist(self) -> None:
        table = re.search(r"const PHASES = \{(.*?)\};", (HERE / "waterfall.js").read_text("utf-8"), re.DOTALL)
        assert table is not None
        names = re.findall(r'^  "?([a-z_.]+)"?:', table[1], re.MULTILINE)
        source = "".join(path.read_text("utf-8") for path in Path(trio_compute.__file__).parent.rglob("*.py"))
        assert names
        assert not [name for name in names if f'("{name}"' not in source]

    def test_every_element_that_the_script_looks_for_is_in_the_page(self) -> None:
        script = "".join((HERE / name).read_text("utf-8") for name in SCRIPTS)
        wanted = set(re.findall(r'(?:\$|say|showText)\("([a-z-]+)"', script))
        assert wanted <= set(re.findall(r' id="([a-z-]+)"', document().body.decode()))

    def test_the_files_are_in_the_wheel(self) -> None:
        root = Path(trio_compute.__file__).parents[1]
        packed = {file.distribution_path for file in WheelBuilder(str(root)).recurse_included_files()}
        assert {f"trio_compute/http/page/{name}" for name in FILES} <= packed


def drawn(kind: str) -> list[Xml.Element]:
    return [group for group in SVG.iter("g") if kind in (group.get("class") or "").split()]


class TestDiagram:
    def test_it_has_the_states_of_the_table(self) -> None:
        assert [box.get("data-state") for box in drawn("state")] == [status.value for status in Status]

    def test_it_has_the_changes_of_the_table(self) -> None:
        """What leaves the status as it is is no change."""
        shown = {
            (edge.get("data-from"), event, edge.get("data-to"))
            for edge in drawn("edge")
            for event in (edge.get("data-events") or "").split(", ")
        }
        assert shown == {
            (source.value, event.__name__, target.value)
            for (source, event), target in TABLE.items()
            if source is not target
        }

    def test_a_line_is_left_out_at_first_only_if_it_leads_to_failure_or_the_end(self) -> None:
        targets = {edge.get("data-to") for edge in drawn("exit")}
        assert targets == {"failed", "termination_pending_fast", "termination_pending_immediate"}
        reachable = {edge.get("data-to") for edge in drawn("edge") if edge not in drawn("exit")}
        assert {*reachable, *targets, "empty"} == {status.value for status in Status}

    def test_every_state_has_a_place_of_its_own_and_a_meaning(self) -> None:
        assert set(PLACES) == set(MEANINGS) == set(Status)
        assert len(set(PLACES.values())) == len(Status)

    def test_every_change_has_a_route_and_no_route_is_left_over(self) -> None:
        assert set(ROUTES) == set(edges())

    @pytest.mark.parametrize("edge", edges(), ids=lambda edge: f"{edge[0].value}-{edge[1].value}")
    def test_a_line_leads_from_box_to_box_and_crosses_none(self, edge: Edge) -> None:
        line = points(edge)
        assert all(one[0] == other[0] or one[1] == other[1] for one, other in pairwise(line)), "not at right angles"
        assert on_the_border(edge[0], line[0])
        assert on_the_border(edge[1], line[-1])
        for one, other in pairwise(line):
            assert not [status for status in Status if crosses(status, one, other)]

    def test_everything_is_within_the_view(self) -> None:
        left, top, width, height = map(float, drawing.VIEW.split())
        corners = [point for edge in edges() for point in points(edge)]
        assert all(left < x < left + width and top < y < top + height for x, y in corners)

    def test_a_change_without_a_route_is_still_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drawing, "ROUTES", {})
        assert len([group for group in Xml.fromstring(svg()).iter("g") if group.get("data-from")]) == len(edges())


def box(status: Status) -> tuple[float, float, float, float]:
    x, y = drawing._centre(status)
    return x - HALF_WIDTH, y - HALF_HEIGHT, x + HALF_WIDTH, y + HALF_HEIGHT


def on_the_border(status: Status, point: tuple[float, float]) -> bool:
    left, top, right, bottom = box(status)
    x, y = point
    return (x in {left, right} and top < y < bottom) or (y in {top, bottom} and left < x < right)


def crosses(status: Status, one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Tell whether a straight stretch runs through the inside of a box."""
    left, top, right, bottom = box(status)
    (x0, x1), (y0, y1) = sorted((one[0], other[0])), sorted((one[1], other[1]))
    return x0 < right and x1 > left and y0 < bottom and y1 > top
