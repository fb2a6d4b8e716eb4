"""The variables `OTEL_*` (contract 01 §2, 10 §8): bad values are told and never stop a compute."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_settings import parse
from trio_compute.trace_settings import TraceSettings, trace_settings

GENERAL, TRACES = "OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"


def test_without_variables_the_default_collector_gets_traces_of_compute_ctl() -> None:
    settings = parse(environ={}).traces
    assert settings == TraceSettings()
    assert (settings.url, settings.service_name) == ("http://localhost:4318/v1/traces", "compute_ctl")
    assert (settings.timeout_seconds, settings.headers, settings.gzip) == (10.0, (), False)


@pytest.mark.parametrize(
    ("environ", "name", "expected"),
    [
        ({GENERAL + "ENDPOINT": "http://c:1"}, "url", "http://c:1/v1/traces"),
        ({GENERAL + "ENDPOINT": "https://c/base/"}, "url", "https://c/base/v1/traces"),
        ({GENERAL + "ENDPOINT": "http://c/b?x=1"}, "url", "http://c/b/v1/traces?x=1"),
        ({TRACES + "ENDPOINT": "http://c:1"}, "url", "http://c:1/"),
        (
            {TRACES + "ENDPOINT": "http://c:1/my/traces", GENERAL + "ENDPOINT": "http://d"},
            "url",
            "http://c:1/my/traces",
        ),
        ({GENERAL + "ENDPOINT": ""}, "url", "http://localhost:4318/v1/traces"),
        ({GENERAL + "HEADERS": "a=b, X-Key = c%20d,"}, "headers", (("a", "b"), ("x-key", "c d"))),
        ({GENERAL + "HEADERS": "a=b", TRACES + "HEADERS": "c=d=e"}, "headers", (("c", "d=e"),)),
        ({GENERAL + "TIMEOUT": "1500"}, "timeout_seconds", 1.5),
        ({GENERAL + "TIMEOUT": "1500", TRACES + "TIMEOUT": "20"}, "timeout_seconds", 0.02),
        ({GENERAL + "COMPRESSION": "gzip"}, "gzip", True),
        ({GENERAL + "COMPRESSION": "gzip", TRACES + "COMPRESSION": "none"}, "gzip", False),
        ({"OTEL_SERVICE_NAME": "mine"}, "service_name", "mine"),
        ({GENERAL + "PROTOCOL": "http/protobuf"}, "warnings", ()),
    ],
)
def test_each_variable_sets_its_value(environ: dict[str, str], name: str, expected: Any) -> None:
    settings = parse(environ=environ).traces
    assert getattr(settings, name) == expected
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(
            (GENERAL + "ENDPOINT", text)
            for text in ("c:4318", "ftp://c", "http://", "http://c:99999", "http://[", "http://a b")
        ),
        (TRACES + "ENDPOINT", "nonsense"),
        (GENERAL + "HEADERS", "no-equals-s3cr3t"),
        (GENERAL + "HEADERS", "a b=s3cr3t"),
        (GENERAL + "HEADERS", "a=s3cr3t%0d%0ax: y"),
        *((GENERAL + "TIMEOUT", text) for text in ("0", "-1", "soon", "1.5", "9" * 50)),
        (TRACES + "TIMEOUT", "٣"),
        (GENERAL + "COMPRESSION", "zstd"),
        (GENERAL + "PROTOCOL", "grpc"),
        (TRACES + "CERTIFICATE", "/ca.pem"),
    ],
)
def test_a_bad_value_is_told_by_name_and_the_default_counts(variable: str, text: str) -> None:
    settings = trace_settings({variable: text})
    (warning,) = settings.warnings
    assert warning.startswith(variable + " ")
    assert "s3cr3t" not in warning + repr(settings)
    assert (settings.url, settings.headers, settings.timeout_seconds) == ("http://localhost:4318/v1/traces", (), 10.0)


def test_a_bad_variable_for_traces_leaves_the_general_one() -> None:
    settings = trace_settings({TRACES + "TIMEOUT": "x", GENERAL + "TIMEOUT": "7"})
    assert (settings.timeout_seconds, len(settings.warnings)) == (0.007, 1)


def test_credentials_are_secrets_and_ordinary_headers_are_not() -> None:
    headers = "authorization=Basic%20dXNlcjpwdw==,x-api-key=k3y-k3y,x-scope-orgid=prod"
    settings = parse(environ={GENERAL + "HEADERS": headers, GENERAL + "ENDPOINT": "http://u:p%40ss@c"})
    secrets = settings.secrets()
    assert {"Basic dXNlcjpwdw==", "dXNlcjpwdw==", "k3y-k3y", "p%40ss", "p@ss"} <= set(secrets)
    assert "prod" not in secrets
