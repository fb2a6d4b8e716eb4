"""What a dry run shows, and what it must not (contract 05 K-33, K-34)."""

from __future__ import annotations

import msgspec
import pytest

from tests.fakes.specs import parsed
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.snapshot import fresh_snapshot
from trio_compute.plan.catalog.wanted import wanted_of
from trio_compute.plan.preview import preview_of

KEY = "A" * 43 + "="
SCRAM = f"SCRAM-SHA-256$4096:c2FsdHNhbHQ=${KEY}:{KEY}"
MD5 = "0123456789abcdef" * 2


@pytest.mark.parametrize("password", [SCRAM, MD5])
@pytest.mark.parametrize("is_new", [True, False])
def test_no_password_is_shown_even_without_a_redactor(password: str, is_new: bool) -> None:
    """K-33: plans are shown to people; a new role and a changed one hold a password each."""
    snapshot = fresh_snapshot("cloud_admin", major=17)
    role = {"name": "clerk", "encrypted_password": password}
    state = wanted_of(parsed(cluster={"roles": [role], "databases": []}), privileged_role="neon_superuser")
    if not is_new:
        without = {"name": "clerk", "encrypted_password": None}
        before = wanted_of(parsed(cluster={"roles": [without], "databases": []}), privileged_role="neon_superuser")
        snapshot = plan_catalog(before, snapshot)[1]
    plan, _ = plan_catalog(state, snapshot)
    preview = preview_of(plan, "postgres", old_conf="", new_conf="", restart_required=[], hide=str)
    text = msgspec.json.encode(preview).decode()
    assert ("create role clerk" in text) == is_new
    assert "PASSWORD '[redacted]'" in text
    assert password not in text
    assert KEY not in text
