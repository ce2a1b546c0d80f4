"""The command line: what to run, and where to write it.

python -m benchmarks                                          everything, as ``make bench``
python -m benchmarks --problems simplex --batches 128 --peers moreau --quick      a quick look
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

PARTS = ("suite", "large", "overhead", "memory", "scaling")
THREAD_VARIABLES = ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON", "VECLIB")


def main() -> int:
    """Run, write, and tell; 1 if anything failed."""
    arguments = _parser().parse_args()
    # Before anything is imported: thread pools are made at import, from the environment and the number of cores.
    # (torch.set_num_threads instead would break batched LU in torch 2.13 with MKL: pivots of zero.)
    for variable in THREAD_VARIABLES:
        os.environ[f"{variable}_NUM_THREADS"] = str(arguments.threads)
    os.cpu_count = lambda: arguments.threads
    from benchmarks.session import run

    return run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Convexlayer and its peers, side by side."
    )
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="only these problems (default: all)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 128, 1024], metavar="B")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only peers whose names begin with one of these")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, help="default: all of them; with --problems the suite and large alone"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="for each contestant (default: all cores)"
    )
    parser.add_argument("--rounds", type=int, help="repetitions at most")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="for one contestant at one problem and batch")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="longer calls are left out")
    parser.add_argument("--quick", action="store_true", help="few repetitions, short curves, memory of a few problems")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", metavar="FOLDER")
    parser.add_argument("--no-progress", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
