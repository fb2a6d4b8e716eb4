"""The text of postgresql.conf: lines, order, quoting (contract 04 §3, §14)."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tests.unit.builders import cluster, parsed_spec, setting, wire_spec
from trio_compute.errors import SpecError
from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.conf_syntax import quote, read_settings
from trio_compute.plan.postgres_conf import OVERRIDE_TEXT, ConfContext, render_postgresql_conf
from trio_compute.plan.subscriptions import SUBSCRIBERS_ENABLED, with_subscribers_enabled

TENANT, TIMELINE = "b0554b632bd4d547a63b86c3630317e8", "2414a61ffc94e428f14b5758fe308e13"
CONTEXT = ConfContext(privileged_role_name="neon_superuser", internal_http_port=3081)


def info(*urls: str | None, **changes: Any) -> dict[str, Any]:
    count = len(urls) if len(urls) > 1 else 0
    shards = {
        f"{n:02x}{count:02x}": {"pageservers": [{"libpq_url": url, "grpc_url": f"grpc://{n}:1"}]}
        for n, url in enumerate(urls)
    }
    return {"shard_count": count, "shards": shards, **changes}


def render(*missing: str, context: ConfContext = CONTEXT, **changes: Any) -> list[str]:
    """Return the lines of the file without comments."""
    text = render_postgresql_conf(parsed_spec(*missing, **changes), context)
    assert text.endswith("\n")
    return [line for line in text.removesuffix("\n").split("\n") if not line.startswith("#")]


def managed(option: dict[str, Any]) -> str:
    """Return the one line of the managed block."""
    text = render_postgresql_conf(parsed_spec(cluster=cluster(option)), CONTEXT)
    return text.partition("begin\n")[2].partition("\n# Managed by compute_ctl: end")[0]


def test_the_worked_example() -> None:
    """Contract 04 §3.3, with the line that follows the catalog pass."""
    parsed = parsed_spec(
        "pageserver_connstring",
        pageserver_connection_info=info("postgresql://no_user@ps-1:6400"),
        safekeeper_connstrings=["sk-1:5454", "sk-2:5454"],
        safekeepers_generation=2,
        tenant_id=TENANT,
        timeline_id=TIMELINE,
        endpoint_id="ep-1",
        logs_export_host="logs:514",
        audit_log_level="Base",
        cluster=cluster(
            setting("max_connections", "100", "integer"),
            setting("shared_preload_libraries", "neon"),
            postgresql_conf="port=55432",
        ),
    )
    text = render_postgresql_conf(parsed, structs.replace(CONTEXT, drop_subscriptions=True))
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "port=55432",
        "",
        "neon.pageserver_connstring='postgresql://no_user@ps-1:6400'",
        "neon.safekeepers='g#2:sk-1:5454,sk-2:5454'",
        f"neon.tenant_id='{TENANT}'",
        f"neon.timeline_id='{TIMELINE}'",
        "neon.endpoint_id='ep-1'",
        "lc_messages='C.UTF-8'",
        "lc_monetary='C.UTF-8'",
        "lc_time='C.UTF-8'",
        "lc_numeric='C.UTF-8'",
        "neon.compute_mode=primary",
        "neon.privileged_role_name='neon_superuser'",
        "max_connections = 100",
        "shared_preload_libraries = 'neon'",
        "pgaudit.log='ddl,role'",
        "pgaudit.log_catalog=off",
        "shared_preload_libraries='neon,pgaudit'",
        "neon.extension_server_port=3081",
        "neon.disable_logical_replication_subscribers=true",
        "log_destination='stderr,syslog'",
        "include_if_exists = 'compute_ctl_temp_override.conf'",
    ]
    assert text.splitlines()[1:3] == ["# Neon storage settings", ""]
    begin = text.index("# Managed by compute_ctl: begin\nmax_connections")
    managed_end = "shared_preload_libraries = 'neon'\n# Managed by compute_ctl: end\n"
    audit_begin = "# Managed by compute_ctl base audit settings: start\npgaudit.log="
    assert text.index(managed_end + audit_begin) > begin
    after_catalog = with_subscribers_enabled(text)
    assert after_catalog == text + "neon.disable_logical_replication_subscribers=false\n"


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (
            setting("test.escaping", "here's a backslash \\ and a quote ' and a double-quote \" hooray"),
            "test.escaping = 'here''s a backslash \\\\ and a quote '' and a double-quote \" hooray'",
        ),
        (setting("shared_buffers", "32768", "integer"), "shared_buffers = 32768"),
        (setting("a", ""), "a = ''"),
        (setting("a", "on", "bool"), "a = on"),
        (setting("a", "on", "string"), "a = 'on'"),
        (setting("a", "-1", "integer"), "a = -1"),
        (setting("a", "0.5", "real"), "a = 0.5"),
        (setting("a", "128MB", "integer"), "a = 128MB"),
        (setting("a", "hot_standby", "enum"), "a = hot_standby"),
        (setting("neon.file_cache_size_limit", "1", "integer"), "neon.file_cache_size_limit = 1"),
        (setting("_x1", "1", "integer"), "_x1 = 1"),
    ],
)
def test_a_managed_option_is_formatted_as_the_contract_says(option: dict[str, Any], line: str) -> None:
    assert managed(option) == line


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("one\ntwo", "'one\\ntwo'"),
        ("one\r\ntwo", "'one\\r\\ntwo'"),
        ("1\nfsync = off", "'1\\nfsync = off'"),
        ("1 # comment", "'1 # comment'"),
        ("a b", "'a b'"),
        ("", "''"),
        ("1\n", "'1\\n'"),
        ("on\n", "'on\\n'"),
        ("٣", "'٣'"),
        ("1e5", "'1e5'"),
        ("1.5GB", "'1.5GB'"),
        ("0x1F", "'0x1F'"),
        ("'x'", "'''x'''"),
        ("--", "'--'"),
    ],
)
def test_a_value_that_is_not_a_bare_number_or_word_is_quoted_whatever_its_type(value: str, quoted: str) -> None:
    """F-04: neither a newline nor a raw value can add a line to the file."""
    assert managed(setting("a", value, "integer")) == f"a = {quoted}"


@pytest.mark.parametrize(
    "name", ["", "1a", "a b", "a=b", "a\nb", "a\n", "a.", ".a", "a..b", "a-b", "a#", "ä", "include 'x'", "a$b", "a.b.c"]
)
def test_a_name_that_is_no_setting_is_refused(name: str) -> None:
    """F-04."""
    with pytest.raises(SpecError, match="not a valid name"):
        managed(setting(name, "1"))


@pytest.mark.parametrize("vartype", ["string", "integer"])
def test_a_nul_in_a_value_is_refused(vartype: str) -> None:
    """F-04."""
    with pytest.raises(SpecError, match="NUL"):
        managed(setting("a", "x\0y", vartype))


def test_a_nul_anywhere_is_refused() -> None:
    """F-04."""
    for changes in ({"endpoint_id": "a\0"}, {"cluster": cluster(postgresql_conf="a=1\0\nb=2")}):
        with pytest.raises(SpecError, match="NUL"):
            render(**changes)


def test_an_option_without_a_value_is_refused_by_name() -> None:
    """F-06: also when it comes past the validation of the spec."""
    parsed = parsed_spec()
    spec = wire_spec(cluster=cluster(setting("work_mem", None)))
    with pytest.raises(SpecError, match="'work_mem'"):
        render_postgresql_conf(structs.replace(parsed, spec=spec), CONTEXT)


@given(st.text(max_size=30).filter(lambda text: "\0" not in text))
def test_a_quoted_value_is_one_line_and_reads_back(value: str) -> None:
    text = quote(value)
    assert not set(text) & set("\n\r")
    assert read_back(text) == value


def read_back(text: str) -> str:
    """Return what Postgres reads in a quoted value: doubled quotes and C-like escapes (guc-file.l)."""
    assert text[0] == text[-1] == "'"
    plain, rest = [], text[1:-1]
    while rest:
        if rest[0] in "'\\":
            pair, rest = rest[:2], rest[2:]
            assert pair in {"''", "\\\\", "\\n", "\\r"}
            plain.append({"''": "'", "\\\\": "\\", "\\n": "\n", "\\r": "\r"}[pair])
        else:
            plain.append(rest[0])
            rest = rest[1:]
    return "".join(plain)


NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?\Z")
OPTIONS = st.builds(
    setting,
    NAMES,
    st.text(alphabet=string.printable, max_size=20),
    st.sampled_from(["string", "integer", "bool", "enum", ""]),
)


@given(st.lists(OPTIONS, max_size=5))
def test_each_managed_option_is_exactly_one_line(options: list[dict[str, Any]]) -> None:
    text = render_postgresql_conf(parsed_spec(cluster=cluster(*options)), CONTEXT)
    block = text.partition("begin\n")[2].partition("\n# Managed by compute_ctl: end")[0]
    lines = block.split("\n")
    assert len(lines) == max(1, len(options))
    assert [line.partition(" = ")[0] for line in lines] == ([o["name"] for o in options] or [""])
    directives = {"include", "include_dir", "include_if_exists"}
    wanted = [(o["name"].lower(), o["value"]) for o in options if o["name"].lower() not in directives]
    assert list(read_settings(block)) == wanted


def test_settings_that_are_null_have_no_block_and_an_empty_list_has_a_blank_line() -> None:
    without = render_postgresql_conf(parsed_spec(), CONTEXT)
    assert "Managed" not in without
    empty = render_postgresql_conf(parsed_spec(cluster=cluster()), CONTEXT)
    assert "# Managed by compute_ctl: begin\n\n# Managed by compute_ctl: end\n" in empty


def test_the_smallest_file() -> None:
    text = render_postgresql_conf(parsed_spec("safekeeper_connstrings", mode="Replica"), CONTEXT)
    assert text.startswith("# Neon storage settings\n\n")
    assert text.endswith("\ninclude_if_exists = 'compute_ctl_temp_override.conf'\n")
    assert "neon.disable_logical_replication_subscribers=false\n" in text


def test_the_verbatim_text_comes_first_and_unchanged() -> None:
    verbatim = "port=1\n\n# mine\nwork_mem = '1MB'\n"
    text = render_postgresql_conf(parsed_spec(cluster=cluster(postgresql_conf=verbatim)), CONTEXT)
    assert text.startswith(verbatim + "\n# Neon storage settings\n")


def test_each_shard_has_its_url_and_the_stripe_size_stands_before() -> None:
    lines = render(pageserver_connection_info=info("host=p0", "host=p1", "host=p2", stripe_size=2048))
    at = lines.index("neon.stripe_size=2048")
    assert lines[at + 1] == "neon.pageserver_connstring='host=p0,host=p1,host=p2'"


def test_shards_are_in_the_order_of_their_numbers() -> None:
    shards = {f"{n:02X}10": {"pageservers": [{"libpq_url": f"host=p{n}"}]} for n in reversed(range(16))}
    lines = render(pageserver_connection_info={"shard_count": 16, "shards": shards})
    assert f"neon.pageserver_connstring='{','.join(f'host=p{n}' for n in range(16))}'" in lines


def test_a_shard_without_libpq_leaves_only_a_comment() -> None:
    parsed = parsed_spec(pageserver_connection_info=info("host=p0", None, prefer_protocol="grpc"))
    text = render_postgresql_conf(parsed, CONTEXT)
    assert "# no neon.pageserver_connstring\n" in text
    assert "\nneon.pageserver_connstring" not in text


def test_the_connection_string_is_written_as_it_came() -> None:
    lines = render(pageserver_connstring="host=p0,host=p1", shard_stripe_size=5)
    assert lines[lines.index("neon.stripe_size=5") + 1] == "neon.pageserver_connstring='host=p0,host=p1'"


def test_the_stripe_size_of_the_connection_info_counts_when_there_is_one() -> None:
    lines = render(pageserver_connection_info=info("host=p0"), shard_stripe_size=5)
    assert not [line for line in lines if line.startswith("neon.stripe_size")]


def test_what_was_derived_from_settings_is_not_written_twice() -> None:
    names = ("pageserver_connstring", "safekeepers", "tenant_id", "timeline_id")
    values = ("host=px", "a:1", TENANT, TIMELINE)
    options = [setting(f"neon.{name}", value) for name, value in zip(names, values, strict=True)]
    keys = ("pageserver_connstring", "safekeeper_connstrings", "tenant_id", "timeline_id")
    lines = render(*keys, cluster=cluster(*options))
    for name, value in zip(names, values, strict=True):
        assert [line for line in lines if line.startswith(f"neon.{name}")] == [f"neon.{name} = '{value}'"]


@pytest.mark.parametrize(
    ("generation", "line"),
    [
        (3, "neon.safekeepers='g#3:a:1,b:2'"),
        (0, "neon.safekeepers='g#0:a:1,b:2'"),
        (None, "neon.safekeepers='a:1,b:2'"),
    ],
)
def test_safekeepers_carry_their_generation(generation: int | None, line: str) -> None:
    for mode in ("Primary", "Replica"):
        assert line in render(mode=mode, safekeeper_connstrings=["a:1", "b:2"], safekeepers_generation=generation)


def test_identities_are_written_in_order_when_they_are_given() -> None:
    lines = render(project_id="p'1", branch_id="", endpoint_id="e", tenant_id=TENANT, timeline_id=TIMELINE)
    at = lines.index(f"neon.tenant_id='{TENANT}'")
    assert lines[at : at + 5] == [
        f"neon.tenant_id='{TENANT}'",
        f"neon.timeline_id='{TIMELINE}'",
        "neon.project_id='p''1'",
        "neon.branch_id=''",
        "neon.endpoint_id='e'",
    ]


@pytest.mark.parametrize(
    ("mode", "lines"),
    [
        ("Primary", ["neon.compute_mode=primary"]),
        ("Replica", ["neon.compute_mode=replica", "hot_standby=on"]),
        ({"Static": "1/0000ABCD"}, ["neon.compute_mode=static", "hot_standby=on", "recovery_target_lsn='1/ABCD'"]),
    ],
)
def test_the_lines_of_each_mode(mode: object, lines: list[str]) -> None:
    rendered = render(mode=mode)
    at = rendered.index(lines[0])
    assert rendered[at : at + len(lines) + 1] == [*lines, "neon.privileged_role_name='neon_superuser'"]


def test_strict_overcommit_moves_shared_memory_into_files() -> None:
    lines = render(context=structs.replace(CONTEXT, strict_overcommit=True))
    assert lines[lines.index("dynamic_shared_memory_type = mmap") - 1] == "neon.compute_mode=primary"
    assert "dynamic_shared_memory_type = mmap" not in render()


def test_the_context_is_written() -> None:
    lines = render(context=ConfContext(privileged_role_name="boss", internal_http_port=4001))
    assert "neon.privileged_role_name='boss'" in lines
    assert "neon.extension_server_port=4001" in lines
    assert "log_destination='stderr,syslog'" not in lines


def test_the_line_that_is_appended_later_equals_the_line_of_the_file() -> None:
    assert SUBSCRIBERS_ENABLED in render()
    assert OVERRIDE_TEXT == "neon.max_cluster_size=-1\n"


def test_a_shard_that_is_missing_is_named_even_without_validation() -> None:
    """F-19."""
    parsed: ParsedSpec = parsed_spec()
    broken = wire_spec(pageserver_connection_info={"shard_count": 2, "shards": {"0002": {"pageservers": []}}})
    with pytest.raises(SpecError, match="shard 0002"):
        render_postgresql_conf(structs.replace(parsed, spec=broken), CONTEXT)


def test_the_lines_of_tls_stand_before_the_locale() -> None:
    lines = render(context=structs.replace(CONTEXT, tls=True))
    at = lines.index("ssl = on")
    assert lines[at : at + 4] == [
        "ssl = on",
        "ssl_cert_file = 'server.crt'",
        "ssl_key_file = 'server.key'",
        "lc_messages='C.UTF-8'",
    ]
    assert "ssl = on" not in render()


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ("Log", ["pgaudit.log='ddl,role'", "pgaudit.log_catalog=off"]),
        ("Base", ["pgaudit.log='ddl,role'", "pgaudit.log_catalog=off"]),
        *(
            (
                level,
                [
                    f"pgaudit.log_parameter={parameters}",
                    f"pgaudit.log='{classes}'",
                    "pgaudit.log_catalog=off",
                    "pgaudit.log_rotation_age=5",
                ],
            )
            for level, parameters, classes in (
                ("Hipaa", "off", "all, -misc"),
                ("Extended", "off", "all, -misc"),
                ("Full", "on", "all"),
            )
        ),
    ],
)
def test_the_audit_block_stands_after_the_managed_block_so_that_it_wins(level: str, lines: list[str]) -> None:
    rendered = render(audit_log_level=level, cluster=cluster(setting("pgaudit.log", "none")))
    at = rendered.index("pgaudit.log = 'none'") + 1
    assert rendered[at : at + len(lines)] == lines
    assert rendered[at + len(lines)].startswith("shared_preload_libraries='neon,pgaudit")
    assert rendered[at + len(lines) + 1] == "neon.extension_server_port=3081"


def test_the_markers_of_the_audit_block_are_those_of_the_contract() -> None:
    for level, first in (("Base", "base audit settings: start"), ("Full", "compliance audit settings: begin")):
        text = render_postgresql_conf(parsed_spec(audit_log_level=level), CONTEXT)
        assert f"\n# Managed by compute_ctl {first}\n" in text
        assert f"\n# Managed by compute_ctl {first.partition(':')[0]}: end\nneon.extension" in text
    assert "audit settings" not in render_postgresql_conf(parsed_spec(), CONTEXT)


def test_the_lakebase_block_is_the_last_but_one() -> None:
    """Contract 04 §5."""
    databricks = {
        "pg_compute_tls_settings": {"cert_file": "/t/c.pem", "key_file": "/t/k.pem", "ca_file": "/t/o'ca.pem"},
        "databricks_pg_hba": "/h",
        "databricks_pg_ident": "/i",
        "databricks_workspace_host": "w.example",
    }
    context = structs.replace(CONTEXT, lakebase_port=55432)
    text = render_postgresql_conf(parsed_spec(databricks_settings=databricks, logs_export_host="l:1"), context)
    assert text.endswith(
        "log_destination='stderr,syslog'\n"
        "port = 55432\n"
        "# Databricks settings start\n"
        "ssl_ca_file = '/t/o''ca.pem'\n"
        "databricks.workspace_url = 'w.example'\n"
        "databricks.enable_databricks_identity_login = true\n"
        "databricks.enable_sql_restrictions = true\n"
        "\n"
        "# Databricks settings end\n"
        "include_if_exists = 'compute_ctl_temp_override.conf'\n"
    )
    bare = render_postgresql_conf(parsed_spec(), context)
    assert "port = 55432\n# Databricks settings start\n# Databricks settings end\ninclude" in bare
    outside = render_postgresql_conf(parsed_spec(databricks_settings=databricks), CONTEXT)
    assert "atabricks" not in outside


def test_rendering_twice_gives_the_same_bytes() -> None:
    """Contract 04 §16."""
    parsed = parsed_spec(audit_log_level="Full", cluster=cluster(setting("a", "b")))
    assert render_postgresql_conf(parsed, CONTEXT) == render_postgresql_conf(parsed, CONTEXT)
