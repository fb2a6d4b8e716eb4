"""The status page on small screens, in the dark, by keyboard, for readers of screens (issue 5)."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.looks import Page
from tests.browser.served import START, Served, serve
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status


def everything(served: Served) -> None:
    """Give the page all that it can show, the longest texts included."""
    served.measure(*START, ("a_phase_with_a_very_long_name_that_nobody_would_choose", 0.7, 0.1, "start_postgres"))
    served.publish("prewarm", {"status": "prewarming", "pages_done": 1, "pages_total": 10**7, "pages_per_second": 1e6})
    served.apply(ev.StartFailed(error="x" * 500 + "\n" + "many words " * 50))


class TestSizesAndColours:
    @pytest.mark.parametrize("width", [320, 400, 768, 1200])
    def test_nothing_is_wider_than_the_screen(self, page: Page, width: int) -> None:
        page.resize(width)
        with serve(Status.INIT) as served:
            page.open(served)
            page.until(lambda: page.is_shown("ask"))
            assert page.run("return document.documentElement.scrollWidth") <= width
            page.give(served.good_token)
            everything(served)
            page.until_state("failed")
            page.until(lambda: len(page.texts("#waterfall li")) == 4)
            assert page.run("return document.documentElement.scrollWidth") <= width
            served.stop()
            page.until(lambda: page.is_shown("gone"))
            assert page.run("return document.documentElement.scrollWidth") <= width

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_colours_are_those_wanted_and_texts_can_be_read(self, page: Page, scheme: str) -> None:
        """WCAG 2.2, 1.4.3: a contrast of at least 4.5."""
        page.emulate(prefers_color_scheme=scheme)
        try:
            with serve(Status.INIT) as served:
                page.show(served)
                everything(served)
                page.until_state("failed")
                background = page.run("return getComputedStyle(document.body).backgroundColor")
                assert (luminance(background) > 0.5) is (scheme == "light")
                assert not [found for found in page.run(CONTRASTS) if contrast(*found[1:]) < 4.5]
        finally:
            page.emulate()

    def test_nothing_moves_for_whom_does_not_want_it(self, page: Page) -> None:
        moving = "return getComputedStyle(document.querySelector('#state .dot')).animationName"
        with serve(Status.INIT) as served:
            page.show(served)
            page.until(lambda: page.run(moving) == "breathe")
            page.emulate(prefers_reduced_motion="reduce")
            try:
                assert page.run(moving) == "none"
            finally:
                page.emulate()


# Every element with a text of its own: its text, colour and the first background below it that is not transparent.
CONTRASTS = """
const background = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  }
};
return Array.from(document.querySelectorAll('body *'))
  .filter((element) => element.checkVisibility() && !element.closest('svg')
    && Array.from(element.childNodes).some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()))
  .map((element) => [element.textContent, getComputedStyle(element).color, background(element)]);
"""


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`."""
    values = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


class TestKeyboardAndReaders:
    def test_the_keyboard_is_enough(self, page: Page) -> None:
        with serve() as served:
            page.open(served)
            page.until(lambda: page.focused() == "token")
            assert has_visible_focus(page)
            page.press(served.good_token, Keys.TAB)
            assert page.focused() == "open"
            assert has_visible_focus(page)
            page.press(Keys.ENTER)
            page.until(lambda: page.is_shown("view") and page.focused() == "headline")
            tab_to(page, "forget")
            served.stop()
            page.until(lambda: page.is_shown("retry-now"))
            tab_to(page, "retry-now")
            tab_to(page, "forget")
            page.press(Keys.SPACE)
            page.until(lambda: page.focused() == "token")

    def test_every_field_and_region_has_a_name(self, page: Page) -> None:
        with serve() as served:
            page.open(served)
            page.until(lambda: page.is_shown("ask"))
            assert page.element("token").accessible_name == "Token"
            page.give(served.good_token)
            page.until_state("running")
            assert all(section.accessible_name for section in page.elements("#view section"))
            assert page.element("diagram").accessible_name == "States of a compute"
            assert [heading.text for heading in page.elements("h1")] == ["Compute"]

    def test_a_change_of_state_is_read_aloud_and_the_clock_is_not(self, page: Page) -> None:
        with serve() as served:
            page.show(served)
            assert page.element("state").get_attribute("aria-live") == "polite"
            assert page.element("gone").get_attribute("role") == "alert"
            spoken = "return document.getElementById(arguments[0]).closest('[role=status], [role=alert]') !== null"
            names = ("state-text", "gone-text", "since", "activity", "retry-text")
            shown = {name: page.run(spoken, name) for name in names}
            assert [name for name, is_spoken in shown.items() if is_spoken] == ["state-text", "gone-text"]


def has_visible_focus(page: Page) -> bool:
    look = "const style = getComputedStyle(document.activeElement); return [style.outlineStyle, style.outlineWidth]"
    style, width = page.run(look)
    return style != "none" and float(width.removesuffix("px")) >= 2


def tab_to(page: Page, name: str) -> None:
    """Reach an element with the tabulator, within as many steps as there are places and the browser's own."""
    for _ in range(6):
        page.press(Keys.TAB)
        if page.focused() == name:
            assert has_visible_focus(page)
            return
    raise AssertionError(f"{name} cannot be reached")
