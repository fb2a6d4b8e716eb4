"""All that is wrong with one configuration: syntax, shape, the rules of contract 01 §9, what is doubtful."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

import msgspec
from msgspec import Struct

from trio_compute.errors import SpecError
from trio_compute.model.advice import config_contradictions, contradictions, unusable_names
from trio_compute.model.decode import decode
from trio_compute.model.document import NotJson, read_document
from trio_compute.model.parsed import ParsedSpec, parse_spec, problems
from trio_compute.model.problems import Path, Problem
from trio_compute.model.shape import Finding, Walk
from trio_compute.model.spec import ComputeConfig, ComputeSpec, ControlPlaneAnswer, Wire
from trio_compute.plan.postgres_conf import ConfContext, render_postgresql_conf
from trio_compute.plan.unapplied import unapplied
from trio_compute.settings import Settings
from trio_compute.telemetry.redaction import Redactor

MOST_FINDINGS = 2000

KNOWN_KEYS = frozenset(name for wire in Wire.__subclasses__() for name in wire.__struct_encode_fields__)

Kind = type[ComputeConfig] | type[ComputeSpec] | type[ControlPlaneAnswer]

# The texts of the contract that quote a value of the spec; what is no plain address may hold a password.
_QUOTING = re.compile(
    r"(?s)(?P<before>.*(?:connstrings entry|connstrings:|stripe_size:)) (?P<value>.*?)(?P<after> is not .*|!)"
)
_PLAIN_VALUE = re.compile(r"['\"]?[\w.:\[\]-]{0,79}['\"]?", re.ASCII)
_PLAIN_KEY = re.compile(r"\A[A-Za-z_][A-Za-z0-9_]{0,79}\Z")
_LONGEST_KEY = 80


class Report(Struct, frozen=True):
    """Hold what is wrong and what is doubtful with one document."""

    errors: list[Finding]
    warnings: list[Finding]
    is_bare: bool = False
    secrets: tuple[str, ...] = ()

    def lines(self, findings: list[Finding]) -> list[dict[str, str]]:
        """Return findings as text, free of secrets; of very many only the first."""
        redact = Redactor()
        redact.learn(self._quoted_secrets(findings[:MOST_FINDINGS]))
        lines = [
            {
                "path": path_text(finding.path, redact),
                "rule": redact(_without_odd_value(finding.rule)),
                # A hint is a text of ours, in which what looks like a secret is an example (C-08).
                "hint": redact(finding.hint) if finding.quotes_keys else finding.hint,
            }
            for finding in findings[:MOST_FINDINGS]
        ]
        if len(findings) > MOST_FINDINGS:
            rest = len(findings) - MOST_FINDINGS
            lines.append({"path": "$", "rule": f"and {rest} more", "hint": "mend the first ones, then ask again"})
        return lines

    def _quoted_secrets(self, findings: list[Finding]) -> Iterator[str]:
        """Yield the few secrets that the texts contain; there may be a hundred thousand passwords in a file."""
        texts = "\n".join(str(text) for one in findings for text in (*one.path, one.rule, one.hint))
        # Texts quote at most 80 or 40 characters of a value: such a part of a secret is as good as the whole.
        for length in (None, 80, 40):
            cut = {secret[:length] for secret in self.secrets if length is None or len(secret) > length}
            yield from (secret for secret in cut if secret in texts)


def inspect_configuration(data: bytes) -> Report:
    """Return all that is wrong or doubtful with config.json, a bare spec, or an answer of the control plane."""
    try:
        document = read_document(data)
    except NotJson as error:
        return Report([Finding((), str(error), error.hint)], [])
    wire = wire_of(document)
    walk = Walk()
    repaired = walk.visit_document(document, wire)
    errors, warnings = walk.errors, walk.warnings
    if not errors:
        errors += _missed(data, wire)
    value = _converted(repaired, wire)
    rules, doubts = _judge(value)
    wrong_shapes = Places(finding.path for finding in errors)
    errors += [_finding(problem) for problem in rules if not wrong_shapes.touch(problem)]
    warnings += [_finding(problem) for problem in doubts if not wrong_shapes.touch(problem)]
    return Report(errors, warnings, wire is ComputeSpec, (*walk.secrets, *_secret_settings(value)))


def wire_of(document: Any) -> Kind:
    """Return what a document means to be; a spec is wrapped if there is the key `compute_ctl_config`."""
    if not isinstance(document, dict):
        return ComputeConfig
    if "compute_ctl_config" in document:
        return ControlPlaneAnswer if "status" in document else ComputeConfig
    is_forgotten = "spec" in document and "cluster" not in document
    return ComputeConfig if is_forgotten or not document else ComputeSpec


def path_text(path: Path, redact: Callable[[str], str] = str) -> str:
    """Return a path as JSONPath spells it; unusual keys are quoted, freed of secrets and cut short."""
    text = "$"
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step in KNOWN_KEYS:
            text += f".{step}"
        else:
            key = redact(step)
            text += f".{key}" if _PLAIN_KEY.match(key) else f"[{json.dumps(key[:_LONGEST_KEY])}]"
    return text


class Places:
    """Know where shapes are wrong: rules about such places, what holds them or what they hold, would mislead."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._exact = set(paths)
        self._above = {path[:length] for path in self._exact for length in range(len(path))}

    def touch(self, problem: Problem) -> bool:
        """Tell whether a rule depends on a value whose shape is wrong."""
        return any(
            path in self._above or any(path[:length] in self._exact for length in range(len(path) + 1))
            for path in (problem.path, *problem.also)
        )


def _converted(repaired: Any, wire: Kind) -> Any:
    try:
        return msgspec.convert(repaired, wire)
    except msgspec.ValidationError:
        return None


def _secret_settings(value: ComputeConfig | ComputeSpec | ControlPlaneAnswer | None) -> list[str]:
    spec = value if isinstance(value, ComputeSpec) or value is None else value.spec
    settings = spec.cluster.settings if spec is not None else None
    return [option.value for option in settings or () if option.value and option.name.endswith(("token", "password"))]


def _missed(data: bytes, wire: Kind) -> list[Finding]:
    """Ask the decoder of the compute as well: whatever it refuses must not pass here."""
    try:
        decode(data, wire)
    except SpecError as error:
        return [Finding((), str(error), "the compute refuses it")]
    return []


def _judge(value: ComputeConfig | ComputeSpec | ControlPlaneAnswer | None) -> tuple[list[Problem], list[Problem]]:
    """Return broken rules and doubts, with paths that begin at the document."""
    if value is None or isinstance(value, ComputeSpec):
        return ([], []) if value is None else _judge_spec(value, ())
    if value.spec is not None:
        rules, doubts = _judge_spec(value.spec, ("spec",))
        return rules, [*config_contradictions(value), *doubts]
    rules = []
    if isinstance(value, ControlPlaneAnswer) and value.status == "attached":
        missing = "compute is attached, but spec is empty"
        rules = [Problem(path=("spec",), message=missing, hint="give the spec, or status empty", also=(("status",),))]
    return rules, [*config_contradictions(value)]


def _judge_spec(spec: ComputeSpec, root: Path) -> tuple[list[Problem], list[Problem]]:
    rules = [*problems(spec), *unusable_names(spec)]
    doubts = [*contradictions(spec)]
    if not rules:
        parsed = parse_spec(spec)
        rules += _conf_problems(parsed)
        doubts += _unapplied(parsed)
    return [_below(root, problem) for problem in rules], [_below(root, problem) for problem in doubts]


def _conf_problems(parsed: ParsedSpec) -> list[Problem]:
    try:
        render_postgresql_conf(parsed, ConfContext(privileged_role_name="neon_superuser", internal_http_port=0))
    except SpecError as error:
        hint = "postgresql.conf cannot be written with it"
        return [Problem(path=("cluster", "settings"), message=str(error), hint=hint)]
    return []


def _unapplied(parsed: ParsedSpec) -> list[Problem]:
    settings = Settings(compute_id="", pgdata=FilePath(), connstr="")
    fields = ComputeSpec.__struct_fields__
    return [
        Problem(
            path=(name,) if name in fields else (),
            message=f"{name}: accepted, but this version does not act upon it",
            hint="leave it out, or do not rely on it",
        )
        for name in unapplied(parsed, settings)
    ]


def _below(root: Path, problem: Problem) -> Problem:
    also = tuple((*root, *path) for path in problem.also)
    return msgspec.structs.replace(problem, path=(*root, *problem.path), also=also)


def _finding(problem: Problem) -> Finding:
    return Finding(problem.path, problem.message, problem.hint)


def _without_odd_value(rule: str) -> str:
    """Return a text of the contract without the value it quotes, unless that is plainly an address or a number."""
    parts = _QUOTING.fullmatch(rule)
    if parts is None or _PLAIN_VALUE.fullmatch(parts["value"]):
        return rule
    return parts["before"].removesuffix(":") + parts["after"]
