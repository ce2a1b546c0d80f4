"""Scaling curves: time against problem size and batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks import large, small
from benchmarks.problem import Problem
from benchmarks.results import Results
from benchmarks.runner import Runner

__all__ = ["BATCH", "CONTROL", "DENSE", "PORTFOLIO", "curves"]

DENSE = "dense QP, batch 128, against n"
BATCH = "dense QP, n = 50, against the batch"
CONTROL = "control, one element, against the variables"
PORTFOLIO = "factor portfolio, one element, against the assets"


def curves(runner: Runner, results: Results, *, quick: bool) -> None:
    """Fill ``results.scaling`` and ``results.sizes``. A contestant leaves a curve when its calls take too long."""
    sizes = (5, 10, 20) if quick else (5, 10, 20, 50, 100, 150)
    batches = (1, 8, 64) if quick else (1, 8, 32, 128, 512, 2048)
    horizons = (25, 50) if quick else (25, 50, 100, 200, 400, 800, 1600)
    assets = (250, 500) if quick else (250, 500, 1000, 2000, 4000, 8000)

    def dense(n: int) -> Callable[[], Problem]:
        return lambda: replace(small.dense_qp(n, n, max(1, n // 5)), name=f"dense_qp_{n}")

    def control(T: int) -> Callable[[], Problem]:
        return lambda: large.control_large(T)

    def portfolio(n: int) -> Callable[[], Problem]:
        return lambda: large.factor_portfolio(n)

    results.scaling[BATCH] = runner.batches("dense_qp_50", dense(50), batches)
    along = (
        (DENSE, "dense_qp_{}", dense, {n: n for n in sizes}, 128),
        (CONTROL, "control_{}", control, {T: 12 * (T + 1) + 8 * T for T in horizons}, 1),
        (PORTFOLIO, "factor_portfolio_{}", portfolio, {n: n for n in assets}, 1),
    )
    for curve, name, make, axis, batch in along:
        makers = {name.format(size): make(size) for size in axis}
        results.sizes[curve] = {name.format(size): position for size, position in axis.items()}
        results.scaling[curve] = runner.ladder(makers, batch, curve)
