"""What an apply would do, for people and programs: nothing in it is secret (contract 05 K-34, 04 F-26)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from trio_compute.plan.catalog.operations import Operation, Phase, Plan
from trio_compute.plan.conf_diff import changed_settings, diff_postgresql_conf, shown_value

Hide = Callable[[str], str]


class OperationView(Struct, frozen=True, omit_defaults=True):
    """Show one operation; `only_if` is a query without whose row the statement is passed over.

    With `generated`, the statement is a query whose rows are the statements to run.
    """

    operation: str
    why: str
    object: str
    statement: str
    only_if: str | None = None
    generated: bool = False


class PhaseView(Struct, frozen=True):
    """Show one phase, and the database that it runs in."""

    phase: str
    database: str
    operations: list[OperationView]


class SettingView(Struct, frozen=True):
    """Show a setting that changes; null is a setting that the file does not have."""

    name: str
    old: str | None
    new: str | None


class Preview(Struct, frozen=True, kw_only=True):
    """Show what would be done; `restart_required` names fields of the spec and settings that would have to wait."""

    phases: list[PhaseView]
    warnings: list[str]
    settings: list[SettingView]
    configuration_diff: str
    restart_required: list[str]

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing would be done."""
        return not (self.phases or self.settings)


def preview_of(
    plan: Plan,
    system_database: str,
    *,
    old_conf: str,
    new_conf: str,
    restart_required: Sequence[str],
    hide: Hide,
    warnings: Sequence[str] = (),
) -> Preview:
    """Return the view of a plan and of a change of postgresql.conf, freed of secrets by `hide`.

    `warnings` are those of the spec; those of the plan follow.
    """
    return Preview(
        phases=[_phase_view(phase, database or system_database, hide) for database, phase in plan.located()],
        warnings=[hide(warning) for warning in dict.fromkeys((*warnings, *plan.warnings))],
        settings=[
            SettingView(name, _shown(name, old, hide), _shown(name, new, hide))
            for name, (old, new) in changed_settings(old_conf, new_conf).items()
        ],
        configuration_diff=diff_postgresql_conf(old_conf, new_conf, hide=hide),
        restart_required=list(restart_required),
    )


def _phase_view(phase: Phase, database: str, hide: Hide) -> PhaseView:
    return PhaseView(phase.name, database, [_operation_view(operation, hide) for operation in phase.operations])


def _operation_view(operation: Operation, hide: Hide) -> OperationView:
    return OperationView(
        hide(operation.what),
        hide(operation.why),
        str(operation.subject),
        hide(operation.shown),
        operation.only_if,
        operation.each,
    )


def _shown(name: str, value: str | None, hide: Hide) -> str | None:
    return None if value is None else shown_value(name, value, hide=hide)
