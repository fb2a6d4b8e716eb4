"""The status page asks for a token when it needs one, and keeps it to itself (issue 5)."""

from __future__ import annotations

import pytest

from tests.browser.looks import Page
from tests.browser.served import Interference, serve
from tests.component.http.tokens import compute_claims, mint
from tests.fakes import specs
from trio_compute.lifecycle import events as ev


class TestToken:
    def test_it_asks_for_one(self, page: Page) -> None:
        with serve() as served:
            page.open(served)
            page.until(lambda: page.is_shown("ask"))
            assert not page.is_shown("view")
            assert page.text("ask-problem") == ""

    def test_it_shows_the_compute_once_it_has_one(self, page: Page) -> None:
        with serve() as served:
            page.show(served)
            assert not page.is_shown("ask")
            page.until_state("running")
            page.until(lambda: page.text("tenant") == specs.TENANT)
            assert page.text("timeline") == specs.TIMELINE
            assert page.driver.title == "running · Compute"

    @pytest.mark.parametrize(
        ("token", "reason"),
        [
            ("nonsense", "failed to verify authorization token (401)"),
            (mint(compute_claims(compute_id="another")), "invalid compute ID in authorization token claims (403)"),
            ("two words", "This is not a token"),
        ],
    )
    def test_it_says_why_one_will_not_do_and_asks_again(self, page: Page, token: str, reason: str) -> None:
        with serve() as served:
            page.open(served)
            page.until(lambda: page.is_shown("ask"))
            page.give(token)
            page.until(lambda: reason in page.text("ask-problem"))
            assert page.is_shown("ask")
            page.give(f"Bearer {served.good_token}")
            page.until_state("running")

    def test_it_asks_for_none_where_none_is_needed(self, page: Page) -> None:
        with serve(lakebase_mode=True, instance_id="instance-1") as served:
            page.open(served)
            page.until_state("running")
            assert not page.is_shown("forget")

    def test_it_asks_again_when_the_token_is_no_longer_accepted(self, page: Page) -> None:
        interference = Interference()
        with serve(interference=interference) as served:
            page.show(served)
            interference.refusal = 401
            served.apply(ev.ApplyQueued())
            page.until(lambda: page.is_shown("ask"))
            assert page.text("ask-problem") == "The compute no longer accepts this token: for a reason (401)"
            assert not page.is_shown("view")
            assert specs.TENANT not in page.run("return document.getElementById('ask').textContent")

    def test_it_is_kept_in_memory_only(self, page: Page) -> None:
        with serve() as served:
            page.show(served)
            token = served.good_token
            stores = (
                "return [localStorage.length, sessionStorage.length, document.cookie, location.href, history.state]"
            )
            assert page.run(stores) == [0, 0, "", served.url, None]
            assert page.run("return indexedDB.databases().then((found) => found.length)") == 0
            assert page.driver.get_cookies() == []
            assert page.run("return document.getElementById('token').value") == ""
            assert token not in page.driver.page_source
            globals_ = (
                "return Object.keys(window).filter((key) => typeof window[key] === 'string').map((key) => window[key])"
            )
            assert token not in page.run(globals_)
            asked = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
            assert asked
            assert not [address for address in asked if token in address or not address.startswith(served.url)]
            page.driver.refresh()
            page.until(lambda: page.is_shown("ask"))

    def test_it_can_be_forgotten(self, page: Page) -> None:
        with serve() as served:
            page.show(served)
            page.element("forget").click()
            page.until(lambda: page.is_shown("ask"))
            assert not page.is_shown("view")
            page.give(served.good_token)
            page.until_state("running")
