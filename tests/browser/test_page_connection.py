"""The status page follows a compute, loses it and finds it again (issue 5)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.browser.looks import Page
from tests.browser.served import Interference, serve
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status


class TestConnection:
    def test_a_compute_that_is_gone_is_shown_as_gone(self, page: Page) -> None:
        with serve() as served:
            page.show(served)
            served.stop()
            page.until(lambda: page.is_shown("gone"))
            assert page.text("gone-title") == "The compute does not answer."
            assert "in state running" in page.text("gone-text")
            assert page.text("state-text") == "running (last known)"
            assert page.text("connection-text") == "no connection"
            page.until(lambda: "Trying again in" in page.text("retry-text"))

    def test_one_that_was_terminated_has_ended(self, page: Page) -> None:
        with serve() as served:
            page.show(served)

            def terminate() -> None:
                served.world.compute.request_termination(immediate=False)
                served.world.finish_termination(ev.Terminated(error="the final sync failed"))

            served.do(terminate)
            page.until_state("terminated")
            page.until(lambda: page.texts("#errors .message") == ["the final sync failed"])
            served.stop()
            page.until(lambda: page.is_shown("gone"))
            assert page.text("gone-title") == "The compute has ended."

    def test_it_comes_back_with_the_compute(self, page: Page) -> None:
        with serve() as served:
            port = served.port
            page.show(served)
            served.stop()
            page.until(lambda: page.is_shown("gone"))
        with serve(Status.FAILED, external_http_port=port):
            page.try_now()
            page.until_state("failed")
            assert not page.is_shown("gone")
            assert page.text("connection-text") == "live"

    def test_a_stream_that_breaks_off_is_resumed_where_it_was(self, page: Page) -> None:
        interference = Interference()
        with serve(interference=interference) as served:
            page.show(served)
            served.apply(ev.ApplyQueued(), ev.ApplyBegan(), ev.ApplyFailed(error="before"))
            page.until(lambda: page.texts("#errors .message") == ["before"])
            newest = served.do(lambda: served.world.compute.feed.newest)

            def break_off_and_fail() -> None:
                interference.break_off()
                for event in (ev.ApplyQueued(), ev.ApplyBegan(), ev.ApplyFailed(error="meanwhile")):
                    served.world.compute.apply(event)

            served.do(break_off_and_fail)
            page.until(lambda: page.texts("#errors .message") == ["meanwhile", "before"])
            queries = [query for _, query in interference.asked]
            assert queries[0] == queries[1] == "after=0"
            assert queries[-1] == f"after={newest}"
            assert not page.is_shown("gone")

    @pytest.mark.slow
    def test_the_pauses_between_attempts_grow(self, page: Page) -> None:
        interference = Interference()
        with serve(interference=interference) as served:
            page.show(served)

            def fail() -> None:
                interference.refusal = 503
                interference.asked.clear()
                interference.break_off()

            served.do(fail)
            page.until(lambda: len(interference.asked) >= 3)
            moments = [moment for moment, _ in interference.asked]
            first, second = (later - earlier for earlier, later in pairwise(moments[:3]))
            # At least: how late they come is the machine's affair.
            assert first > 0.5
            assert second > 1.2
            assert page.text("gone-title") == "The compute cannot be followed."
            assert "Its answer is: for a reason (503)." in page.text("gone-text")
            interference.refusal = None
            page.try_now()
            page.until(lambda: page.text("connection-text") == "live")
