"""What the status page shows of a compute, live, in Chromium against the real servers (issue 5)."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from tests.browser.looks import Page
from tests.browser.served import START, Interference, serve
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import DatabaseFailure
from trio_compute.lifecycle.status import Status
from trio_compute.telemetry.metrics import ACTIVITY_CHECK_DURATION, CURRENT_DOWNTIME, TOTAL_DOWNTIME, metrics

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


class TestState:
    @pytest.mark.parametrize("status", Status)
    def test_every_state_is_lit(self, page: Page, status: Status) -> None:
        with serve(status) as served:
            page.show(served)
            page.until_state(status.value)
            following = {edge.get_attribute("data-from") for edge in page.elements(".edge.next")}
            assert following == ({status.value} if status is not Status.TERMINATED else set())

    def test_a_transition_is_followed_live(self, page: Page) -> None:
        with serve() as served:
            page.show(served)
            for event, state in ((ev.ApplyQueued(), "configuration_pending"), (ev.ApplyBegan(), "configuration")):
                served.apply(event)
                page.until_state(state)
            spec = served.do(lambda: served.world.compute.state.spec)
            served.apply(ev.Applied(spec=spec))
            page.until_state("running")
            assert "configuration → running Applied" in page.texts("#changes li")[0]
            (taken,) = page.elements(".edge.taken")
            assert (taken.get_attribute("data-from"), taken.get_attribute("data-to")) == ("configuration", "running")

    def test_ways_to_failure_and_end_are_drawn_for_the_present_state_only(self, page: Page) -> None:
        with serve() as served:
            page.show(served)
            visible = page.run(
                "return Array.from(document.querySelectorAll('.edge.exit'))"
                ".filter((edge) => getComputedStyle(edge).visibility === 'visible').map((edge) => edge.dataset.from)"
            )
            assert visible
            assert set(visible) == {"running"}

    def test_what_is_not_known_is_not_shown_as_nothing(self, page: Page) -> None:
        with serve(Status.EMPTY) as served:
            page.show(served)
            page.until(lambda: page.text("downtime-now") == "not measured yet")
            assert page.text("downtime-total") == "not measured yet"
            assert page.text("activity") == "none seen yet"
            assert page.text("tenant") == "none"
            page.until(lambda: page.text("start-text") == "nothing was measured yet")

    def test_activity_and_downtime_are_shown(self, page: Page) -> None:
        with serve() as served:
            served.apply(ev.Active(at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=90)))
            metrics.observe(ACTIVITY_CHECK_DURATION, 0.01)
            metrics.increment(TOTAL_DOWNTIME, 61500)
            page.show(served)
            page.until(lambda: page.text("downtime-now") == "none")
            assert page.text("downtime-total") == "1 min 1 s"
            assert page.text("activity").startswith("1 min ")
            metrics.set(CURRENT_DOWNTIME, 2500.0)
            page.until(lambda: page.text("downtime-now") == "2.50 s")

    def test_a_compute_without_our_routes_is_shown_as_far_as_it_can_be(self, page: Page) -> None:
        with serve(without=frozenset({"/lfc/prewarm", "/spans", "/metrics"})) as served:
            page.show(served)
            page.until(lambda: page.text("prewarm-text") == "not available")
            page.until(lambda: page.text("start-text") == "not available")
            assert page.text("downtime-now") == "not known yet"
            page.until_state("running")


class TestDatabases:
    def test_databases_that_failed_are_listed_as_text_and_go_when_all_is_well(self, page: Page) -> None:
        """T-08: a name is whatever a tenant likes."""
        with serve() as served:
            page.show(served)
            page.until(lambda: page.text("databases-text") == "all are as the spec wants them")
            failed = (DatabaseFailure(HOSTILE, "ChangeSchemaPerms", "could not do it: locked"),)
            served.do(lambda: setattr(served.world.compute.notices, "databases_failed", failed))
            served.apply(ev.ApplyQueued())
            page.until(lambda: page.texts("#databases li span")[:1] == [HOSTILE])
            assert "could not do it: locked" in page.texts("#databases li")[0]
            assert page.text("databases-text") == "The next apply tries again."
            assert page.run("return window.hacked") is None
            served.do(lambda: setattr(served.world.compute.notices, "databases_failed", ()))
            served.apply(ev.ApplyBegan())
            page.until(lambda: page.texts("#databases li") == [])


def bars(page: Page) -> list[tuple[float, float]]:
    """Return where each bar begins and how long it is, as shares of its track."""
    script = """return Array.from(document.querySelectorAll('#waterfall .bar'), (bar) => {
        const track = bar.parentElement.getBoundingClientRect(), own = bar.getBoundingClientRect();
        return [(own.left - track.left) / track.width, own.width / track.width];
    })"""
    return [(left, width) for left, width in page.run(script)]


class TestWaterfall:
    def test_it_shows_the_phases_of_the_start(self, page: Page) -> None:
        with serve() as served:
            later = ("reconfigure", 3.0, 1.0, None)
            served.measure(*START, ("total_startup", 0.0, 1.0, None), later)
            page.show(served)
            page.until(lambda: page.text("start-text") == "It took 1.00 s.")
            names = ["whole start", "prepare the data directory", "get the basebackup", "start Postgres"]
            assert page.texts("#waterfall .name") == names
            assert page.texts("#waterfall .time") == ["1.00 s", "500 ms", "300 ms", "250 ms"]
            for (left, width), (start, share) in zip(
                bars(page), [(0, 1), (0.1, 0.5), (0.2, 0.3), (0.6, 0.25)], strict=True
            ):
                assert left == pytest.approx(start, abs=0.01)
                assert width == pytest.approx(share, abs=0.01)

    def test_a_pooled_compute_starts_when_its_spec_has_come(self, page: Page) -> None:
        with serve() as served:
            served.measure(("wait_for_spec", 0.0, 100.0, None), ("start_postgres", 100.5, 0.5, None))
            page.show(served)
            page.until(lambda: page.texts("#waterfall .name") == ["start Postgres"])
            assert bars(page)[0] == (pytest.approx(0.5, abs=0.01), pytest.approx(0.5, abs=0.01))

    def test_a_phase_that_runs_has_no_duration_yet(self, page: Page) -> None:
        with serve(Status.INIT) as served:
            page.show(served)
            served.measure(*START[:2], ("start_postgres", 0.6, None, None))
            page.until(lambda: len(page.texts("#waterfall .time")) == 3)
            assert page.texts("#waterfall .time")[-1] == "running"
            assert page.text("start-text") == "It goes on."

    def test_phases_have_names_for_people(self, page: Page) -> None:
        with serve() as served:
            served.measure(
                ("apply_spec_sql", 0.0, 1.0, None), ("catalog.CreateAndAlterRoles", 0.1, 0.5, "apply_spec_sql")
            )
            page.show(served)
            page.until(lambda: page.texts("#waterfall .name") == ["apply the catalog", "create and alter roles"])
            assert page.elements("#waterfall .name")[1].get_attribute("title") == "catalog.CreateAndAlterRoles"

    def test_of_very_many_phases_the_longest_are_shown(self, page: Page) -> None:
        with serve() as served:
            many = [(f"catalog.{number}", number / 100, (number + 1) / 1000, None) for number in range(90)]
            served.measure(*many, ("total_startup", 0.0, 1.0, None))
            page.show(served)
            page.until(lambda: page.text("start-text") == "It took 1.00 s. 50 shorter phases are not shown.")
            assert len(page.texts("#waterfall li")) == 41


class TestErrors:
    def test_a_failed_start_says_why(self, page: Page) -> None:
        with serve(Status.INIT) as served:
            page.show(served)
            served.measure(*START, failed=["start_postgres"])
            served.apply(ev.StartFailed(error="no space left on device"))
            page.until_state("failed")
            assert page.text("state-error") == "no space left on device"
            page.until(lambda: page.texts("#errors .message") == ["no space left on device"])
            page.until(lambda: page.texts("#waterfall .failed .name") == ["start Postgres (failed)"])

    def test_errors_from_before_the_page_was_opened_are_there_newest_first(self, page: Page) -> None:
        with serve() as served:
            for text in ("first", "second", "second"):
                served.apply(ev.ApplyQueued(), ev.ApplyBegan(), ev.ApplyFailed(error=text))
            spec = served.do(lambda: served.world.compute.state.spec)
            served.apply(ev.ApplyQueued(), ev.ApplyBegan(), ev.Applied(spec=spec))
            page.show(served)
            page.until(lambda: page.texts("#errors .message") == ["second", "first"])
            assert "failed, 2 times" in page.texts("#errors li")[0]
            assert not page.is_shown("state-error")

    def test_one_that_no_event_tells_of_any_more_is_still_shown(self, page: Page) -> None:
        with serve(Status.FAILED) as served:
            for number in range(600):
                served.publish("noise", {"number": number})
            page.show(served)
            page.until(lambda: page.texts("#errors .message") == ["could not start"])
            assert "at an unknown time" in page.texts("#errors li")[0]

    def test_whatever_a_text_holds_it_is_shown_as_text(self, page: Page) -> None:
        with serve(Status.INIT) as served:
            page.show(served)
            served.measure((HOSTILE, 0.0, 1.0, None))
            served.publish("prewarm", {"status": "failed", "error": HOSTILE})
            served.publish(f"other{HOSTILE}", {"status": "failed", "error": HOSTILE})
            served.apply(ev.StartFailed(error=HOSTILE))
            page.until_state("failed")
            page.until(lambda: page.texts("#errors .message") == [HOSTILE] * 3)
            assert page.text("state-error") == HOSTILE
            page.until(lambda: page.texts("#waterfall .name") == [HOSTILE.replace("_", " ")])
            assert HOSTILE in page.text("prewarm-text")
            assert page.run("return [window.hacked, document.images.length, document.scripts.length]") == [None, 0, 1]

    def test_markup_is_refused_even_if_somebody_tries(self, page: Page) -> None:
        """The policy wants trusted types and lets nobody make one."""
        with serve() as served:
            page.show(served)
            attempt = (
                "try { document.body.innerHTML = arguments[0]; return 'taken' } catch (error) { return error.name }"
            )
            assert page.run(attempt, HOSTILE) == "TypeError"
            page.driver.get_log("browser")


class TestPrewarm:
    def test_its_progress_is_followed(self, page: Page) -> None:
        with serve() as served:
            page.show(served)
            served.publish("prewarm", {"status": "prewarming"})
            page.until(lambda: page.text("prewarm-text") == "Running; how far it is, is not known yet.")
            assert page.element("prewarm-progress").get_attribute("value") in {None, "", "0"}
            speed = {"pages_per_second": 1250.0, "estimate_seconds": 6.0}
            served.publish("prewarm", {"status": "prewarming", "pages_done": 2500, "pages_total": 10000, **speed})
            expected = "25 %: 2,500 of 10,000 pages, 1,250 a second, about 6.00 s left."
            page.until(lambda: page.text("prewarm-text") == expected)
            assert page.run("return document.getElementById('prewarm-progress').position") == 0.25
            times = {"state_download_time_ms": 5, "uncompress_time_ms": 1, "prewarm_time_ms": 900}
            served.publish(
                "prewarm", {"status": "completed", "total": 10000, "prewarmed": 9990, "skipped": 10, **times}
            )
            done = "Done: 9,990 of 10,000 pages loaded, 10 skipped. It took 906 ms."
            page.until(lambda: page.text("prewarm-text") == done)
            assert not page.is_shown("prewarm-progress")

    def test_it_is_asked_for_before_any_event_tells_of_it(self, page: Page) -> None:
        interference = Interference()
        interference.answers["/lfc/prewarm"] = (200, b'{"status":"completed","total":8,"prewarmed":8,"skipped":0}')
        with serve(interference=interference) as served:
            page.show(served)
            page.until(lambda: page.text("prewarm-text") == "Done: 8 of 8 pages loaded, 0 skipped.")

    def test_one_read_that_fails_spoils_no_other(self, page: Page) -> None:
        interference = Interference()
        interference.answers = {
            "/lfc/prewarm": (500, b'{"error":"out of order"}'),
            "/spans": (200, b"no json"),
            "/metrics": (503, b""),
        }
        with serve(interference=interference) as served:
            page.show(served)
            page.until(lambda: page.text("prewarm-text") == "could not be read: out of order (500)")
            assert (page.text("start-text"), page.text("downtime-now")) == ("not known yet", "not known yet")
            page.until_state("running")

    @pytest.mark.parametrize(
        ("state", "text"),
        [
            ({"status": "not_prewarmed"}, "Not prewarmed."),
            ({"status": "skipped"}, "Skipped: no state of the cache is stored."),
            ({"status": "cancelled"}, "Cancelled."),
            ({"status": "failed", "error": "403 Forbidden"}, "Failed: 403 Forbidden"),
            ({"status": "something_new"}, "something new"),
        ],
    )
    def test_every_other_state_is_told(self, page: Page, state: dict[str, Any], text: str) -> None:
        with serve() as served:
            served.publish("prewarm", state)
            page.show(served)
            page.until(lambda: page.text("prewarm-text") == text)
