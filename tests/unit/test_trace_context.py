"""W3C trace context (contract 10 §8): what counts as a caller's trace, and what is ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_compute.telemetry.trace_context import Place, TraceContext, parse_trace_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def state_of(*states: str) -> str:
    context = parse_trace_context([PARENT], states)
    assert context is not None, "a bad state must not cost the trace"
    return context.state


def test_a_parent_names_trace_span_and_whether_it_is_recorded() -> None:
    context = parse_trace_context([PARENT])
    assert context == TraceContext(trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex(SPAN), sampled=True, state="")


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_only_the_lowest_flag_says_recorded(flags: str, sampled: bool) -> None:
    context = parse_trace_context([f"00-{TRACE}-{SPAN}-{flags}"])
    assert context is not None
    assert context.sampled is sampled


@pytest.mark.parametrize("parent", [f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be"])
def test_a_later_version_may_go_on(parent: str) -> None:
    assert parse_trace_context([parent]) is not None


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-011",
        f"01-{TRACE}-{SPAN}-01more",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}x-{SPAN}-01",
        f"0g-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"00_{TRACE}_{SPAN}_01",
        f"{PARENT}\n",
        f" {PARENT}",
        f"{PARENT},{PARENT}",
        f"00-{TRACE}-{SPAN}-\N{ARABIC-INDIC DIGIT ZERO}1",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 100_000,
    ],
)
def test_an_invalid_parent_is_no_parent(parent: str) -> None:
    assert parse_trace_context([parent], ["a=b"]) is None


def test_two_parents_are_none() -> None:
    assert parse_trace_context([PARENT, PARENT]) is None
    assert parse_trace_context([]) is None


@given(st.text(max_size=80), st.lists(st.text(max_size=40), max_size=3))
def test_whatever_a_client_sends_nothing_is_raised(parent: str, states: list[str]) -> None:
    parse_trace_context([parent], states)
    state = state_of(*states)
    assert state.isascii()
    assert state.isprintable()


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        (["congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"], "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
        (["a=1", "b=2"], "a=1,b=2"),
        ([" a=1 ,\t b=2,, "], "a=1,b=2"),
        (["fw529a3039@dt=x y", "0tenant@sys=1"], "fw529a3039@dt=x y,0tenant@sys=1"),
        ([], ""),
        ([""], ""),
        (["a=1,a=2"], ""),
        (["A=1"], ""),
        (["a"], ""),
        (["a=b=c"], ""),
        (["a=\x7f"], ""),
        (["a=é"], ""),
        (["1a=2"], ""),
        ([",".join(f"k{n}=v" for n in range(32))], ",".join(f"k{n}=v" for n in range(32))),
        ([",".join(f"k{n}=v" for n in range(33))], ""),
        ([f"a={'x' * 256}"], f"a={'x' * 256}"),
        ([f"a={'x' * 257}"], ""),
        ([",".join(f"k{n}={'x' * 200}" for n in range(3))], ""),
    ],
)
def test_a_state_that_breaks_a_rule_is_left_out(states: list[str], kept: str) -> None:
    assert state_of(*states) == kept


def test_places_share_the_trace_of_where_they_begin_and_draw_their_ids_once() -> None:
    outer = Place(None, "outer")
    inner = Place(Place(outer, None), "inner")
    assert inner.trace_id == outer.trace_id
    assert (len(inner.trace_id), len(inner.span_id)) == (16, 8)
    assert inner.span_id == inner.span_id != outer.span_id
    assert Place(None, "other").trace_id != outer.trace_id
    caller = parse_trace_context([PARENT])
    assert caller is not None
    called = Place(Place(caller, None), "called")
    assert (called.trace_id, called.origin) == (bytes.fromhex(TRACE), caller)
    assert (Place(outer, None).shown, called.above.shown if isinstance(called.above, Place) else "") == ("outer", None)
