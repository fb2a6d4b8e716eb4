"""The state diagram, drawn from the table so that it cannot lie."""

from __future__ import annotations

from collections import defaultdict

from trio_compute.lifecycle.transitions import TABLE


def mermaid() -> str:
    """Return the transition table as a Mermaid state diagram; edges between the same two statuses share a line."""
    edges: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (source, event), target in TABLE.items():
        if source is not target:
            edges[source.value, target.value].append(event.__name__)
    lines = ["stateDiagram-v2", "    [*] --> empty"]
    lines += [f"    {source} --> {target}: {', '.join(names)}" for (source, target), names in edges.items()]
    return "\n".join([*lines, "    terminated --> [*]", ""])
