"""`trio-compute terminate`: ends a compute and tells up to which LSN its commits are safe."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import get_args

from trio_compute.client import ComputeClient
from trio_compute.commands.asking import asking_parser, print_json, run_asking
from trio_compute.commands.terminal import Paint, printable, say
from trio_compute.model.requests import TerminateMode


def run_terminate(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """End a compute, wait until Postgres is gone and the final sync is over; return the exit code."""
    parser = asking_parser("terminate", "End a compute and wait until Postgres is gone and its commits are safe.")
    add = parser.add_argument
    add("--mode", choices=get_args(TerminateMode), default="fast", help="go on answering for 30 s, or 0.3 s (fast)")
    add("--if-idle", action="store_true", help="only if nobody is working in it; otherwise exit 1")
    return run_asking(parser, argv, environ, _ask)


def _ask(client: ComputeClient, arguments: argparse.Namespace, paint: Paint) -> None:
    answer = client.terminate(mode=arguments.mode, if_idle=arguments.if_idle)
    if arguments.json:
        print_json(answer)
    elif answer.lsn is None:
        say("terminated")
    else:
        say(f"terminated; what was committed is safe up to LSN {paint(printable(answer.lsn), 1)}")
