"""Benchmark of the nodes against alternatives, in time and memory.

python -m benchmarks.nodes                everything, as ``make bench-nodes``
python -m benchmarks.nodes --quick        small sizes, few repetitions

Small nodes are also compared with the deep declarative networks library if it can be imported: clone
https://github.com/anucvml/ddn and put the clone on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP", "OPENBLAS", "MKL", "NUMBA")


def main() -> int:
    """Run the benchmark; write ``nodes.json``, ``nodes.md`` and ``nodes.png``, and print the report."""
    arguments = _parser().parse_args()
    for variable in THREAD_VARIABLES:  # before other imports, which create thread pools
        os.environ[f"{variable}_NUM_THREADS"] = str(arguments.threads)
    from matplotlib.figure import Figure

    from benchmarks.node_summary import draw, markdown

    results = _run(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "nodes.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = markdown(results)
    (arguments.output / "nodes.md").write_text(text, encoding="utf-8")
    figure = Figure(figsize=(18, 8), layout="constrained")
    draw(results, figure)
    figure.savefig(arguments.output / "nodes.png", dpi=110)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description="Benchmark nodes and alternatives.")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    parser.add_argument("--rounds", type=int, default=15, help="largest number of repetitions")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of each contestant")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", metavar="FOLDER")
    return parser


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.node_cases import growth, squares, transport
    from benchmarks.node_memory import CASES, FORMED, measure_growth
    from benchmarks.node_peers import CASES as SMALL
    from benchmarks.node_peers import small
    from benchmarks.results import machine
    from benchmarks.timing import Plan

    torch.set_default_dtype(torch.float64)
    quick = arguments.quick
    plan = Plan(rounds=arguments.rounds, budget_s=0.5 if quick else 15.0)
    plans = [(20, 20.0)] if quick else [(200, 20.0), (200, 50.0)]
    columns = (20,) if quick else (100, 500)
    sizes = (50,) if quick else (100, 200, 400, 800, 1600)
    batches = (1, 64) if quick else (1, 64, 256)
    load = os.getloadavg()[0]
    return {
        "machine": {**machine(arguments.threads), "load": load},
        "times": [*(transport(n, gamma, plan) for n, gamma in plans), *(squares(n, plan) for n in columns)],
        "small": [small(case, batch, plan) for case in SMALL for batch in batches],
        "iterations": growth(plans[0][0], quick=quick),
        # f_XY has n^3 numbers: 512 MB at n = 400.
        "memory": [measure_growth(case, n) for case in CASES for n in sizes if case != FORMED or n <= 400],
    }


if __name__ == "__main__":
    sys.exit(main())
