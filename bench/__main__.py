"""`python -m bench NAME`: every speed claim, measured against its floor or a peer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from bench.report import show
from trio_compute.errors import ComputeError, cause_chain

BENCHES = ("startup", "terminate", "unpack", "safekeepers", "reconcile", "http", "failover")


def main(argv: Sequence[str]) -> int:
    """Run a bench and return the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.name is None:
        parser.print_help()
        return 0
    bench = import_module(f"bench.{options.name}")
    try:
        report = bench.run(options.runs or bench.DEFAULT_RUNS)
    except ComputeError as error:
        print(f"error: {cause_chain(error)}", file=sys.stderr)
        return 1
    show(report, as_json=options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, BENCHES))
    lines = [f"  {name:<{width}}  {import_module(f'bench.{name}').SUMMARY}" for name in BENCHES]
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        usage="%(prog)s NAME [--json] [--runs N]",
        description="Measure trio_compute against its floor or a peer, in the same run.",
        epilog="\n".join(["benches:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=BENCHES, metavar="NAME", help="which bench; none lists them")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, the table on stderr")
    parser.add_argument(
        "--runs", type=_runs, metavar="N", help="how often each thing is measured (default: the bench's)"
    )
    return parser


def _runs(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of runs")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
