"""Command line of the accuracy benchmark; see the package docstring."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from tqdm import tqdm

from benchmarks.scales.plan import Plan
from benchmarks.scales.table import Count
from convexlayer.runtime import kernel_cache

PARTS = ("separable", "units", "degenerate", "public")
"""Modules of this package, each with ``measure(plan) -> Iterator[Count]`` and ``table(counts) -> str``."""


class _Part(Protocol):
    def measure(self, plan: Plan) -> Iterator[Count]:
        """Compute the counts, cell by cell."""

    def table(self, counts: Sequence[Count]) -> str:
        """Format the counts as a Markdown table."""


def main() -> int:
    """Run the parts and print the tables; returns 1 if there are silent errors."""
    arguments = _parser().parse_args()
    kernel_cache.prepare(wait=True)
    plan = Plan(
        draws=arguments.draws, solvers=tuple(arguments.solvers), ranges=tuple(arguments.k), only=tuple(arguments.only),
        seed=arguments.seed, batch=arguments.batch, presolve=not arguments.no_presolve, options=dict(arguments.option),
        show=arguments.show,
    )  # fmt: skip
    everything: list[Count] = []
    for name in arguments.parts or PARTS:
        part, start, found = cast(_Part, importlib.import_module(f"benchmarks.scales.{name}")), time.monotonic(), []
        with tqdm(part.measure(plan), disable=arguments.no_progress, desc=name) as counts:
            for count in counts:
                counts.set_postfix_str(f"{count.family}, {count.solver}")
                for text in count.examples:
                    tqdm.write(f"{count.family}, k = {count.k:g}, {count.solver}: {text}")
                found.append(count)
        everything += found
        print(f"\n## {name} ({time.monotonic() - start:.0f} s)\n\n{part.table(found)}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([count.as_json() for count in everything], indent=1))
    return 1 if any(count.silent for count in everything) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scales", description="Accuracy under scaling of the data."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {', '.join(PARTS)}")
    parser.add_argument("--draws", type=int, default=5000, help="draws per part and solver (default %(default)s)")
    parser.add_argument("--solvers", nargs="+", default=(), metavar="NAME", help="default: the solvers of the part")
    parser.add_argument("--k", nargs="+", type=float, default=(), help="scale by units in 10^-k..10^k")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="TEXT", help="families whose names contain one of these"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128, help="elements solved together (default %(default)s)")
    parser.add_argument("--no-presolve", action="store_true")
    parser.add_argument(
        "--option", nargs="+", type=_option, default=(), metavar="NAME=VALUE", help="solver options, such as tol=1e-10"
    )
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N silent errors of each cell")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--no-progress", action="store_true")
    return parser


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, ast.literal_eval(value)


if __name__ == "__main__":
    sys.exit(main())
