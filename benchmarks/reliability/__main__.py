"""The command line of ``make reliability``.

python -m benchmarks.reliability                                       everything, with a soak of half an hour
python -m benchmarks.reliability --seconds 5 --soak 60 --count 5       a quick look
python -m benchmarks.reliability --rows killing overload               some rows
python -m benchmarks.reliability --rows throughput --against ../old    with the server of another checkout

Servers and loads share this machine, loads go to 127.0.0.1 alone, and every one of them ends by itself.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterable
from typing import Protocol, cast

from tqdm import tqdm

from benchmarks.reliability.table import HEAD, Plan, Row

PARTS = (
    "latency",
    "encodings",
    "batching",
    "throughput",
    "derivative",
    "overload",
    "flooding",
    "long_work",
    "crashing",
    "killing",
    "before_the_key",
    "parent",
    "budgets",
    "restart",
    "fuzz",
    "soak",
)
"""Modules of this package, each with a function ``measure(plan)`` that gives rows."""


class _Part(Protocol):
    def measure(self, plan: Plan) -> Iterable[Row]:
        """The rows that it has to fill, each as soon as it is known."""


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
    parser.add_argument("--against", metavar="PATH", help="a checkout to compare the throughput with")
    parser.add_argument("--no-progress", action="store_true")
    arguments = parser.parse_args()
    plan = Plan(arguments.seconds, arguments.soak, arguments.count, arguments.cases, arguments.against)
    start, rows = time.monotonic(), list[Row]()
    print(HEAD)
    with tqdm(arguments.rows, disable=arguments.no_progress) as parts:
        for name in parts:
            parts.set_description(name)
            part = cast(_Part, importlib.import_module(f"benchmarks.reliability.{name}"))
            for row in part.measure(plan):
                tqdm.write(str(row))  # as soon as it is known: all of them take an hour
                sys.stdout.flush()
                if not row.met and row.tail:
                    tqdm.write(f"{row.what}: the end of the server's log\n{row.tail}", file=sys.stderr)
                rows.append(row)
    print(f"{time.monotonic() - start:.0f} s, server and load on one machine", file=sys.stderr)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
