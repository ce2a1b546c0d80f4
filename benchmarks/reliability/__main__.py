"""The command line of ``make reliability``.

python -m benchmarks.reliability                                       everything, with a soak of half an hour
python -m benchmarks.reliability --seconds 5 --soak 60 --count 5       a quick look
python -m benchmarks.reliability --rows killing overload               some rows

Servers and loads share this machine, loads go to 127.0.0.1 alone, and every one of them ends by itself.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from typing import Protocol, cast

from tqdm import tqdm

from benchmarks.reliability.table import HEAD, Plan, Row

PARTS = ("latency", "encodings", "batching", "derivative", "overload", "flooding", "killing", "restart", "fuzz", "soak")
"""Modules of this package, each with a function ``measure(plan) -> list[Row]``."""


class _Part(Protocol):
    def measure(self, plan: Plan) -> list[Row]:
        """The rows that it has to fill."""


def main() -> int:
    """Measure and tell; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description="How the service bears it.")
    parser.add_argument("--rows", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load (default %(default)s)")
    parser.add_argument(
        "--soak", type=float, default=1800.0, metavar="SECONDS", help="of the soak (default %(default)s)"
    )
    parser.add_argument("--count", type=int, default=20, help="workers to kill (default %(default)s)")
    parser.add_argument("--cases", type=int, default=50_000, help="of the fuzz (default %(default)s)")
    parser.add_argument("--no-progress", action="store_true")
    arguments = parser.parse_args()
    plan = Plan(arguments.seconds, arguments.soak, arguments.count, arguments.cases)
    start, rows = time.monotonic(), list[Row]()
    print(HEAD)
    with tqdm(arguments.rows, disable=arguments.no_progress) as parts:
        for name in parts:
            parts.set_description(name)
            part = cast(_Part, importlib.import_module(f"benchmarks.reliability.{name}"))
            found = part.measure(plan)
            tqdm.write("\n".join(map(str, found)))  # as soon as it is known: all of them take an hour
            sys.stdout.flush()
            rows += found
    print(f"{time.monotonic() - start:.0f} s, server and load on one machine", file=sys.stderr)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
