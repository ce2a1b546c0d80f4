"""A benchmark run, from the command-line arguments to the result files."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.contestant import Contestant
from benchmarks.contestants import EMPTY, OURS, PEERS
from benchmarks.curves import curves
from benchmarks.memory import grown
from benchmarks.overhead import overhead
from benchmarks.parts import PARTS
from benchmarks.plots import draw
from benchmarks.results import Results, machine
from benchmarks.runner import Runner
from benchmarks.suite import LARGE, SMALL, make
from benchmarks.table import markdown
from benchmarks.timing import Plan
from convexlayer.runtime import kernel_cache

__all__ = ["run"]

MEMORY_BATCH = 128
"""Batch size of the measurement of memory."""

OVERHEAD_BATCH = 128
"""Batch size of the measurement of the layer's overhead."""

REFERENCE_CHECK = 1e-4
"""Largest relative error of a reference against finite differences; above it the run fails."""


def run(arguments: argparse.Namespace) -> int:
    """Run the selected benchmarks and write the results, results.json after every step; returns 1 if any failed."""
    torch.set_default_dtype(torch.float64)  # a peer creates gradients in the default dtype
    kernel_cache.prepare(wait=True)  # measure with compiled kernels, also in the processes of the memory part
    warnings.simplefilter("ignore")  # peers warn on every call; wrong results show in the errors
    gc.freeze()  # garbage is collected between rounds; what importing has made is none
    runner = Runner(_contestants(arguments), arguments.threads, _plan(arguments), not arguments.no_progress)
    settings = {key: str(value) if key == "output" else value for key, value in vars(arguments).items()}
    results = Results({**machine(arguments.threads), "load": os.getloadavg()[0]}, settings)
    small, large = _problems(arguments)
    parts = arguments.parts or (PARTS[:2] if arguments.problems else PARTS)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for step in _steps(part, small, large, runner, results, arguments):
            step()
            results.references = runner.references
            results.write(arguments.output / "results.json")
    (arguments.output / "table.md").write_text(markdown(results), encoding="utf-8")
    draw(results, arguments.output)
    return _report(results, arguments)


def _steps(
    part: str, small: list[str], large: list[str], runner: Runner, results: Results, arguments: argparse.Namespace
) -> Iterable[Callable[[], None]]:
    """The steps of one part of a run; the results are written after each."""

    def suite(name: str) -> None:
        sizes = [1] if name in LARGE else arguments.batches
        results.records += runner.batches(name, (SMALL | LARGE)[name], sizes)

    def overhead_of(name: str) -> None:
        results.overhead.append(overhead(make(name), 1 if name in LARGE else OVERHEAD_BATCH, runner.plan))

    def memory(case: tuple[str, int, str]) -> None:
        results.memory.append(grown(*case, arguments.threads))

    def scaling(_: None) -> None:
        without = [contestant for contestant in runner.contestants if contestant is not EMPTY]
        curves(replace(runner, contestants=without), results, quick=arguments.quick)

    work: dict[str, tuple[Callable[[Any], None], Sequence[Any]]] = {
        "suite": (suite, small),
        "large": (suite, large),
        "overhead": (overhead_of, [*small, *large]),
        "memory": (memory, _memory_cases(arguments, small, large)),
        "scaling": (scaling, [None]),
    }
    step, items = work[part]
    for item in tqdm(items, desc=part, unit="case", disable=not runner.progress):
        yield partial(step, item)


def _contestants(arguments: argparse.Namespace) -> list[Contestant]:
    if arguments.no_peers:
        return [OURS, EMPTY]
    chosen = [p for p in PEERS.values() if arguments.peers is None or p.name.startswith(tuple(arguments.peers))]
    if not chosen:
        raise SystemExit(f"no such peer; the peers are: {', '.join(PEERS)}")
    return [OURS, *chosen, EMPTY]


def _plan(arguments: argparse.Namespace) -> Plan:
    plan = Plan(rounds=5, budget_s=1.0, limit_s=5.0) if arguments.quick else Plan()
    given = {"rounds": arguments.rounds, "budget_s": arguments.budget, "limit_s": arguments.limit}
    return replace(plan, **{key: value for key, value in given.items() if value is not None})


def _problems(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    chosen = arguments.problems or [*SMALL, *LARGE]
    unknown = [name for name in chosen if name not in SMALL | LARGE]
    if unknown:
        raise SystemExit(f"no problem {unknown[0]!r}; the problems are: {', '.join(SMALL | LARGE)}")
    return [name for name in SMALL if name in chosen], [name for name in LARGE if name in chosen]


def _memory_cases(arguments: argparse.Namespace, small: list[str], large: list[str]) -> list[tuple[str, int, str]]:
    """Problem, batch size and contestant of each memory measurement: all contestants that support a problem."""
    names = [*small[:2], *large[:1]] if arguments.quick else [*small, *large]
    contestants = [c for c in _contestants(arguments) if c is not EMPTY]
    return [
        (name, 1 if name in LARGE else MEMORY_BATCH, contestant.name)
        for name in names
        for contestant in contestants
        if contestant.why_not(make(name)) is None
    ]


def _report(results: Results, arguments: argparse.Namespace) -> int:
    print(markdown(results))
    print(f"written to {arguments.output}", file=sys.stderr)
    doubtful = [
        f"the reference of {entry['problem']}, batch {entry['batch']}, differs from finite differences by "
        f"{entry['check']:.0e}"
        for entry in results.references
        if not entry["check"] <= REFERENCE_CHECK
    ]
    for failure in [*results.failures, *doubtful]:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if results.failures or doubtful else 0
