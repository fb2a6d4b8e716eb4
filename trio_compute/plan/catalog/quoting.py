"""Names and texts as SQL writes them (contract 05 §4)."""

from __future__ import annotations


def identifier(name: str) -> str:
    """Return a name in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as a literal that means the same whatever `standard_conforming_strings` is."""
    quoted = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{quoted}'" if "\\" in quoted else f"'{quoted}'"


def dollar_quoted(text: str) -> tuple[str, str]:
    """Return a text between dollar signs, and a tag for a block around it."""
    tag = "x"
    while tag in text:
        tag += "x"
    return f"${tag}${text}${tag}$", f"{tag}x"
