"""Spans on the wire, read back with OpenTelemetry's own library (contract 10 §8)."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.unit.test_trace_context import PARENT, SPAN, TRACE
from trio_compute.telemetry.otlp import NAMES, Finished, encode, is_exported
from trio_compute.telemetry.redaction import redact
from trio_compute.telemetry.spans import Recorder, Span
from trio_compute.telemetry.trace_context import Place, parse_trace_context

ORIGIN_NS = 1_700_000_000_123_456_789


def decoded(*spans: Finished, **resource: str) -> Any:
    """Return the one scope of a request as the library reads it; nothing in it may be unknown."""
    request = ExportTraceServiceRequest.FromString(encode(spans, resource=resource, origin_ns=ORIGIN_NS))
    (resource_spans,) = request.resource_spans
    assert {a.key: a.value.string_value for a in resource_spans.resource.attributes} == resource
    (scope_spans,) = resource_spans.scope_spans
    assert scope_spans.scope.name == "trio_compute"
    for message in (request, resource_spans, scope_spans, *scope_spans.spans):
        assert len(UnknownFieldSet(message)) == 0
    return list(scope_spans.spans)


def finished(name: str = "work", *, above: Any = None, failed: bool = False, **attributes: Any) -> Finished:
    span = Span(name=name, start_seconds=1.5, duration_seconds=0.25, failed=failed, attributes=attributes)
    return Finished(span, Place(above, name))


def test_a_span_has_ids_name_and_the_time_of_the_wall() -> None:
    """Design §6: the wall clock is asked once, everything else is distance on the monotonic clock."""
    work = finished()
    (span,) = decoded(work, **{"service.name": "compute_ctl"})
    assert (span.trace_id, span.span_id, span.parent_span_id) == (work.place.trace_id, work.place.span_id, b"")
    assert (span.name, span.kind, span.status.code, span.trace_state) == ("work", 1, 0, "")
    assert span.start_time_unix_nano == ORIGIN_NS + 1_500_000_000
    assert span.end_time_unix_nano - span.start_time_unix_nano == 250_000_000
    assert span.flags == 0x101


def test_children_name_their_parents_also_those_that_follow_in_a_later_batch() -> None:
    parent = finished("outer")
    child = finished("inner", above=parent.place)
    (inner,) = decoded(child)
    (outer,) = decoded(parent)
    assert (inner.trace_id, inner.parent_span_id) == (outer.trace_id, outer.span_id)


def test_a_callers_span_is_a_parent_elsewhere() -> None:
    context = parse_trace_context([PARENT], ["a=b"])
    request = finished("GET /status", above=context, **{"http.request.method": "GET"})
    inner = finished("inner", above=request.place)
    span, below = decoded(request, inner)
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, SPAN, "a=b")
    assert (span.kind, span.flags) == (2, 0x301)
    assert (below.trace_id, below.parent_span_id, below.flags) == (span.trace_id, span.span_id, 0x101)
    assert below.trace_state == "a=b"


def test_a_failed_span_is_an_error() -> None:
    ok, bad = decoded(finished(), finished(failed=True))
    assert (ok.status.code, bad.status.code) == (0, 2)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0, "int_value"),
        (-1, "int_value"),
        (2**63 - 1, "int_value"),
        (-(2**63), "int_value"),
        (True, "bool_value"),
        (False, "bool_value"),
        (0.0, "double_value"),
        (1.25, "double_value"),
        ("", "string_value"),
        ("0/16B5A50", "string_value"),
        ("Zürich", "string_value"),
    ],
)
def test_attributes_keep_value_and_type(value: object, kind: str) -> None:
    (span,) = decoded(finished(about=value))
    (attribute,) = span.attributes
    assert attribute.key == "about"
    assert attribute.value.WhichOneof("value") == kind
    assert getattr(attribute.value, kind) == value


@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.binary(max_size=9)))
def test_any_attribute_can_be_sent(value: object) -> None:
    assert len(decoded(finished(about=value))) == 1


def test_texts_are_redacted_before_they_are_cut() -> None:
    redact.learn(["hunter2hunter2"])
    (span,) = decoded(finished(about="x" * 250 + "hunter2hunter2"))
    (attribute,) = span.attributes
    assert "hunter2" not in attribute.value.string_value
    assert len(attribute.value.string_value) == 256


def test_our_names_become_the_contracts() -> None:
    """Contract 10 §8: keep the names."""
    assert NAMES == {"load_ext": "download_preload_extensions", "migrations": "handle_migrations"}
    names = [span.name for span in decoded(*(finished(name) for name in (*NAMES, "prepare_pgdata")))]
    assert names == ["download_preload_extensions", "handle_migrations", "prepare_pgdata"]


def test_sums_and_what_the_caller_does_not_record_stay_here() -> None:
    unrecorded = parse_trace_context([PARENT[:-1] + "0"])
    assert not is_exported(finished(above=Place(unrecorded, "request")))
    assert is_exported(finished(above=Place(parse_trace_context([PARENT]), "request")))
    assert not is_exported(finished("total_startup"))
    assert not is_exported(finished("wait_for_spec"))


class TestRecorder:
    def test_whoever_does_not_trace_records_nothing_for_traces(self) -> None:
        recorder = Recorder()
        with recorder.trace("start_compute") as span, recorder.measure("inner") as inner:
            pass
        assert (span.duration_seconds, inner.parent, recorder.is_traced) == (None, None, False)
        assert [span.name for span in recorder.spans] == ["inner"]

    def test_spans_for_traces_alone_are_parents_in_traces_alone(self) -> None:
        recorder, taken = Recorder(), list[Finished]()
        recorder.hand_to(lambda span, place: taken.append(Finished(span, place)))
        with recorder.measure("outer"), recorder.trace("hidden"), recorder.measure("inner") as inner:
            recorder.add("instant", start_seconds=0.0)
        assert [work.span.name for work in taken] == ["instant", "inner", "hidden", "outer"]
        instant, within, hidden, outer = taken
        assert (instant.place.above, within.place.above, hidden.place.above) == (
            within.place,
            hidden.place,
            outer.place,
        )
        assert (inner.parent, [span.name for span in recorder.spans]) == ("outer", ["outer", "inner", "instant"])

    def test_a_span_for_traces_that_raises_has_failed(self) -> None:
        recorder, taken = Recorder(), list[Span]()
        recorder.hand_to(lambda span, _place: taken.append(span))
        with pytest.raises(ValueError, match="no"), recorder.trace("hidden"):
            raise ValueError("no")
        assert [(span.name, span.failed) for span in taken] == [("hidden", True)]
