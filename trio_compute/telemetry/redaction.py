"""Keep secrets out of everything that is printed or answered (contract 01 B-12, 03 A-07)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from trio_compute.model.parsed import ParsedSpec

REDACTED = "[redacted]"
_SHORTEST_SECRET = 4

_NAMED = r"(password|auth_token|storage_token|plane_token)"
_SINGLE = r"'(?:[^'\\]|''|\\.)*'?"
_DOUBLE = r'"(?:[^"\\]|\\.)*"?'

# No pattern may take more than linear time: they run over whatever Postgres and clients send.
_PATTERNS = (
    (re.compile(r"(?i)\b(bearer)\s+[^\s\"',;]+"), r"\1 " + REDACTED),
    (re.compile(r"(?<![\w-])eyJ[\w-]+\.[\w-]+\.[\w-]*"), REDACTED),
    (re.compile(r"(://[^\s:/@]*):[^\s/@]+@"), r"\1:" + REDACTED + "@"),
    (re.compile(rf"(?is){_NAMED}\s*=\s*({_SINGLE}|{_DOUBLE}|\S+)"), r"\1=" + REDACTED),
    (re.compile(rf'(?is){_NAMED}("\s*:\s*){_DOUBLE}'), r'\1\2"' + REDACTED + '"'),
    (re.compile(rf"(?is)\b(password)\s+E?{_SINGLE}"), r"\1 " + REDACTED),
    (re.compile(r"SCRAM-SHA-256\$[^\s\"']+"), REDACTED),
)
# Without one of these words no pattern matches: most texts need no more than this one search.
_SUSPICIOUS = re.compile(r"(?i)bearer|eyJ|://|password|auth_token|storage_token|plane_token|SCRAM-SHA")


class Redactor:
    """Know the secrets of this process and remove them, and whatever looks like one, from texts."""

    def __init__(self) -> None:
        self._secrets: tuple[str, ...] = ()

    def learn(self, secrets: Iterable[str | None]) -> None:
        """Remember values that must never appear; very short ones would black out ordinary words and are skipped."""
        known = {*self._secrets, *(s for s in secrets if s is not None and len(s) >= _SHORTEST_SECRET)}
        # Longest first: a secret that begins another one must not leave the other's tail.
        self._secrets = tuple(sorted(known, key=len, reverse=True))

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, REDACTED)
        if _SUSPICIOUS.search(text) is not None:
            for pattern, replacement in _PATTERNS:
                text = pattern.sub(replacement, text)
        return text


redact = Redactor()


def learn_spec(parsed: ParsedSpec) -> None:
    """Remember the secrets of a spec before anything about it can be printed."""
    spec = parsed.spec
    redact.learn([spec.storage_auth_token, parsed.endpoint_storage_token])
    redact.learn(role.encrypted_password for role in spec.cluster.roles)
