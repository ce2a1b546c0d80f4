"""Comparison of a batch of results with the truth.

An output is right if its error is at most 1e-6 times its size, which is its absolute value unless the family defines
another (for outputs that are zero at the solution). An entry dx_i / dtheta_j is right if its error is at most 1e-6
times its size, which is its absolute value, or size(x_i) / abs(theta_j) if it is zero; families with coupled
coordinates use the larger of the two. The gradient of a combination w of the outputs is right if the error of each
entry is at most 1e-6 sum_i abs(w_i) size(dx_i / dtheta_j). These criteria are invariant under scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexlayer.layers.protocol import AbstractSolvedBatch
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.program import Array
from convexlayer.solution import BoolArray
from convexlayer.status import Status

__all__ = [
    "TOLERANCE",
    "Outcome",
    "QueryResult",
    "Truth",
    "assess",
    "outcome_of",
    "raised",
    "worst",
]

TOLERANCE = 1e-6
"""Largest relative error of a right entry."""


@dataclass(frozen=True, eq=False)
class Truth:
    """True outputs and derivatives of a batch, with outputs and parameters flattened and concatenated.

    Attributes:
        x: outputs, (B, N).
        J: d outputs / d parameters, (B, N, M).
        x_size: scales of the errors of x, (B, N).
        J_size: scales of the errors of J, (B, N, M).
    """

    x: Array
    J: Array
    x_size: Array
    J_size: Array


@dataclass(frozen=True, eq=False)
class Outcome:
    """Outcome of each element of a batch, (B,).

    Attributes:
        status: status of the solve, or the type of the exception if the call raised one.
        reported_ok: status optimal, and the report of every derivative is ok exactly if it exists.
        right: outputs and derivatives are right, whatever was reported.
        silent_error: status optimal, a derivative reported ok, and it or an output is wrong.
        silent_outputs: silent errors in which every derivative that is reported ok is right.
        wrong_optimal: status optimal, and an output is wrong, whatever was reported of derivatives.
        x_error: largest error of an output, relative to its size; NaN without a solution.
        J_error: largest error of a derivative, relative to its size.
        reported: reported status of each derivative, (B, queries).
        outputs: outputs, (B, N).
        expected: true outputs, (B, N).
    """

    status: tuple[str, ...]
    reported_ok: BoolArray
    right: BoolArray
    silent_error: BoolArray
    silent_outputs: BoolArray
    wrong_optimal: BoolArray
    x_error: Array
    J_error: Array
    reported: tuple[tuple[str, ...], ...]
    outputs: Array
    expected: Array

    def example(self, element: int) -> str:
        """Describe one element."""
        return (
            f"{self.status[element]}, {' '.join(self.reported[element])}; x {_written(self.outputs[element])}, "
            f"expected {_written(self.expected[element])}; errors of x {self.x_error[element]:.1e}, of derivatives "
            f"{self.J_error[element]:.1e}"
        )


def assess(
    solution_map: SolutionMap, theta: Sequence[Array], truth: Truth, *, queries: Sequence[int], seed: int = 0
) -> Outcome:
    """Solve, differentiate, and compare.

    Args:
        solution_map: solution map of the problem.
        theta: parameters, (B, *shape).
        truth: true outputs and derivatives.
        queries: positions of the outputs to differentiate, each by a vjp; then a random combination of them by a vjp,
            and a random relative tangent of all parameters by a jvp.
        seed: seed of the combination and the tangent.
    """
    batch = len(truth.x)
    try:
        solved = solution_map.solve(theta)
        outputs = np.concatenate([value.reshape(batch, -1) for value in solved.outputs], axis=1)
        rng, results = np.random.default_rng([seed, 1]), list[QueryResult]()
        for position in queries:
            weight = np.zeros_like(truth.x)
            weight[:, position] = 1.0
            results.append(_reverse(solved, weight, truth))
        weight = np.zeros_like(truth.x)
        weight[:, list(queries)] = rng.normal(size=(batch, len(queries))) / truth.x_size[:, list(queries)]
        results.append(_reverse(solved, weight, truth))
        results.append(_forward(solved, [value * rng.normal(size=value.shape) for value in theta], truth, queries))
    except Exception as error:  # count any exception of a solver, by its type
        return raised(truth.x, len(queries) + 2, type(error).__name__)
    return outcome_of(solved, outputs, truth.x, worst((outputs - truth.x) / truth.x_size), results)


@dataclass(frozen=True, eq=False)
class QueryResult:
    """Result of one derivative query.

    Attributes:
        error: relative error, (B,).
        reported: reported status, (B,).
        exists: whether the derivative exists; if not, only the status ok is wrong.
    """

    error: Array
    reported: tuple[str, ...]
    exists: bool = True


def outcome_of(
    solved: AbstractSolvedBatch, outputs: Array, expected: Array, x_error: Array, results: Sequence[QueryResult]
) -> Outcome:
    """The outcome of a batch, from outputs, expected outputs, errors of the outputs, and results of the queries."""
    optimal = np.array([status is Status.OPTIMAL for status in solved.report.status])
    ok = np.array([[status == "ok" for status in one.reported] for one in results])
    exists = np.array([one.exists for one in results])[:, None]
    errors = np.array([one.error for one in results])
    x_wrong, J_wrong = ~(x_error <= TOLERANCE), np.where(exists, ~(errors <= TOLERANCE), ok)
    J_silent = optimal & np.any(ok & J_wrong, axis=0)
    return Outcome(
        status=tuple(map(str, solved.report.status)),
        reported_ok=optimal & np.all(ok == exists, axis=0),
        right=~x_wrong & ~np.any(J_wrong & exists, axis=0),
        silent_error=J_silent | (optimal & x_wrong & np.any(ok, axis=0)),
        silent_outputs=optimal & x_wrong & np.any(ok, axis=0) & ~J_silent,
        wrong_optimal=optimal & x_wrong,
        x_error=x_error,
        J_error=np.max(np.where(exists, errors, 0.0), axis=0),
        reported=tuple(zip(*(one.reported for one in results), strict=True)),
        outputs=outputs,
        expected=expected,
    )


def raised(expected: Array, queries: int, error: str) -> Outcome:
    """The outcome of a batch whose call raised an exception of type ``error``."""
    batch = len(expected)
    no, infinite = np.zeros(batch, dtype=bool), np.full(batch, np.inf)
    failed = (("failed",) * queries,) * batch
    nothing = np.full_like(expected, np.nan)
    return Outcome((error,) * batch, no, no, no, no, no, infinite, infinite, failed, nothing, expected)


def _written(value: Array) -> str:
    return " ".join(np.array2string(value, separator=", ", floatmode="unique").split())


def worst(errors: Array) -> Array:
    """The largest absolute value of each row; infinite if the row has a NaN."""
    largest: Array = np.max(np.where(np.isfinite(errors), np.abs(errors), np.inf), axis=1, initial=0.0)
    return largest


def _reverse(solved: AbstractSolvedBatch, weight: Array, truth: Truth) -> QueryResult:
    """Query the gradient of weight'x by a vjp."""
    sizes = [value.shape for value in solved.outputs]
    ends = np.cumsum([int(np.prod(shape[1:], dtype=int)) for shape in sizes])[:-1]
    parts = [part.reshape(shape) for part, shape in zip(np.split(weight, ends, axis=1), sizes, strict=True)]
    pulled, report = solved.vjp(parts)
    gradient = np.concatenate([g.reshape(len(weight), -1) for g in pulled if g is not None], axis=1)
    expected = np.einsum("bi,bij->bj", weight, truth.J)
    size = np.einsum("bi,bij->bj", np.abs(weight), truth.J_size)
    return QueryResult(worst((gradient - expected) / np.where(size > 0, size, 1.0)), report.status)


def _forward(
    solved: AbstractSolvedBatch, tangents: Sequence[Array], truth: Truth, queries: Sequence[int]
) -> QueryResult:
    """Query the tangent of x by a jvp."""
    batch = solved.batch
    symmetric = [0.5 * (t + np.swapaxes(t, -1, -2)) if _is_matrix(t) else t for t in tangents]
    (*tangents_out, _), report = solved.jvp(symmetric)
    moved = np.concatenate([value.reshape(batch, -1) for value in tangents_out if value is not None], axis=1)
    flat = np.concatenate([t.reshape(batch, -1) for t in symmetric], axis=1)
    expected = np.einsum("bij,bj->bi", truth.J, flat)
    size = np.einsum("bij,bj->bi", truth.J_size, np.abs(flat))
    return QueryResult(worst(((moved - expected) / size)[:, list(queries)]), report.status)


def _is_matrix(tangent: Array) -> bool:
    return tangent.ndim == 3 and tangent.shape[1] == tangent.shape[2]
