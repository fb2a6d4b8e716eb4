"""Entry points: `compute_ctl` and `trio-compute`. Nothing heavy is imported before the sockets are bound."""

from __future__ import annotations

import sys

from trio_compute.host.early_signals import ignore_stop_signals, remember_stop_signals


def compute_ctl() -> None:
    """Run one compute with the flags of the original compute_ctl."""
    remember_stop_signals()
    from trio_compute.cli import run_compute

    code = run_compute(sys.argv[1:], prog="compute_ctl")
    ignore_stop_signals()
    sys.exit(code)


def main() -> None:
    """Run a sub-command of trio-compute."""
    is_compute = sys.argv[1:2] == ["run"]
    if is_compute:
        remember_stop_signals()
    from trio_compute.cli import run_subcommand

    code = run_subcommand(sys.argv[1:])
    if is_compute:
        ignore_stop_signals()
    sys.exit(code)


if __name__ == "__main__":
    main()
