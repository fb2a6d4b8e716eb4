"""How two texts of postgresql.conf differ, to show before anything is applied (contract 04 F-26)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator

from trio_compute.plan.conf_syntax import effective_settings, quote, read_line

Hide = Callable[[str], str]

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(r"(?i)password|passphrase|secret|token")
# In a value, such as the environment of a command.
_ASSIGNED = re.compile(
    r"(?i)((?:password|passphrase|secret|token)[A-Za-z_]{0,40}\s{0,5}[=:]\s{0,5})"
    r"(?:'(?:[^'\\]|\\.)*'?|\"(?:[^\"\\]|\\.)*\"?|[^\s'\"]+)"
)
# Up to the last `@` of a URL, so that no tail of a password with a bare `@` or `/` stays; bounded to stay linear.
_USER_INFO = re.compile(r"(://[^\s:/@,]{0,200}):[^\s,]{0,1000}@")


def diff_postgresql_conf(old_text: str, new_text: str, *, hide: Hide) -> str:
    """Return a unified diff without secrets, empty if the texts are equal; `hide` is telemetry's redactor."""
    lines = difflib.unified_diff(
        old_text.split("\n"), new_text.split("\n"), "postgresql.conf (present)", "postgresql.conf (new)", lineterm=""
    )
    return "".join(f"{line}\n" for line in _shown_lines(lines, hide))


def changed_settings(old_text: str, new_text: str) -> dict[str, tuple[str | None, str | None]]:
    """Return the settings, in lower case and in order, whose effective value differs, each with old and new value.

    The last line of a name counts; None means that the text does not set it. Values are not freed of secrets: show
    them through `shown_value`.
    """
    old, new = effective_settings(old_text), effective_settings(new_text)
    names = sorted(old.keys() | new.keys())
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def shown_value(name: str, value: str, *, hide: Hide) -> str:
    """Return the value of a setting without secrets."""
    if _SECRET_NAME.search(name):
        return HIDDEN
    return hide(_ASSIGNED.sub(rf"\1{HIDDEN}", _USER_INFO.sub(rf"\1:{HIDDEN}@", value)))


def _shown_lines(lines: Iterator[str], hide: Hide) -> Iterator[str]:
    for number, line in enumerate(lines):
        # The first two lines name the files; hunks begin with @@.
        is_content = number > 1 and not line.startswith("@@")
        yield line[0] + _shown_line(line[1:], hide) if is_content else line


def _shown_line(line: str, hide: Hide) -> str:
    setting = read_line(line)
    if setting is not None:
        # By value, since quotes that are doubled in the file would mislead patterns that look for quoted passwords.
        name, value = setting
        shown = shown_value(name, value, hide=hide)
        return line if shown == value else f"{name} = {quote(shown)}"
    # A comment or a broken line: what follows such a word may be anything.
    named = _SECRET_NAME.search(line)
    if named is not None:
        line = f"{line[: named.end()]} {HIDDEN}"
    return hide(_USER_INFO.sub(rf"\1:{HIDDEN}@", line))
