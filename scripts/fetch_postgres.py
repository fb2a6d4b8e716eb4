"""Make sure that the Postgres servers of some majors are on this machine; print where each is.

Usage: .venv/bin/python scripts/fetch_postgres.py [MAJOR ...]
"""

from __future__ import annotations

import sys

from trio_compute.embedded import binaries
from trio_compute.errors import ComputeError


def main(arguments: list[str]) -> int:
    """Ensure the named majors, or the default one; return the exit code."""
    try:
        for major in [int(argument) for argument in arguments] or [binaries.DEFAULT_MAJOR]:
            print(binaries.ensure(major, lambda line: print(line, file=sys.stderr)))
    except ValueError:
        print(f"usage: fetch_postgres.py [MAJOR ...]   majors: {', '.join(map(str, binaries.MAJORS))}", file=sys.stderr)
        return 2
    except ComputeError as error:
        print(f"fetch_postgres.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
