"""No text of a spec leaves its quotes, nor shows in a log, whatever it is (contract 05 §4, K-03, K-04, K-33, K-34)."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.fakes.specs import parsed
from tests.tenants.sql_reading import findings
from trio_compute.errors import SpecError
from trio_compute.plan.catalog.lakebase import GRANTS
from trio_compute.plan.catalog.operations import Plan
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.quoting import dollar_quoted, identifier, literal
from trio_compute.plan.catalog.snapshot import (
    DatabaseFacts,
    ExtensionFacts,
    RoleFacts,
    SchemaFacts,
    Snapshot,
    fresh_snapshot,
)
from trio_compute.plan.catalog.wanted import Wanted, wanted_of

P = "neon_superuser"
MD5 = "0f" * 16
SCRAM = f"SCRAM-SHA-256$4096:c2FsdA==${'K' * 43}=:{'L' * 43}="
# What is left of a statement when all that is in quotes is taken away; a text that broke out would stay.
QUOTED = re.compile(r'"(?:[^"]|"")+"|\bE\'(?:[^\'\\]|\'\'|\\.)*\'|\'(?:[^\']|\'\')*\'|\$body\$.*?\$body\$', re.DOTALL)
MARK = "Zq7"

PIECES = st.sampled_from(
    ['"', "'", "\\", "$x$", "$$", "x", ";", "--", "/*", "\n", "\t", "🐘", "é", "%I", "{0}", " ", MARK]
)
NAMES = st.lists(PIECES, min_size=1, max_size=12).map("".join).filter(lambda name: len(name.encode()) <= 63)
FEW = st.sampled_from(["a", 'b"', "c'$x$", "é\n\\", "z" * 63, "web_access"]) | NAMES
PASSWORDS = st.sampled_from([None, MD5, SCRAM, "", "a plain 'one'"])
ROLES = st.fixed_dictionaries(
    {
        "name": FEW,
        "encrypted_password": PASSWORDS,
        "options": st.lists(
            st.fixed_dictionaries(
                {"name": st.just("IN ROLE"), "value": NAMES, "vartype": st.sampled_from(["string", "enum"])}
            )
            | st.fixed_dictionaries({"name": st.just("valid until"), "value": NAMES, "vartype": st.just("string")}),
            max_size=2,
        ),
    }
)
DATABASES = st.fixed_dictionaries(
    {
        "name": FEW,
        "owner": FEW,
        "options": st.lists(
            st.fixed_dictionaries(
                {"name": st.just("TEMPLATE"), "value": NAMES, "vartype": st.sampled_from(["string", "enum"])}
            )
            | st.fixed_dictionaries({"name": st.just("LOCALE"), "value": NAMES, "vartype": st.just("enum")}),
            max_size=2,
        ),
    }
)
DELTA = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["delete_db", "rename_db", "delete_role", "rename_role", "explode"]),
        "name": FEW,
        "new_name": FEW,
    }
)
SPECS = st.fixed_dictionaries(
    {
        "cluster": st.fixed_dictionaries(
            {
                "roles": st.lists(ROLES, max_size=3, unique_by=lambda role: role["name"]),
                "databases": st.lists(DATABASES, max_size=3, unique_by=lambda database: database["name"]),
            }
        ),
        "delta_operations": st.none() | st.lists(DELTA, max_size=4),
        "drop_subscriptions_before_start": st.booleans(),
        "audit_log_level": st.sampled_from(["Disabled", "Log", "Hipaa"]),
    }
)


SCHEMAS = st.builds(SchemaFacts, FEW, st.booleans(), st.sampled_from([(), ("public", 'b"')]))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Draw a server on which anything may have happened."""
    state = fresh_snapshot("cloud_admin", major=draw(st.sampled_from([14, 15, 17])))
    names = draw(st.lists(FEW, max_size=5, unique=True))
    for name in names:
        state.roles[name] = RoleFacts(draw(st.sampled_from([None, f"md5{MD5}", SCRAM])))
    for name in draw(st.lists(FEW, max_size=4, unique=True)):
        state.databases[name] = DatabaseFacts(
            draw(st.sampled_from(["cloud_admin", *names])),
            connectable=draw(st.booleans()),
            invalid=draw(st.booleans()),
            template=draw(st.booleans()),
            granted=draw(st.booleans()),
            subscriptions=draw(st.integers(0, 2)),
            prepared=draw(st.none() | st.just("old mark")),
            oid=draw(st.integers(1, 9)),
            subscriptions_pending=draw(st.none() | st.just("e" * 32)),
            reserved=draw(st.none() | st.sampled_from(["-1,open", "7,closed"])),
        )
    places = st.frozensets(st.sampled_from(list(state.databases)), max_size=3)
    state.footholds = {name: draw(places) for name in names}
    if draw(st.booleans()):
        state.roles[P] = RoleFacts(attributes=draw(st.frozensets(st.sampled_from(["CREATEDB", "BYPASSRLS"]))))
        state.extensions["neon"] = ExtensionFacts(draw(st.sampled_from(["public", "neon"])), draw(st.booleans()))
    state.libraries = draw(st.sampled_from([(), ("pg_stat_statements", "pgaudit")]))
    state.schemas = draw(st.dictionaries(st.sampled_from(["public", "neon", "neon_set_aside"]), SCHEMAS))
    state.estates = {
        name: draw(st.frozensets(st.sampled_from([*held]))) if held else held for name, held in state.footholds.items()
    }
    state.former_tables = draw(
        st.dictionaries(st.sampled_from(["public.health_check", "neon.prepared_databases"]), st.integers(0, 1))
    )
    state.has_notes = draw(st.booleans())
    state.reaching_out = tuple((name, "pg_read_server_files") for name in names[:1])
    state.available_extensions = draw(
        st.sampled_from([frozenset(), frozenset({"neon", "pgaudit"}), frozenset({"neon", "databricks_auth"})])
    )
    if draw(st.booleans()):
        state.roles["databricks_monitor"] = state.roles["databricks_reader_1"] = RoleFacts()
        state.monitor_grants = {grant.what: draw(st.sampled_from([None, True, False])) for grant in GRANTS}
    return state


def wanted(spec: dict[str, Any], **changes: Any) -> Wanted:
    """Return what a spec wants; one that is refused is no example."""
    try:
        return structs.replace(wanted_of(parsed(**spec), privileged_role=P), **changes)
    except SpecError:
        assume(False)
        raise


def texts(plan: Plan) -> list[str]:
    steps = [step for _, phase in plan.located() for step in phase.operations]
    return [text for step in steps for text in (step.statement, step.only_if or "")]


@settings(max_examples=300)
@given(spec=SPECS, state=snapshots(), is_lakebase=st.booleans())
def test_no_text_of_a_spec_or_of_the_server_leaves_its_quotes(
    spec: dict[str, Any], state: Snapshot, is_lakebase: bool
) -> None:
    """K-03, K-04, K-05: outside of quotes every statement consists of our own words."""
    plan, _ = plan_catalog(wanted(spec, lakebase=is_lakebase, reader_statement_timeout="'5s"), state)
    for text in texts(plan):
        bare = QUOTED.sub(" ", text)
        assert MARK not in bare
        assert '"' not in bare
        assert "'" not in bare
        assert "\\" not in bare
        assert bare.isascii()
        assert "--" not in bare
        assert "/*" not in bare


@settings(max_examples=300)
@given(spec=SPECS, state=snapshots(), is_lakebase=st.booleans())
def test_no_secret_is_in_what_may_be_shown(spec: dict[str, Any], state: Snapshot, is_lakebase: bool) -> None:
    """K-33: neither as it came nor as it is stored."""
    plan, _ = plan_catalog(wanted(spec, lakebase=is_lakebase), state)
    for _, phase in plan.located():
        for step in phase.operations:
            for text in (step.what, step.why, step.shown, str(step.subject), *plan.warnings):
                assert MD5 not in text
                assert "KKKK" not in text


@settings(max_examples=300)
@given(spec=SPECS, state=snapshots(), is_lakebase=st.booleans())
def test_whatever_the_server_holds_planning_over_the_prediction_finds_nothing(
    spec: dict[str, Any], state: Snapshot, is_lakebase: bool
) -> None:
    """K-32, K-34. Renames among names that a plan also makes or deletes have no fixed point."""
    state_wanted = wanted(spec, lakebase=is_lakebase, reader_statement_timeout="5s")
    renames = [op for op in state_wanted.delta if op.action.startswith("rename")]
    others = [op.name for op in state_wanted.delta if not op.action.startswith("rename")]
    listed = [entry.name for entry in (*state_wanted.roles, *state_wanted.databases)]
    owners = [entry.owner for entry in state_wanted.databases]
    moved = [name for op in renames for name in (op.name, op.new_name)]
    assume(len({*moved}) == len(moved) and not {*moved} & {*others, *listed, *owners, "web_access"})
    before = state.copy()
    plan, predicted = plan_catalog(state_wanted, state)
    assert state == before
    again, _ = plan_catalog(state_wanted, predicted)
    assert again.is_empty, [phase for _, phase in again.located()]
    for operation in state_wanted.delta:
        if operation.action == "delete_role":
            assert operation.name not in predicted.roles
        if operation.action == "delete_db" and operation.name not in listed:
            assert operation.name not in predicted.databases
    assert {role.name for role in state_wanted.roles} <= predicted.roles.keys()
    assert {each.name: each.owner for each in state_wanted.databases}.items() <= {
        name: facts.owner for name, facts in predicted.databases.items()
    }.items()
    assert plan.is_empty or texts(plan)


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_quoting_can_be_read_back(text: str) -> None:
    """§4: one token each, which means the text."""
    assert QUOTED.sub("", identifier(f"i{text}")) == ""
    assert identifier(text)[1:-1].replace('""', '"') == text
    assert QUOTED.sub("", literal(text)) == ""
    unquoted = literal(text).removeprefix("E")[1:-1].replace("''", "'")
    assert (unquoted.replace("\\\\", "\\") if "\\" in text else unquoted) == text
    quoted, outer = dollar_quoted(text)
    tag = quoted.split("$")[1]
    assert quoted == f"${tag}${text}${tag}$"
    assert tag not in text
    assert f"${outer}$" not in quoted


@settings(max_examples=200)
@given(spec=SPECS, state=snapshots(), is_lakebase=st.booleans())
def test_every_name_in_every_statement_of_a_plan_is_qualified(
    spec: dict[str, Any], state: Snapshot, is_lakebase: bool
) -> None:
    """T-01: read by Postgres' own parser, blocks and the queries in them too."""
    plan, _ = plan_catalog(wanted(spec, lakebase=is_lakebase, reader_statement_timeout="5s"), state)
    for text in texts(plan):
        assert findings(text) == []
