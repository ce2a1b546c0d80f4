"""The command line of ``make reliability``.

python -m benchmarks.reliability                                       all rows, with a soak test of half an hour
python -m benchmarks.reliability --seconds 5 --soak 60 --kills 5       a quick check
python -m benchmarks.reliability --rows killing overload               some rows
python -m benchmarks.reliability --rows throughput --against ../old    compared with another checkout

Server and load run on this machine; loads connect to 127.0.0.1 alone, and end by themselves.
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
    "slow_work",
    "crashing",
    "killing",
    "unauthenticated",
    "server_process",
    "fair_shares",
    "restart",
    "fuzz",
    "soak",
)
"""Modules of this package, each with a function ``measure(plan)`` that returns rows."""


class _Part(Protocol):
    def measure(self, plan: Plan) -> Iterable[Row]:
        """Yield the rows, each as soon as it is measured."""


def main() -> int:
    """Measure and print the table; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description="Measure the reliability of the service."
    )
    parser.add_argument("--rows", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each load (default %(default)s)")
    parser.add_argument(
        "--soak", type=float, default=1800.0, metavar="SECONDS", help="duration of the soak test (default %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=20, help="number of workers to kill (default %(default)s)")
    parser.add_argument("--cases", type=int, default=50_000, help="number of fuzz cases (default %(default)s)")
    parser.add_argument("--against", metavar="PATH", help="another checkout, to compare the throughput with")
    parser.add_argument("--no-progress", action="store_true")
    arguments = parser.parse_args()
    plan = Plan(arguments.seconds, arguments.soak, arguments.kills, arguments.cases, arguments.against)
    start, rows = time.monotonic(), list[Row]()
    print(HEAD)
    with tqdm(arguments.rows, disable=arguments.no_progress) as parts:
        for name in parts:
            parts.set_description(name)
            part = cast(_Part, importlib.import_module(f"benchmarks.reliability.{name}"))
            for row in part.measure(plan):
                tqdm.write(str(row))  # at once, since all rows take an hour
                sys.stdout.flush()
                if not row.met and row.tail:
                    tqdm.write(f"{row.what}: the end of the server's log\n{row.tail}", file=sys.stderr)
                rows.append(row)
    print(f"{time.monotonic() - start:.0f} s, server and load on one machine", file=sys.stderr)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
