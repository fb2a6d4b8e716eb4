"""What of the catalog part of a spec is refused, passed over, and how it is quoted (contract 05 §4, §5, §9, §16)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.specs import parsed, spec
from trio_compute.errors import SpecError
from trio_compute.model.spec import Database, GenericOption, Role
from trio_compute.plan.catalog.concurrency import workers_at_start, workers_when_running
from trio_compute.plan.catalog.options import creation_words, database_words, stored_password
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.quoting import dollar_quoted, identifier, literal
from trio_compute.plan.catalog.snapshot import fresh_snapshot
from trio_compute.plan.catalog.wanted import Wanted, wanted_of

P = "neon_superuser"
MD5 = "0f" * 16
SCRAM = f"SCRAM-SHA-256$4096:c2FsdA==${'A' * 43}=:{'B' * 43}="


def of(roles: Any = (), databases: Any = (), delta: Any = None, **changes: Any) -> Wanted:
    cluster = {"roles": list(roles), "databases": list(databases)}
    return wanted_of(parsed(cluster=cluster, delta_operations=delta, **changes), privileged_role=P)


def role(name: str = "r", password: str | None = None, *options: tuple[str, str | None, str]) -> dict[str, Any]:
    listed = [{"name": option, "value": value, "vartype": kind} for option, value, kind in options]
    return {"name": name, "encrypted_password": password, "options": listed}


@pytest.mark.parametrize(
    ("text", "quoted"),
    [("test", "'test'"), ("test'", "'test'''"), ("test\\'", "E'test\\\\'''"), ("", "''")],
)
def test_literals(text: str, quoted: str) -> None:
    """§4 vectors."""
    assert literal(text) == quoted


@pytest.mark.parametrize(
    ("text", "quoted", "outer"),
    [
        ("name", "$x$name$x$", "xx"),
        ("x", "$xx$x$xx$", "xxx"),
        ("name$x$", "$xx$name$x$$xx$", "xxx"),
        ("$xx$", "$xxx$$xx$$xxx$", "xxxx"),
        ("name$$", "$x$name$$$x$", "xx"),
    ],
)
def test_dollar_quotes(text: str, quoted: str, outer: str) -> None:
    """§4 vectors."""
    assert dollar_quoted(text) == (quoted, outer)


def test_identifiers() -> None:
    """§4 vector; not idempotent."""
    assert identifier('"name";\\n select 1;') == '"""name"";\\n select 1;"'


def test_options_are_rendered_by_kind() -> None:
    """§5 vectors, K-04."""
    options = [
        GenericOption(name="LC_COLLATE", value="C", vartype="string"),
        GenericOption(name="LC_CTYPE", value="C", vartype="string"),
        GenericOption(name="TEMPLATE", value="template0", vartype="enum"),
    ]
    wanted = """LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0 OWNER "alexk\""""
    assert database_words(Database(name="d", owner="alexk", options=options)) == wanted
    md5 = "6b1d16b78004bbd51fa06af9eda75972"
    assert creation_words(Role(name="r", encrypted_password=md5)) == f"LOGIN PASSWORD 'md5{md5}'"
    twice = [GenericOption(name="login", vartype="bool"), GenericOption(name="NOCREATEDB", vartype="bool")]
    words = creation_words(Role(name="r", options=[*twice, *twice]), ["CREATEDB", "INHERIT"], [P])
    assert words == f'INHERIT IN ROLE "{P}" NOCREATEDB LOGIN PASSWORD NULL'
    assert stored_password(Role(name="r", encrypted_password=SCRAM)) == SCRAM


@pytest.mark.parametrize("word", ["user", "current_user", "session_user", "default", "none", "public", "a b"])
def test_a_name_among_the_options_is_never_taken_for_a_word_of_sql(word: str) -> None:
    """K-04: `IN ROLE current_user` would be the superuser that we work as."""
    groups = Role(name="r", options=[GenericOption(name="IN ROLE", value=word, vartype="enum")])
    assert f'IN ROLE "{P}", "{word}"' in creation_words(groups, groups=[P])
    template = Database(name="d", owner="o", options=[GenericOption(name="TEMPLATE", value=word, vartype="enum")])
    assert database_words(template) == f'TEMPLATE "{word}" OWNER "o"'


@pytest.mark.parametrize(
    ("roles", "databases", "delta", "message"),
    [
        ([role("")], [], None, "must have 1 to 63 bytes"),
        ([role("é" * 32)], [], None, "must have 1 to 63 bytes"),
        ([], [{"name": "a\0", "owner": "o"}], None, "must have 1 to 63 bytes"),
        ([role("r", "a\0b")], [], None, "plain password of role 'r' must be text"),
        ([role("r", "x" * 4097)], [], None, "plain password of role 'r' must be text"),
        ([role("r", "md5" + MD5)], [], None, "neither a SCRAM verifier nor an md5 hash"),
        ([role("r", SCRAM.replace("AAAA", "", 1))], [], None, "neither a SCRAM verifier nor an md5 hash"),
        ([role("r", SCRAM.replace("c2FsdA==", "c2FsdA="))], [], None, "neither a SCRAM verifier nor an md5 hash"),
        ([role("r", SCRAM.replace("4096", "0"))], [], None, "neither a SCRAM verifier nor an md5 hash"),
        ([role("r", None, ("SUPERB", None, "bool"))], [], None, "option 'SUPERB' is not known"),
        ([role("r", None, ("CONNECTION LIMIT", "5; x", "integer"))], [], None, "needs a whole number"),
        ([role("r", None, ("CREATEDB", "yes", "bool"))], [], None, "takes no value"),
        ([role("r", None, ("IN ROLE", "é" * 32, "string"))], [], None, "needs a name of 1 to 63 bytes"),
        ([role("r", None, ("ADMIN", "", "string"))], [], None, "needs a name"),
        ([role("r"), role("r", MD5)], [], None, "listed twice with different content"),
        ([], [{"name": "d", "owner": "a"}, {"name": "d", "owner": "b"}], None, "listed twice with different content"),
        ([], [], [{"action": "rename_role", "name": "a"}], "requires new_name"),
        ([], [], [{"action": "delete_role", "name": "cloud_admin"}], "belongs to the system"),
        ([], [], [{"action": "delete_role", "name": "pg_monitor"}], "belongs to the system"),
        ([], [], [{"action": "rename_role", "name": "a", "new_name": "zenith_admin"}], "belongs to the system"),
        ([], [], [{"action": "delete_db", "name": "template1"}], "belongs to the system"),
        ([], [], [{"action": "delete_role", "name": P}], "may not touch the privileged role"),
        ([role("a")], [], [{"action": "delete_role", "name": "a"}], "both wanted and to be deleted"),
        ([], [{"name": "d", "owner": "a"}], [{"action": "delete_role", "name": "a"}], "to own database 'd'"),
    ],
)
def test_a_spec_that_cannot_be_applied_is_refused_before_anything_is_done(
    roles: Any, databases: Any, delta: Any, message: str
) -> None:
    """K-02, K-03, K-04, K-15, K-17, K-37."""
    with pytest.raises(SpecError, match=message) as raised:
        of(roles, databases, delta)
    assert "hush" not in str(raised.value)


RESERVED = ["public", "none", "pg_monitor", "pg_anything", "pg_"]


def reserving(name: str) -> dict[str, dict[str, Any]]:
    """Return specs that name a role in every place where one can, by the path of that place."""
    jwks = {"id": "i", "role_names": ["web", name], "jwks_url": "u", "provider_name": "p"}
    cluster = {"roles": [], "databases": []}
    option = "$.cluster.roles[0].options[0].value"
    return {
        "$.cluster.roles[0].name": {"cluster": {**cluster, "roles": [role(name)]}},
        "$.cluster.databases[0].owner": {"cluster": {**cluster, "databases": [{"name": "d", "owner": name}]}},
        "$.local_proxy_config.jwks[0].role_names[1]": {"local_proxy_config": {"jwks": [jwks]}},
        "$.delta_operations[0].name": {"delta_operations": [{"action": "delete_role", "name": name}]},
        "$.delta_operations[0].new_name": {
            "delta_operations": [{"action": "rename_role", "name": "a", "new_name": name}]
        },
        f"{option}, ROLE": {"cluster": {**cluster, "roles": [role("r", None, ("role", name, "string"))]}},
        f"{option}, ADMIN": {"cluster": {**cluster, "roles": [role("r", None, ("ADMIN", name, "string"))]}},
    }


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("place", reserving(""))
def test_a_role_name_that_postgres_reserves_is_refused_wherever_it_stands(place: str, name: str) -> None:
    """T-16: `public` and `none` passed and failed in the middle of the apply."""
    with pytest.raises(SpecError) as raised:
        parsed(**reserving(name)[place])
    path = place.partition(",")[0]
    assert name in str(raised.value)
    if not (path.startswith("$.delta") and name.startswith("pg_")):  # those had a text before
        assert raised.value.path == path
        assert "is reserved by Postgres (hint: choose a name that is neither public nor none" in str(raised.value)


@pytest.mark.parametrize("name", ["PUBLIC", "None", "pg", "PG_x", "current_user", "user", "default", "all", "public_"])
@pytest.mark.parametrize("place", reserving(""))
def test_other_names_are_names_like_all(place: str, name: str) -> None:
    """T-16: Postgres 14 to 18 take each of them in quotes."""
    parsed(**reserving(name)[place])


@pytest.mark.parametrize("name", ["public", "none", "pg_database_owner"])
def test_nobody_is_made_a_member_of_what_has_no_members(name: str) -> None:
    """T-16: Postgres refuses these three, and no other predefined role."""
    with pytest.raises(SpecError, match="option IN ROLE: role name"):
        parsed(cluster={"roles": [role("r", None, ("IN ROLE", name, "string"))], "databases": []})
    parsed(cluster={"roles": [role("r", None, ("IN ROLE", "pg_monitor", "string"))], "databases": []})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("CONNECTION LIMIT", "-2", "integer"), "not between -1 and 2147483647"),
        (("connection limit", "2147483648", "integer"), "not between -1 and 2147483647"),
        (("IN ROLE", "r", "string"), "a member of itself"),
        (("ADMIN", "r", "string"), "a member of itself"),
    ],
)
def test_options_that_postgres_always_refuses_are_refused_before_it(option: Any, message: str) -> None:
    """C-16."""
    with pytest.raises(SpecError, match=message) as raised:
        parsed(cluster={"roles": [role("r", None, option)], "databases": []})
    assert raised.value.path.startswith("$.cluster.roles[0].options[0]")


def test_what_is_passed_over_is_told() -> None:
    """K-02, K-15, K-17, K-37."""
    cluster = {
        "roles": [
            role("twice"),
            role("twice"),
            role("cloud_admin", "plain", ("NOLOGIN", None, "bool")),
            role("zenith_admin"),
        ],
        "databases": [{"name": "kept", "owner": "o"}] * 2 + [{"name": "template1", "owner": "o"}],
    }
    delta = [{"action": "delete_db", "name": "kept"}, {"action": "explode", "name": "x"}]
    warnings = parsed(cluster=cluster, delta_operations=delta).warnings
    assert warnings == (
        "role 'twice' is listed more than once; the first one counts",
        "database 'kept' is listed more than once; the first one counts",
        "role 'cloud_admin' belongs to the system: its password is set, its options are passed over",
        "role 'zenith_admin' belongs to the system and stays as it is",
        "password of role 'cloud_admin' is plain text in the spec; a SCRAM verifier is made of it",
        "database 'template1' is a template of Postgres and stays as it is",
        "database 'kept' is to be deleted and listed as wanted; it stays",
        "unknown delta operation 'explode' is ignored",
    )


@pytest.mark.parametrize(
    ("connections", "workers"),
    [(0, 1), (5, 4), (9, 8), (10, 9), (29, 9), (30, 9), (99, 32), (100, 32), (299, 98), (300, 99), (1000, 99)],
)
def test_workers_at_a_start_follow_max_connections(connections: int, workers: int) -> None:
    """§9 vectors; K-09: never none; K-10: the maintenance session is one of them."""
    option = {"name": "max_connections", "value": str(connections), "vartype": "integer"}
    by_setting = {"roles": [], "databases": [], "settings": [option]}
    by_text = {
        "roles": [],
        "databases": [],
        "postgresql_conf": f"# x\\n max_connections = {connections}\n".replace("\\n", "\n"),
    }
    assert workers_at_start(spec(cluster=by_setting)) == workers
    assert workers_at_start(spec(cluster=by_text)) == workers


def test_workers_when_running_keep_within_the_reserved_connections() -> None:
    """§9, K-09, K-10."""
    assert workers_when_running(spec(reconfigure_concurrency=0)) == 1
    assert workers_when_running(spec(reconfigure_concurrency=9)) == 3
    option = {"name": "superuser_reserved_connections", "value": "6", "vartype": "integer"}
    cluster = {"roles": [], "databases": [], "settings": [option]}
    assert workers_when_running(spec(reconfigure_concurrency=9, cluster=cluster)) == 5
    assert workers_at_start(spec()) == 9


def test_phases_are_in_the_order_of_the_contract() -> None:
    """§7, §8, §10."""
    snapshot = fresh_snapshot("cloud_admin", major=17, libraries=("pg_stat_statements",))
    state = of([role("a", MD5)], [{"name": "d", "owner": "a"}], drop_subscriptions_before_start=True)
    plan, _ = plan_catalog(state, snapshot)
    assert [phase.name for _, phase in plan.located()] == [
        "CreatePrivilegedRole",
        "CreateAndAlterRoles",
        "CreateAndAlterDatabases",
        "CreateSchemaNeon",
        "NoteInheritedSubscriptions",
        "ChangeSchemaPerms",
        "HandleOtherExtensions",
        "HandleNeonExtension",
        "FinalizeDropLogicalSubscriptions",
    ]


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
FEW = st.sampled_from(["a", 'b"', "c'$x$", "é\n", "neon_superuser_x", "gone"])


@given(
    roles=st.lists(FEW | NAMES, max_size=4, unique=True),
    databases=st.lists(st.tuples(FEW | NAMES, FEW), max_size=4, unique_by=lambda pair: pair[0]),
    delta=st.lists(
        st.fixed_dictionaries(
            {
                "action": st.sampled_from(["delete_db", "rename_db", "delete_role", "rename_role"]),
                "name": FEW,
                "new_name": FEW,
            }
        ),
        max_size=4,
    ),
    before=st.lists(FEW, max_size=3, unique=True),
    is_dropping=st.booleans(),
)
def test_planning_over_the_prediction_finds_nothing(
    roles: list[str], databases: list[tuple[str, str]], delta: list[Any], before: list[str], is_dropping: bool
) -> None:
    """K-34: and no plan shows a password."""
    first, _ = plan_catalog(of(map(role, before), [{"name": n, "owner": "o"} for n in before]), START)
    assert not first.is_empty
    _, snapshot = plan_catalog(of([role(n) for n in before], [{"name": n, "owner": "o"} for n in before]), START)
    listed = [{"name": name, "owner": owner} for name, owner in databases]
    try:
        state = of([role(name, MD5) for name in roles], listed, delta, drop_subscriptions_before_start=is_dropping)
    except SpecError:
        return
    plan, predicted = plan_catalog(state, snapshot)
    for _, phase in plan.located():
        for operation in phase.operations:
            assert MD5 not in operation.shown + operation.what + operation.why
    renames = {op["action"] for op in delta} & {"rename_db", "rename_role"}
    # Renames that contradict the lists, or one another, have no fixed point; all else has.
    if not renames:
        assert plan_catalog(state, predicted)[0].is_empty


START = fresh_snapshot("cloud_admin", major=17)
