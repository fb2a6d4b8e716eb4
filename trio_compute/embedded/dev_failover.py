"""`trio-compute dev failover`: a switch under load, from a primary to a prewarmed secondary, shown as it went."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import trio

from trio_compute.embedded import binaries
from trio_compute.embedded.failover import FailoverReport, fail_over, open_pair
from trio_compute.embedded.failover_chart import svg_chart, text_chart
from trio_compute.embedded.progress import Progress
from trio_compute.embedded.world import World, default_data_directory
from trio_compute.errors import ComputeError, HostError, cause_chain
from trio_compute.host.run_as import RunAs

DEFAULT_WRITERS = 4
DEFAULT_SETTLE_SECONDS = 1.0


def run_failover(argv: Sequence[str], progress: Progress) -> int:
    """Run the sub-command and return its exit code: 0 only if no acknowledged row was lost."""
    options = _parser().parse_args(list(argv))
    code = 1
    try:
        report = trio.run(_failover, options, progress, restrict_keyboard_interrupt_to_checkpoints=True)
        code = 0 if report.rows_lost == 0 else 1
        if options.json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    except* ComputeError as failures:
        progress.say(f"error: {cause_chain(failures)}")
    except* KeyboardInterrupt:
        progress.say("interrupted")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trio-compute dev failover",
        description="Prewarm a secondary, terminate the primary, promote the secondary, under a write load, in a world "
        "of its own that is removed afterwards. Exit code 1 if an acknowledged row was lost.",
    )
    add = parser.add_argument
    add("--writers", type=_positive, default=DEFAULT_WRITERS, help=f"clients that write (default {DEFAULT_WRITERS})")
    add(
        "--settle",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_SETTLE_SECONDS,
        help=f"how long they write before and after (default {DEFAULT_SETTLE_SECONDS:g})",
    )
    add("--postgres", type=int, choices=binaries.MAJORS, default=binaries.DEFAULT_MAJOR, help="major version")
    add("--svg", metavar="FILE", type=Path, help="draw the timeline into this file")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError("there are 1 to 64 writers")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 3600")
    return seconds


async def _failover(options: argparse.Namespace, progress: Progress) -> FailoverReport:
    tree = await trio.to_thread.run_sync(lambda: binaries.ensure(options.postgres, progress.say))
    user = binaries.ordinary_user()
    run_as = RunAs() if user is None else RunAs(user.pw_uid, user.pw_gid, user.pw_dir)
    with _scratch_directory() as directory:
        world = World(directory, tree, options.postgres, run_as)
        progress.say("making a new cluster, a primary and a secondary")
        await trio.to_thread.run_sync(world.seed)
        async with open_pair(world, progress.say) as pair:
            report = await fail_over(pair, writers=options.writers, settle_seconds=options.settle, say=progress.say)
            answer = await pair.secondary.terminate("immediate")
            progress.say(f"promoted secondary terminated at {answer['lsn']}")
    _tell(report, options.svg, progress)
    return report


def _tell(report: FailoverReport, svg: Path | None, progress: Progress) -> None:
    progress.say(f"\n{text_chart(report)}\n")
    progress.say(
        f"rows written {report.rows_written}, lost {report.rows_lost}; no commit for {report.write_gap_ms:.0f} ms"
    )
    if svg is not None:
        try:
            svg.write_text(svg_chart(report), encoding="utf-8")
        except OSError as error:
            raise HostError(f"cannot write {svg}: {error.strerror}") from error
        progress.say(f"drawn into {svg}")


@contextmanager
def _scratch_directory() -> Iterator[Path]:
    parent = default_data_directory().parent
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="trio-compute-failover-", dir=parent))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
