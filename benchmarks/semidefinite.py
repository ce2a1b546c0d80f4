"""Large semidefinite programs: times, and errors of solutions and derivatives against closed forms.

``python -m benchmarks.semidefinite`` prints a table. Each problem is solved and differentiated with its parameters
multiplied by factors ("units") from 1e-4 to 1e4. Times are those of factor 1, errors the largest over all factors whose
result is reported ok.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import cvxpy as cp
import numpy as np
import torch
from numpy.typing import NDArray

from convexlayer import ConvexLayer, Status

__all__ = ["PROBLEMS", "UNITS", "Case", "Found", "main", "measure_call"]

Array = NDArray[np.float64]

UNITS = (1.0, 1e-4, 1e-2, 1e2, 1e4)
"""Factors of the problem data; the solution and its gradient follow."""


@final
@dataclass(frozen=True)
class Case:
    """A parametrised problem with a closed-form solution and gradient.

    Attributes:
        problem: the CVXPY problem.
        parameters: its parameters, all of which are multiplied by the unit.
        variable: the output.
        point: values of the parameters for unit 1.
        truth: (value of the first parameter, unit, G) -> the output X, and the gradient of <G, X> in that parameter.
    """

    problem: cp.Problem
    parameters: list[cp.Parameter]
    variable: cp.Variable
    point: list[Array]
    truth: Callable[[Array, float, Array], tuple[Array, Array]]


def symmetric(order: int, seed: int = 0) -> Array:
    """A random symmetric matrix."""
    M = np.random.default_rng(seed).normal(size=(order, order))
    return np.asarray(0.5 * (M + M.T))


def divided_differences(values: Array, function: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Array:
    """(f(l_i) - f(l_j)) / (l_i - l_j): the derivative of V diag(f(l)) V' in the coordinates of V (Loewner)."""
    rise, run = (np.subtract.outer(v, v) for v in (function(values), values))
    close = np.abs(run) <= 1e-9 * np.max(np.abs(values))
    return np.where(close, np.broadcast_to(slope(values), run.shape), rise / np.where(close, 1.0, run))


def positive_part(C: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The projection onto the semidefinite cone, and its derivative."""
    values, V = np.linalg.eigh(C)
    D = divided_differences(values, lambda v: np.maximum(v, 0.0), lambda v: (v > 0.0).astype(float))
    return (V * np.maximum(values, 0.0)) @ V.T, lambda H: V @ (D * (V.T @ H @ V)) @ V.T


def projection(order: int) -> Case:
    """The nearest positive semidefinite matrix."""
    C, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), PSD=True)

    def truth(C: Array, unit: float, G: Array) -> tuple[Array, Array]:
        value, derivative = positive_part(C)
        return value, derivative(G)

    return Case(cp.Problem(cp.Minimize(cp.sum_squares(X - C))), [C], X, [symmetric(order)], truth)


def correlation(order: int) -> Case:
    """The nearest semidefinite matrix with a given diagonal: (C + diag(t))_+ for some t (Qi and Sun 2006)."""
    C, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), symmetric=True)
    d = cp.Parameter(order)

    def truth(C: Array, unit: float, G: Array) -> tuple[Array, Array]:
        t = np.zeros(order)
        for _ in range(50):
            value, derivative = positive_part(C + np.diag(t))
            response = np.stack([np.diag(derivative(np.diag(e))) for e in np.eye(order)])
            t += np.linalg.solve(response, unit - np.diag(value))
        pulled = derivative(G)
        return value, pulled - derivative(np.diag(np.linalg.solve(response, np.diag(pulled))))

    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0, cp.diag(X) == d])
    return Case(problem, [C, d], X, [symmetric(order), np.ones(order)], truth)


def largest_eigenvalue(order: int) -> Case:
    """The largest eigenvalue, whose gradient is the outer product of its eigenvector with itself."""
    S, t = cp.Parameter((order, order), symmetric=True), cp.Variable()

    def truth(S: Array, unit: float, G: Array) -> tuple[Array, Array]:
        values, V = np.linalg.eigh(S)
        return np.asarray(values[-1]), G * np.outer(V[:, -1], V[:, -1])

    return Case(cp.Problem(cp.Minimize(t), [t >= cp.lambda_max(S)]), [S], t, [symmetric(order)], truth)


def nuclear_norm(order: int) -> Case:
    """Proximal map of the nuclear norm: singular value thresholding; the semidefinite matrix has twice the order."""
    C, weight, X = cp.Parameter((order, order)), cp.Parameter(nonneg=True), cp.Variable((order, order))
    level = 0.8 * np.sqrt(order)

    def truth(C: Array, unit: float, G: Array) -> tuple[Array, Array]:
        both = np.zeros(
            (2, 2 * order, 2 * order)
        )  # of [0 C; C' 0] the eigenvalues are the singular values and minus those
        for whole, part in zip(both, (C, G), strict=True):
            whole[:order, order:], whole[order:, :order] = part, part.T
        values, V = np.linalg.eigh(both[0])
        level_here = level * unit

        def shrunk(v: Array) -> Array:
            return np.asarray(np.sign(v) * np.maximum(np.abs(v) - level_here, 0.0))

        D = divided_differences(values, shrunk, lambda v: (np.abs(v) > level_here).astype(float))
        pulled = V @ (D * (V.T @ both[1] @ V)) @ V.T
        return ((V * shrunk(values)) @ V.T)[:order, order:], pulled[:order, order:]

    objective = weight * cp.normNuc(X) + 0.5 * cp.sum_squares(X - C)
    point = np.random.default_rng(0).normal(size=(order, order))
    return Case(cp.Problem(cp.Minimize(objective)), [C, weight], X, [point, np.asarray(level)], truth)


def log_det(order: int) -> Case:
    """The maximiser of log det X - tr(S X), the inverse of S; the semidefinite matrix has twice the order."""
    S, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), symmetric=True)

    def truth(S: Array, unit: float, G: Array) -> tuple[Array, Array]:
        inverse = np.asarray(np.linalg.inv(S), dtype=np.float64)
        return inverse, np.asarray(-inverse @ G @ inverse)

    R = np.random.default_rng(0).normal(size=(order, 3 * order))
    return Case(cp.Problem(cp.Maximize(cp.log_det(X) - cp.trace(S @ X))), [S], X, [R @ R.T / (3 * order)], truth)


PROBLEMS: dict[str, tuple[Callable[[int], Case], tuple[int, ...]]] = {
    "projection": (projection, (20, 40, 60, 100)),
    "nearest correlation matrix": (correlation, (20, 40, 60, 100)),
    "largest eigenvalue": (largest_eigenvalue, (20, 40, 60, 100)),
    "proximal map of the nuclear norm": (nuclear_norm, (30, 50)),
    "inverse by log_det": (log_det, (20, 40)),
}
"""Problems by name: constructor, and orders to run."""


@final
class Found(NamedTuple):
    """Result of one call.

    Attributes:
        forward: time of the forward pass, in seconds.
        backward: time of the backward pass, in seconds.
        ok: whether the solution is reported optimal and its derivative trusted.
        error: the larger of the errors of solution and gradient, each relative to its largest entry.
    """

    forward: float
    backward: float
    ok: bool
    error: float


def measure_call(layer: ConvexLayer, case: Case, unit: float) -> Found:
    """Solve and differentiate with the parameters multiplied by ``unit``."""
    G = np.random.default_rng(1).normal(size=case.variable.shape)
    G = 0.5 * (G + G.T) if case.variable.is_symmetric() else G
    values = [torch.tensor(unit * value, requires_grad=True) for value in case.point]
    start = time.perf_counter()
    (found,), report = layer.solve(*values)
    solved = time.perf_counter()
    (found * torch.tensor(G)).sum().backward()
    end, gradient = time.perf_counter(), values[0].grad
    assert gradient is not None
    ok = report.status[0] is Status.OPTIMAL and report.derivative is not None and report.derivative.trusted
    truth = case.truth(values[0].detach().numpy(), unit, G)
    pairs = zip((found.detach().numpy(), gradient.numpy()), truth, strict=True)
    error = max(float(np.max(np.abs(here - there)) / np.max(np.abs(there))) for here, there in pairs)
    return Found(solved - start, end - solved, ok, error)


def row(name: str, order: int) -> str:
    """A row of the table."""
    case = PROBLEMS[name][0](order)
    start = time.perf_counter()
    layer = ConvexLayer(case.problem, case.parameters, [case.variable], on_failure="keep", on_degenerate="report")
    construction = time.perf_counter() - start
    _, *found = (measure_call(layer, case, unit) for unit in (UNITS[0], *UNITS))  # the first one warms up
    seconds = (construction, found[0].forward, found[0].backward)
    error = max((each.error for each in found if each.ok), default=np.nan)
    not_ok = sum(not each.ok for each in found)
    columns = (name, str(order), *(f"{each:.2g}" for each in seconds), f"{error:.0e}", f"{not_ok} of {len(UNITS)}")
    return "| " + " | ".join(columns) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Benchmark of large semidefinite programs.")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--orders", nargs="+", type=int, help="override the orders of each problem")
    chosen = parser.parse_args(arguments)
    print("| | order | construction, s | forward, s | backward, s | largest error | not reported ok, of the units |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in chosen.problems:
        for order in chosen.orders or PROBLEMS[name][1]:
            print(row(name, order), flush=True)


if __name__ == "__main__":
    main()
