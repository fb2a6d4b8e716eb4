"""`trio-compute validate`: every error of a file with path, rule and hint, and never a secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builders import DATA, TENANT, TIMELINE, cluster, document, make_settings, setting
from tests.unit.test_parse_spec import STRANGE, mutated, places
from trio_compute.cli import run_subcommand
from trio_compute.commands import inspection
from trio_compute.commands.inspection import Report, inspect_configuration, path_text, wire_of
from trio_compute.errors import SpecError
from trio_compute.model.advice import contradictions
from trio_compute.model.decode import decode
from trio_compute.model.parsed import parse_spec, problems
from trio_compute.model.shape import Finding, Walk
from trio_compute.model.spec import ComputeConfig, ComputeSpec, ControlPlaneAnswer
from trio_compute.plan.unapplied import unapplied

CTL = {"jwks": {"keys": []}}
LARGE = json.loads((DATA / "config_large.json").read_bytes())
STATIC = document(mode={"Static": "0/1"}, features=["tls_experimental"])


def report_of(value: object) -> Report:
    return inspect_configuration(json.dumps(value).encode())


def said(findings: list[Finding]) -> dict[str, str]:
    return {path_text(finding.path): finding.rule for finding in findings}


def errors_of(value: object) -> dict[str, str]:
    return said(report_of(value).errors)


def warnings_of(value: object) -> dict[str, str]:
    return said(report_of(value).warnings)


def wrapped(spec: object, **changes: Any) -> dict[str, Any]:
    return {"spec": spec, "compute_ctl_config": CTL} | changes


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = run_subcommand(["validate", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def write(directory: Path, value: object) -> Path:
    path = directory / "config.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


# What is accepted.


@pytest.mark.parametrize("path", sorted(DATA.glob("config_*.json")) + sorted(DATA.glob("valid-*.json")), ids=str)
def test_usable_files_are_ok(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, path)
    assert code == 0
    assert f"{path}: ok" in out
    assert err == ""


@pytest.mark.parametrize("path", sorted(DATA.glob("invalid-*.json")), ids=str)
def test_unusable_files_are_not(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, path)
    assert code == 1
    assert f"{path}:$" in out
    assert "ok" not in out.split()


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (wrapped(document()), ComputeConfig),
        (wrapped(None), ComputeConfig),
        ({"status": "empty", "compute_ctl_config": CTL}, ControlPlaneAnswer),
        (document(), ComputeSpec),
        ({"spec": document()}, ComputeConfig),
        ({}, ComputeConfig),
        ([], ComputeConfig),
    ],
)
def test_a_document_is_recognised_by_its_keys(value: object, wire: type[Any]) -> None:
    assert wire_of(value) is wire


def test_a_bare_spec_has_paths_without_the_key_spec(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert errors_of(document(mode="primary")).keys() == {"$.mode"}
    assert errors_of(wrapped(document(mode="primary"))).keys() == {"$.spec.mode"}
    assert "--spec-path" in run(capsys, write(tmp_path, document()))[1]


def test_a_forgotten_compute_ctl_config_is_named() -> None:
    assert errors_of({"spec": document()}) == {"$.compute_ctl_config": "a required key is missing"}


def test_an_attached_answer_needs_a_spec() -> None:
    answer = {"status": "attached", "compute_ctl_config": CTL}
    assert errors_of(answer) == {"$.spec": "compute is attached, but spec is empty"}
    assert errors_of(answer | {"status": "empty"}) == {}
    assert errors_of(answer | {"spec": document()}) == {}
    assert list(errors_of(answer | {"status": 5})) == ["$.status"]


# The rules of contract 01 §9, each by its row; texts as in parse_spec.

PAGESERVER = {"libpq_url": "host=p0"}


def info(count: int, *pageservers: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    shards = {f"{number:02x}{count:02x}": {"pageservers": entry} for number, entry in enumerate(pageservers)}
    return {"shard_count": count, "shards": shards, "stripe_size": 8} | changes


ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "1 missing": (
        document("pageserver_connstring"),
        "$.pageserver_connection_info",
        "pageserver connection information should be provided",
    ),
    "1 stripe size": (
        document(
            "pageserver_connstring",
            cluster=cluster(setting("neon.pageserver_connstring", "host=p0"), setting("neon.stripe_size", "x")),
        ),
        "$.cluster.settings[1].value",
        "invalid neon.stripe_size: 'x' is not a 32-bit integer",
    ),
    "1a no stripe size": (
        document(pageserver_connstring="host=p0,host=p1"),
        "$.pageserver_connstring",
        "2 shards but no stripe_size",
    ),
    "1a too many": (
        document(pageserver_connstring=",".join(["host=p0"] * 256), shard_stripe_size=1),
        "$.pageserver_connstring",
        "256 shards are more than 255",
    ),
    "1a empty part": (
        document(pageserver_connstring="host=p0,,host=p1"),
        "$.pageserver_connstring",
        "empty connection string",
    ),
    "1a empty part of the setting": (
        document("pageserver_connstring", cluster=cluster(setting("neon.pageserver_connstring", " "))),
        "$.cluster.settings[0].value",
        "empty connection string",
    ),
    "2 missing": (
        document("safekeeper_connstrings"),
        "$.safekeeper_connstrings",
        "safekeeper connstrings should be provided",
    ),
    "3 missing": (document("tenant_id"), "$.tenant_id", "tenant id should be provided"),
    "3 invalid": (
        document("tenant_id", cluster=cluster(setting("neon.tenant_id", "x"))),
        "$.cluster.settings[0].value",
        "invalid tenant id",
    ),
    "4 missing": (document("timeline_id"), "$.timeline_id", "timeline id should be provided"),
    "4 invalid": (
        document("timeline_id", cluster=cluster(setting("a", "b"), setting("neon.timeline_id", "x"))),
        "$.cluster.settings[1].value",
        "invalid timeline id",
    ),
    "6 empty": (
        document("safekeeper_connstrings", cluster=cluster(setting("neon.safekeepers", ""))),
        "$.cluster.settings[0].value",
        "safekeeper_connstrings is empty",
    ),
    "6 duplicate": (
        document(safekeeper_connstrings=["b:1", "a:1", "b:1"]),
        "$.safekeeper_connstrings[2]",
        "duplicate entry in safekeeper_connstrings: b:1!",
    ),
    "required: host and port": (
        document(safekeeper_connstrings=["a:1", "b"]),
        "$.safekeeper_connstrings[1]",
        "safekeeper_connstrings entry 'b' is not host:port",
    ),
    "required: shard": (
        document(pageserver_connection_info=info(2, [PAGESERVER])),
        "$.pageserver_connection_info.shards",
        "shard 0102 missing from pageserver_connection_info shard map",
    ),
    "required: pageserver": (
        document(pageserver_connection_info=info(0, [])),
        '$.pageserver_connection_info.shards["0000"].pageservers',
        "must have at least one pageserver",
    ),
    "required: libpq URL": (
        document(pageserver_connection_info=info(0, [{"grpc_url": "g"}])),
        '$.pageserver_connection_info.shards["0000"].pageservers[0].libpq_url',
        "no libpq_url for shard 0000",
    ),
    "required: grpc URL": (
        document(pageserver_connection_info=info(0, [PAGESERVER], prefer_protocol="grpc")),
        '$.pageserver_connection_info.shards["0000"].pageservers[0].grpc_url',
        "no grpc_url for shard 0000",
    ),
    "required: rename": (
        document(delta_operations=[{"action": "delete_db", "name": "a"}, {"action": "rename_role", "name": "b"}]),
        "$.delta_operations[1].new_name",
        "delta operation rename_role requires new_name",
    ),
    "required: setting": (
        document(cluster=cluster(setting("work_mem", None))),
        "$.cluster.settings[0].value",
        "setting 'work_mem' has no value",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_broken_rule_is_reported_at_its_place_and_nothing_else_is(row: str) -> None:
    value, path, rule = ROWS[row]
    assert errors_of(value) == {path: rule}
    assert errors_of(wrapped(value)) == {path.replace("$", "$.spec", 1): rule}
    assert all(finding.hint for finding in report_of(value).errors)


@pytest.mark.parametrize("row", ROWS)
def test_the_rules_are_those_that_a_start_refuses_by(row: str) -> None:
    value, _, rule = ROWS[row]
    with pytest.raises(SpecError) as caught:
        parse_spec(decode(json.dumps(value).encode(), ComputeSpec))
    assert str(caught.value) == rule


def test_the_first_problem_is_the_one_that_a_start_reports() -> None:
    value = document(*document().keys() - {"format_version", "suspend_timeout_seconds", "cluster"})
    spec = decode(json.dumps(value).encode(), ComputeSpec)
    assert [problem.message for problem in problems(spec)] == [
        "pageserver connection information should be provided",
        "safekeeper connstrings should be provided",
        "tenant id should be provided",
        "timeline id should be provided",
    ]
    with pytest.raises(SpecError, match=r"^pageserver connection information"):
        parse_spec(spec)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (document(cluster=cluster(roles=[{"name": ""}])), "$.cluster.roles[0].name"),
        (document(cluster=cluster(databases=[{"name": "d" * 64, "owner": "o"}])), "$.cluster.databases[0].name"),
        (document(cluster=cluster(setting("no good", "1"))), "$.cluster.settings[0].name"),
        (document(cluster=cluster(postgresql_conf="a\0")), "$.cluster.settings"),
    ],
)
def test_what_would_fail_later_in_a_start_is_an_error_too(spec: dict[str, Any], path: str) -> None:
    assert list(errors_of(spec)) == [path]


# All errors at once.


def test_every_error_of_a_file_is_reported() -> None:
    found = said(inspect_configuration((DATA / "invalid-many-errors.json").read_bytes()).errors)
    assert found.keys() == {
        "$.spec.format_version",
        "$.spec.suspend_timeout_seconds",
        "$.spec.cluster.roles[0].encrypted_password",
        "$.spec.cluster.roles[1].name",
        "$.spec.cluster.databases",
        "$.spec.cluster.settings[0].value",
        "$.spec.cluster.settings[1].value",
        "$.spec.mode",
        "$.spec.timeline_id",
        "$.spec.shard_stripe_size",
        "$.spec.pageserver_connection_info.shards",
        '$.spec.pageserver_connection_info.shards["0002"].pageservers[0].grpc_url',
        "$.spec.safekeeper_connstrings[1]",
        "$.spec.delta_operations[0].new_name",
        "$.spec.delta_operations[1].new_name",
        "$.spec.offload_lfc_interval_seconds",
        "$.spec.autoprewarm",
        "$.compute_ctl_config.jwks.keys[0]",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant_id": "x"},
        {"mode": 5, "safekeeper_connstrings": []},
        {"safekeeper_connstrings": [5]},
        {"safekeeper_connstrings": [5, 6]},
        {"pageserver_connstring": 5},
        {"pageserver_connstring": "host=a,host=b", "shard_stripe_size": "x"},
        {"pageserver_connection_info": {"shard_count": "2", "shards": {}}},
        {"pageserver_connection_info": {"shard_count": 0, "shards": {"xyz": {"pageservers": []}}}},
        {"delta_operations": [5]},
        {"cluster": {"roles": [], "databases": [], "settings": [5]}, "tenant_id": None},
        {"mode": {"Static": "nonsense"}},
    ],
    ids=str,
)
def test_a_wrong_shape_does_not_break_rules_on_top(changes: dict[str, Any]) -> None:
    walk = Walk()
    walk.visit_document(document(**changes), ComputeSpec)
    assert walk.errors
    assert report_of(document(**changes)).errors == walk.errors


def test_a_root_that_is_no_object_is_one_error() -> None:
    for value in ([], 5, "text", None, True):
        assert list(errors_of(value)) == ["$"]


@pytest.mark.parametrize(
    ("changes", "path", "hint"),
    [
        ({"mode": "primary"}, "$.mode", "did you mean Primary?"),
        ({"audit_log_level": "hippa"}, "$.audit_log_level", "did you mean Hipaa?"),
        ({"autoprewarm": None}, "$.autoprewarm", "leave it out"),
        ({"cluster": None}, "$.cluster", "give a value"),
        ({"tenant_id": "abc"}, "$.tenant_id", "32 hex digits"),
        ({"features": ["a", 5]}, "$.features[1]", "tls_experimental"),
        ({"reconfigure_concurrency": -1}, "$.reconfigure_concurrency", "0 counts as 1"),
        ({"reconfigure_concurrency": 1.0}, "$.reconfigure_concurrency", "0 counts as 1"),
        ({"reconfigure_concurrency": 2**64}, "$.reconfigure_concurrency", "0 counts as 1"),
    ],
)
def test_a_hint_says_what_to_do(changes: dict[str, Any], path: str, hint: str) -> None:
    (finding,) = report_of(document(**changes)).errors
    assert path_text(finding.path) == path
    assert hint in finding.hint


def test_a_misspelt_required_key_is_recognised() -> None:
    value = document("cluster", clutser=document()["cluster"])
    (finding,) = report_of(value).errors
    assert "clutser" in finding.hint


# Warnings: never an error, never an exit code.


@pytest.mark.parametrize(
    ("value", "path", "hint"),
    [
        (document(tenant_ID=TENANT), "$.tenant_ID", "did you mean tenant_id?"),
        (document(timestamp=0), "$.timestamp", "no effect"),
        (wrapped(document(), tenant_id=TENANT), "$.tenant_id", "belongs into spec"),
        (wrapped(document() | {"tls": {}}), "$.spec.tls", "belongs into"),
        (wrapped(document(cluster=cluster(roles=[{"name": "r", "x": 1}]))), "$.spec.cluster.roles[0].x", "no effect"),
    ],
)
def test_an_unknown_key_is_a_warning_that_guesses_what_was_meant(value: object, path: str, hint: str) -> None:
    report = report_of(value)
    assert not report.errors
    assert [hint for finding in report.warnings if path_text(finding.path) == path and hint in finding.hint]


def test_a_repeated_key_is_a_warning_but_all_its_values_count_as_input() -> None:
    text = json.dumps(document())
    report = inspect_configuration(
        text.replace('"tenant_id"', '"mode": "Replica", "mode": "Primary", "tenant_id"').encode()
    )
    assert (said(report.errors), list(said(report.warnings))) == ({}, ["$.mode"])
    doubled = text.replace('"tenant_id"', '"mode": 5, "mode": "Primary", "tenant_id"').encode()
    assert list(said(inspect_configuration(doubled).errors)) == ["$.mode"]
    with pytest.raises(SpecError):
        decode(doubled, ComputeSpec)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"pageserver_connection_info": info(0, [{"libpq_url": "host=pother"}])}, "$.pageserver_connstring"),
        (
            {
                "pageserver_connection_info": info(2, [PAGESERVER], [PAGESERVER]),
                "pageserver_connstring": "host=p0,host=p0",
                "shard_stripe_size": 16,
            },
            "$.shard_stripe_size",
        ),
        ({"cluster": cluster(setting("neon.tenant_id", TIMELINE))}, "$.cluster.settings[0].value"),
        ({"autoprewarm": True}, "$.autoprewarm"),
        ({"offload_lfc_interval_seconds": 60}, "$.offload_lfc_interval_seconds"),
        ({"cluster": cluster(setting("a", "1"), setting("a", "2"))}, "$.cluster.settings[1].name"),
        ({"cluster": cluster(roles=[{"name": "r"}, {"name": "r"}])}, "$.cluster.roles[1].name"),
        (
            {"cluster": cluster(roles=[{"name": "r", "encrypted_password": "0f" * 16}])},
            "$.cluster.roles[0].encrypted_password",
        ),
    ],
    ids=str,
)
def test_a_contradiction_is_a_warning(changes: dict[str, Any], path: str) -> None:
    value = document(**changes)
    assert errors_of(value) == {}
    assert path in warnings_of(value)
    spec = decode(json.dumps(value).encode(), ComputeSpec)
    assert [path_text(problem.path) for problem in contradictions(spec)] == [path]


def test_why_an_md5_hash_is_doubtful_is_told_without_it() -> None:
    """T-20: whoever reads the hash can log in with it; a SCRAM verifier is no such thing."""
    scram = f"SCRAM-SHA-256$4096:c2FsdA==${'A' * 43}=:{'B' * 43}="
    roles = [{"name": "old", "encrypted_password": "0F" * 16}, {"name": "new", "encrypted_password": scram}]
    warnings = warnings_of(document(cluster=cluster(roles=roles)))
    assert list(warnings) == ["$.cluster.roles[0].encrypted_password"]
    assert "pg_read_all_data" in str(warnings)
    assert "0f0f" not in str(warnings).lower()


def test_tls_without_its_feature_is_a_warning() -> None:
    ctl = CTL | {"tls": {"key_path": "k", "cert_path": "c"}}
    assert "$.compute_ctl_config.tls" in warnings_of(wrapped(document(), compute_ctl_config=ctl))
    assert "$.compute_ctl_config.tls" not in warnings_of(wrapped(STATIC, compute_ctl_config=ctl))


def test_what_this_version_does_not_act_upon_is_a_warning() -> None:
    parsed = parse_spec(msgspec.convert(LARGE["spec"], ComputeSpec))
    expected = unapplied(parsed, make_settings())
    rules = [finding.rule for finding in report_of(LARGE).warnings]
    assert [rule.partition(":")[0] for rule in rules if "act upon" in rule] == expected


@pytest.mark.parametrize(
    ("jwk", "said_of_it"),
    [
        ({"kty": "OKP", "crv": "Ed25519", "x": "!"}, "it cannot be read"),
        ({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}, "an Ed25519 key has 32 bytes, not 3"),
        ({"kty": "OKP", "crv": "X25519", "x": "A" * 43}, "its kind is not supported"),
        ({"kty": "RSA", "alg": "RS256", "n": "AQAB", "e": "AQAB"}, "17 bits are too short"),
        ({"kty": "RSA", "alg": "RS256", "n": "_" * 3000, "e": "AQAB"}, "18000 bits are too long"),
        ({"kty": "RSA", "alg": "RS256", "n": "_" * 342 + "w", "e": "AQ"}, "no RSA key"),
        ({}, "its kind is not supported"),
    ],
    ids=str,
)
def test_a_key_that_verifies_nothing_is_a_warning(jwk: dict[str, str], said_of_it: str) -> None:
    """C-08: told before the start, with or without a spec; the file stays usable (B-10)."""
    good = {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43, "kid": "k", "use": "sig", "key_ops": ["verify"]}
    ctl = {"jwks": {"keys": [good, jwk]}}
    answer = {"status": "empty", "compute_ctl_config": ctl}
    for value in (wrapped(document(), compute_ctl_config=ctl), {"compute_ctl_config": ctl}, answer):
        assert errors_of(value) == {}
        (path, rule), *others = warnings_of(value).items()
        assert (path, others) == ("$.compute_ctl_config.jwks.keys[1]", [])
        assert said_of_it in rule


def test_what_neon_local_always_writes_is_no_news() -> None:
    """C-08: fields that are known and unused, a user in a gRPC URL; other unknown keys are still told."""
    databases = [{"name": "neondb", "owner": "test", "options": None, "restrict_conn": False, "invalid": False}]
    roles = [{"name": "test", "encrypted_password": None, "options": None}]
    urls = {"id": 1, "libpq_url": "postgres://no_user@h:5432", "grpc_url": "grpc://no_user@h:51051"}
    shards = {"0000": {"pageservers": [urls]}}
    for protocol in ("libpq", "grpc"):
        info_ = {"shard_count": 0, "stripe_size": None, "shards": shards, "prefer_protocol": protocol}
        value = document(
            pageserver_connstring="postgres://no_user@h:5432",
            pageserver_connection_info=info_,
            cluster={"roles": roles, "databases": databases, "settings": None, "postgresql_conf": "", "state": None},
        )
        assert (errors_of(wrapped(value)), warnings_of(wrapped(value))) == ({}, {})
    assert list(warnings_of(document(restrict_conn=True))) == ["$.restrict_conn"]


def test_hints_are_not_spoilt_by_redaction() -> None:
    """C-08: what looks like a secret in them is an example; a secret that is an ordinary word changes nothing."""
    roles = [{"name": "r", "encrypted_password": "SCRAM-SHA-256$short"}, {"name": "s", "encrypted_password": "give"}]
    report = report_of(document(cluster=cluster(roles=roles)))
    (line,) = report.lines(report.errors)
    assert line["hint"].startswith("give SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>, or")
    lines = report.lines(report.warnings)
    assert "[redacted]" not in "".join(line["hint"] for line in lines)


# Large and many.


@pytest.mark.slow
def test_a_large_file_is_no_problem() -> None:
    roles = [{"name": f"role-{number}", "encrypted_password": "0" * 32, "options": []} for number in range(110_000)]
    data = json.dumps(wrapped(document(cluster=cluster(roles=roles)))).encode()
    assert len(data) > 9_000_000
    assert inspect_configuration(data).errors == []


def test_of_very_many_errors_the_first_are_shown_and_the_others_counted() -> None:
    report = report_of(document(features=list(range(5000))))
    lines = report.lines(report.errors)
    assert len(lines) == inspection.MOST_FINDINGS + 1
    assert lines[-1]["rule"] == "and 3000 more"


# Secrets.


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_no_secret_is_printed_whatever_is_wrong_with_it(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *flags, DATA / "invalid-secrets.json")
    assert code == 1
    assert "hush" in (DATA / "invalid-secrets.json").read_text()
    assert "hush" not in out + err


SECRET_PLACES = [
    ("spec", "storage_auth_token"),
    ("spec", "endpoint_storage_token"),
    ("spec", "cluster", "roles", 0, "encrypted_password"),
]


@settings(max_examples=150)
@given(st.data())
def test_no_mutation_of_a_file_with_secrets_prints_one(data: st.DataObject) -> None:
    value = json.loads(
        json.dumps(LARGE).replace("example-storage-token", "hush-s").replace("example-endpoint-token", "hush-e")
    )
    for place in SECRET_PLACES:
        wrong = data.draw(st.sampled_from(["hush-text", ["hush-list"], {"hush-key": "hush-value"}, [{"a": "hush-x"}]]))
        value = mutated(value, place, wrong, delete=False)
    value = mutated(
        value, data.draw(st.sampled_from(places(value))), data.draw(STRANGE), delete=data.draw(st.booleans())
    )
    report = inspect_configuration(json.dumps(value).encode())
    assert "hush" not in json.dumps(report.lines(report.errors) + report.lines(report.warnings))


# The command line.


def test_help_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    assert "usage: trio-compute validate" in out
    for argv in ([], ["--nonsense", "x"], ["--jso", "x"]):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (2, "")
        assert "usage: trio-compute validate" in err


def test_a_file_that_cannot_be_read_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in (tmp_path / "missing.json", tmp_path, "nul\0byte"):
        code, out, err = run(capsys, name)
        assert code == 1
        assert "cannot read the file" in out
        assert err == ""


def test_standard_input_is_read() -> None:
    data = json.dumps(wrapped(document(mode="primary"))).encode()
    command = [sys.executable, "-m", "trio_compute", "validate", "-"]
    done = subprocess.run(command, input=data, capture_output=True)
    assert done.returncode == 1
    assert done.stdout.startswith(b"-:$.spec.mode: unknown value")
    assert done.stderr == b""


def test_lines_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, wrapped(document("tenant_id", timestamp=1)))
    give = "give tenant_id, or setting neon.tenant_id: 32 hex digits"
    take_away = "it has no effect: take it away unless something else reads it"
    assert run(capsys, path)[1].splitlines() == [
        f"{path}:$.spec.tenant_id: tenant id should be provided (hint: {give})",
        f"{path}:$.spec.timestamp: warning: unknown key (hint: {take_away})",
    ]


def test_json_for_programs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good, bad = DATA / "config_small.json", write(tmp_path, wrapped(document("tenant_id", timestamp=1)))
    code, out, _ = run(capsys, good, bad, "--json")
    assert code == 1
    first, second = json.loads(out)["files"]
    assert first == {"file": str(good), "ok": True, "errors": [], "warnings": []}
    assert (second["file"], second["ok"]) == (str(bad), False)
    (error,), (warning,) = second["errors"], second["warnings"]
    assert error.keys() == warning.keys() == {"path", "rule", "hint"}
    assert (error["path"], error["rule"]) == ("$.spec.tenant_id", "tenant id should be provided")


def test_warnings_leave_the_exit_code_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, write(tmp_path, wrapped(document(timestamp=1))))[0] == 0


def test_odd_keys_cannot_upset_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    keys = ["\x1b[31m", "\u202e", "a\nb", 'quo"te', "x" * 500, "ä", "\ud83d\ude00"]
    path = write(tmp_path, wrapped(document(**dict.fromkeys(keys, 1))))
    code, out, _ = run(capsys, path)
    assert code == 0
    assert all(character.isprintable() or character == "\n" for character in out)
    assert len(out.splitlines()) == len(keys) + 1
    assert max(map(len, out.splitlines())) < 400
