"""What a promotion sets and keeps, and where a state is stored (contract 08 §6.2, 07 S-18)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.specs import TENANT, TIMELINE, parsed
from trio_compute.errors import SpecError
from trio_compute.model.lfc import PrewarmInfo, progress
from trio_compute.plan.conf_syntax import effective_settings
from trio_compute.plan.postgres_conf import ConfContext, render_postgresql_conf
from trio_compute.plan.promotion import promotion_overrides, with_port
from trio_compute.storage.endpoint_storage import locate_state, valid_endpoint_id

CONTEXT = ConfContext(privileged_role_name="neon_superuser", internal_http_port=3081)
STORAGE: dict[str, Any] = {"endpoint_storage_addr": "s:1", "endpoint_storage_token": "t"}


def cluster(**members: Any) -> dict[str, Any]:
    return {"roles": [], "databases": [], **members}


def setting(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value, "vartype": "string"}


@pytest.mark.parametrize(
    ("changes", "safekeepers"),
    [
        ({"safekeeper_connstrings": ["a:1", "b:2"]}, "a:1,b:2"),
        ({"safekeeper_connstrings": ["a:1", "b:2"], "safekeepers_generation": 5}, "g#5:a:1,b:2"),
        (
            {"safekeeper_connstrings": [], "cluster": cluster(settings=[setting("neon.safekeepers", "g#9:c:3,d:4")])},
            "g#9:c:3,d:4",
        ),
        # The file names them twice; the last one counts there, so it does here.
        (
            {"safekeeper_connstrings": ["a:1"], "cluster": cluster(settings=[setting("Neon.Safekeepers", "z:1")])},
            "z:1",
        ),
    ],
)
def test_the_safekeepers_are_written_as_in_postgresql_conf(changes: dict[str, Any], safekeepers: str) -> None:
    """P-03."""
    spec = parsed(**changes)
    overrides = promotion_overrides(spec, render_postgresql_conf(spec, CONTEXT))
    assert overrides == {"neon.safekeepers": safekeepers, "synchronous_standby_names": "walproposer"}


@pytest.mark.parametrize(
    "conf",
    [None, "", "port=1", "port=1\n", "fsync=off\nport = '1'\n#", "include 'x'\nPORT=1"],
)
@pytest.mark.parametrize("settings", [None, [setting("port", "2")], [setting("Port", "3"), setting("fsync", "off")]])
def test_the_port_of_the_node_wins_over_whatever_a_spec_says(conf: str | None, settings: Any) -> None:
    """P-15."""
    spec = with_port(parsed(cluster=cluster(postgresql_conf=conf, settings=settings)), 5433)
    found = effective_settings(render_postgresql_conf(spec, CONTEXT))
    assert found["port"] == "5433"
    assert ("fsync" in found) is ("fsync" in str((conf, settings)))


def test_only_the_port_is_changed() -> None:
    spec = parsed(endpoint_id="x", cluster=cluster(settings=[setting("a.b", "c")], roles=[]))
    kept = with_port(spec, 1)
    assert kept.spec.endpoint_id == "x"
    assert kept.tenant_id == spec.tenant_id
    assert kept.spec.cluster.settings == spec.spec.cluster.settings


@given(st.text(min_size=1))
def test_an_endpoint_id_stays_within_its_segment(endpoint_id: str) -> None:
    """07 S-18."""
    if not valid_endpoint_id(endpoint_id) or any("\ud800" <= character <= "\udfff" for character in endpoint_id):
        return
    url = locate_state(parsed(**STORAGE), endpoint_id).url
    prefix, suffix = f"http://s:1/{TENANT}/{TIMELINE}/", "/lfc_state"
    assert url.startswith(prefix)
    assert url.endswith(suffix)
    segment = url[len(prefix) : -len(suffix)]
    assert segment
    assert not set(segment) & set("/?#\\ ")
    assert segment.isascii()


@pytest.mark.parametrize("endpoint_id", [".", ".."])
def test_some_ids_are_no_segment(endpoint_id: str) -> None:
    with pytest.raises(SpecError, match="cannot be part of a URL"):
        locate_state(parsed(**STORAGE), endpoint_id)
    with pytest.raises(SpecError, match="cannot be part of a URL"):
        locate_state(parsed(**STORAGE, endpoint_id=endpoint_id))


@pytest.mark.parametrize("value", ["", None])
@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("endpoint_id", "pspec.endpoint_id missing"),
        ("endpoint_storage_addr", "pspec.endpoint_storage_addr missing"),
        ("endpoint_storage_token", "pspec.endpoint_storage_token missing"),
    ],
)
def test_an_empty_member_is_a_missing_one(field: str, text: str, value: str | None) -> None:
    with pytest.raises(SpecError, match=text):
        locate_state(parsed(**{**STORAGE, "endpoint_id": "ep", field: value}))


@pytest.mark.parametrize(
    ("info", "elapsed", "expected"),
    [
        (PrewarmInfo(), 1.0, None),
        (PrewarmInfo(100, 80, 20, 1), 1.0, None),
        (PrewarmInfo(100, 90, 20, 1), 1.0, None),
        (PrewarmInfo(100, 20, 5, 0), 5.0, (25, 100, 5.0, 15.0)),
        (PrewarmInfo(100, None, 10, None), 0.0, (10, 100, 0.0, ...)),
        (PrewarmInfo(100, 0, 0, 0), 5.0, (0, 100, 0.0, ...)),
    ],
)
def test_progress_is_only_what_can_be_of_this_prewarm(info: PrewarmInfo, elapsed: float, expected: Any) -> None:
    """L-11: a complete row is that of an older one."""
    state = progress(info, elapsed)
    if expected is None:
        assert state is None
        return
    assert state is not None
    done, total, rate, estimate = expected
    assert (state.pages_done, state.pages_total, state.pages_per_second) == (done, total, rate)
    assert isinstance(state.estimate_seconds, float) is (estimate is not ...)
    if estimate is not ...:
        assert state.estimate_seconds == estimate
