"""Command line of the benchmarks.

python -m benchmarks                                          all benchmarks, as ``make bench``
python -m benchmarks --problems simplex --batches 128 --peers moreau --quick      a short run of one problem
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.parts import PARTS

THREAD_VARIABLES = ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON", "VECLIB")


def main() -> int:
    """Run the benchmarks, write and print the results; returns 1 if any failed."""
    arguments = _parser().parse_args()
    # Set before other imports: libraries create their thread pools at import, from the environment and core count.
    # (torch.set_num_threads breaks batched LU in torch 2.13 with MKL: it gives zero pivots.)
    for variable in THREAD_VARIABLES:
        os.environ[f"{variable}_NUM_THREADS"] = str(arguments.threads)
    os.cpu_count = lambda: arguments.threads
    from benchmarks.session import run

    return run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks of Convexlayer against its peers."
    )
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="only these problems (default: all)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 128, 1024], metavar="B")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only peers whose names begin with one of these")
    parser.add_argument("--no-peers", action="store_true", help="only Convexlayer")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all; with --problems only suite and large")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads of each contestant (default: number of cores)"
    )
    parser.add_argument("--rounds", type=int, help="maximum number of repetitions")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="per contestant, problem and batch size")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="skip calls that take longer")
    parser.add_argument("--quick", action="store_true", help="few repetitions, short curves, memory of a few problems")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", metavar="FOLDER")
    parser.add_argument("--no-progress", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
