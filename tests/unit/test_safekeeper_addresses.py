"""How a spec may name safekeepers (contract 11 C-01, C-05)."""

from __future__ import annotations

import json

import pytest

from tests.unit.builders import cluster, document, parsed_spec, setting
from trio_compute.commands.inspection import inspect_configuration
from trio_compute.errors import SpecError
from trio_compute.model.addresses import safekeeper_address
from trio_compute.plan.postgres_conf import ConfContext, render_postgresql_conf
from trio_compute.plan.promotion import promotion_overrides

CONTEXT = ConfContext(privileged_role_name="neon_superuser", internal_http_port=3081)
WHO_USES_WHICH = "the compute uses the former, Postgres the latter"
URLS = ["postgresql://postgres:@sk-0:5454", "postgres://u:s3cret@sk-1", "postgresql://[::1]:5454/x?sslmode=disable"]


def refusal(**changes: object) -> str:
    with pytest.raises(SpecError) as caught:
        parsed_spec(**changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("postgresql://postgres:@sk-0:5454", "sk-0", 5454),
        ("postgresql://sk-0.safekeeper.neon.svc", "sk-0.safekeeper.neon.svc", 5432),
        ("POSTGRES://u@127.0.0.1:1", "127.0.0.1", 1),
        ("postgresql://u:p@ss@[fe80::1]:5454", "fe80::1", 5454),
        ("postgresql://u:p@[::1]", "::1", 5432),
        ("postgresql://sk-0:5454/postgres?connect_timeout=5", "sk-0", 5454),
        ("sk-0:5454", "sk-0", 5454),
    ],
)
def test_a_safekeeper_may_be_given_as_a_url(entry: str, host: str, port: int) -> None:
    """C-01: scheme, user and password are stripped; the port is 5432 if there is none."""
    assert safekeeper_address(entry) == (host, port)
    assert parsed_spec(safekeeper_connstrings=[entry]).safekeepers == (entry,)


def test_postgres_gets_safekeepers_as_they_are_written() -> None:
    """C-01: in postgresql.conf and in a promotion."""
    parsed = parsed_spec(safekeeper_connstrings=URLS, safekeepers_generation=3)
    text = render_postgresql_conf(parsed, CONTEXT)
    assert f"\nneon.safekeepers='g#3:{','.join(URLS)}'\n" in text
    assert promotion_overrides(parsed, text)["neon.safekeepers"] == f"g#3:{','.join(URLS)}"
    assert promotion_overrides(parsed, "")["neon.safekeepers"] == ",".join(URLS)


def test_safekeepers_as_urls_cause_one_warning() -> None:
    """C-01: at the start and in `validate`, however many there are, and no secret in it."""
    parsed = parsed_spec(safekeeper_connstrings=URLS)
    assert [text for text in parsed.warnings if "URL" in text] == list(parsed.warnings)
    assert len(parsed.warnings) == 1
    report = inspect_configuration(json.dumps(document(safekeeper_connstrings=URLS)).encode())
    assert (report.errors, [finding.path for finding in report.warnings]) == ([], [("safekeeper_connstrings",)])
    assert "s3cret" not in str(parsed.warnings) + str(report.warnings)
    assert parsed_spec().warnings == ()


def test_urls_of_the_setting_are_accepted_too() -> None:
    """C-01: where the spec has no list of its own."""
    setting_ = setting("neon.safekeepers", "g#1:postgresql://postgres:@sk-0:5454,sk-1:5454")
    parsed = parsed_spec("safekeeper_connstrings", cluster=cluster(setting_))
    assert parsed.safekeepers == ("postgresql://postgres:@sk-0:5454", "sk-1:5454")


@pytest.mark.parametrize(
    "second", ["sk-0:5454", "SK-0:5454", "sk-0:05454", "postgres://other:pass@sk-0:5454", "postgresql://sk-0:5454/db"]
)
def test_safekeepers_are_unique_as_host_and_port(second: str) -> None:
    """C-01: not only as texts."""
    message = refusal(safekeeper_connstrings=["postgresql://postgres:@sk-0:5454", "sk-1:5454", second])
    assert message.lower() == "duplicate entry in safekeeper_connstrings: sk-0:5454!"
    assert len(parsed_spec(safekeeper_connstrings=["sk-0:1", "postgres://sk-0:2", "sk-0:5432"]).safekeepers) == 3


@pytest.mark.parametrize(
    "entry",
    ["postgresql://", "postgresql://u:s3cret@", "postgresql://u:s3cret@h:0", "postgresql://u:s3cret@h:x",
     "postgresql://u:s3cret@a,b", "postgresql://u:s3cret,x@h:1", "postgresql://u:s3cret@:5454",
     "postgresql://u:s3cret@::1", "postgresql://u:s3cret@h:1 ", "postgresql://u:s3c ret@h:1"],
)  # fmt: skip
def test_a_url_without_one_host_and_port_is_refused_without_repeating_it(entry: str) -> None:
    """C-01, S-13: found when the spec is accepted; a password stays unsaid."""
    message = refusal(safekeeper_connstrings=["good:5454", entry])
    assert "names no single host and port" in message
    assert "s3c" not in message
    report = inspect_configuration(json.dumps(document(safekeeper_connstrings=["good:5454", entry])).encode())
    assert [finding.path for finding in report.errors] == [("safekeeper_connstrings", 1)]


@pytest.mark.parametrize("entry", ["http://h:5454", "sk-0", "u:p@h:5454"])
def test_what_is_neither_url_nor_host_and_port_is_refused(entry: str) -> None:
    """C-01: only a URL may do without a port."""
    assert "is not host:port" in refusal(safekeeper_connstrings=[entry])


@pytest.mark.parametrize(
    ("value", "generation", "said"),
    [
        ("sk-9:5454", None, "safekeeper_connstrings and setting"),
        ("g#3:sk-0:1", 3, "safekeeper_connstrings and setting"),
        ("g#4:sk-0:1,sk-1:2", 3, "safekeepers_generation and setting"),
        ("sk-0:1,sk-1:2", 3, "safekeepers_generation and setting"),
        ("g#4:sk-0:1", 3, "safekeeper_connstrings and safekeepers_generation and setting"),
        ("g#3:SK-1:2, postgres://u:s3cret@sk-0:1", 3, None),
        ("g#3:sk-0:1,sk-1:2", None, None),
        ("", 3, None),
    ],
)
def test_a_setting_that_contradicts_the_list_is_a_warning(value: str, generation: int | None, said: str | None) -> None:
    """C-05: at the start and in `validate`; Postgres obeys the setting."""
    changes = {
        "safekeeper_connstrings": ["sk-0:1", "sk-1:2"],
        "safekeepers_generation": generation,
        "cluster": cluster(setting("neon.safekeepers", "sk-9:9"), setting("Neon.safekeepers", value)),
    }
    if not value:
        changes["cluster"] = cluster(setting("neon.safekeepers", value))
    told = [text for text in parsed_spec(**changes).warnings if "disagree" in text]
    assert told == ([] if said is None else [f"{said} neon.safekeepers disagree: {WHO_USES_WHICH}"])
    report = inspect_configuration(json.dumps(document(**changes)).encode())
    assert report.errors == []
    assert [finding.rule for finding in report.warnings if "disagree" in finding.rule] == told
