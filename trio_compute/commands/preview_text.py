"""What an apply would do, for people to read."""

from __future__ import annotations

from trio_compute.plan.preview import Preview


def preview_text(preview: Preview) -> str:
    """Return lines for people: warnings, each operation with its statement, the changed settings."""
    lines = [f"warning: {warning}" for warning in preview.warnings]
    for phase in preview.phases:
        lines += ["", f"{phase.phase} (database {phase.database})"]
        for operation in phase.operations:
            lines += [f"  {operation.operation}, since {operation.why}", *_statement_lines(operation.statement)]
    if preview.configuration_diff:
        lines += ["", "postgresql.conf", *(f"  {line}" for line in preview.configuration_diff.splitlines())]
    if preview.restart_required:
        lines += ["", f"waits for a restart: {', '.join(preview.restart_required)}"]
    if preview.is_empty:
        lines += ["nothing to do"]
    return "\n".join(lines).strip("\n")


def _statement_lines(statement: str) -> list[str]:
    return [f"      {line}" for line in statement.splitlines()]
