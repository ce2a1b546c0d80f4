"""Right or wrong, told or untold: how a batch of answers is held against the truth.

An output is right if it is off by at most 1e-6 of its size, which is its absolute value unless the family says
otherwise (for outputs that are zero at the solution). An entry dx_i / dtheta_j is right if it is off by at most 1e-6 of
its size, which is its absolute value, or size(x_i) / abs(theta_j) where it is zero; families in which coordinates are
coupled take the larger of the two. A gradient of a combination w of the outputs is right if each entry is off by at
most 1e-6 sum_i abs(w_i) size(dx_i / dtheta_j). All of this is the same in all units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexlayer.layers.solution_map import SolutionMap
from convexlayer.layers.solved_batch import SolvedBatch
from convexlayer.program import Array
from convexlayer.solution import BoolArray, Status

__all__ = ["TOLERANCE", "Outcome", "Truth", "example", "judge"]

TOLERANCE = 1e-6
"""Relative error of a right entry."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What a batch should give, outputs and parameters flattened and joined.

    Attributes:
        x: outputs (B, N).
        J: d outputs / d parameters (B, N, M).
        x_size: what errors of x are relative to (B, N).
        J_size: what errors of J are relative to (B, N, M).
    """

    x: Array
    J: Array
    x_size: Array
    J_size: Array


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of each element of a batch, (B,).

    Attributes:
        status: words of the solve; the name of the error where the call raised one.
        told: optimal, and every derivative asked for ok.
        right: outputs and derivatives are right, whatever was said of them.
        silent: optimal, a derivative called ok, and it or an output is wrong.
        x_error: largest error of an output over its size; not a number without a solution.
        J_error: largest error of a derivative over its size.
        words: of each derivative asked for, (B, N + 1).
        outputs: what was returned (B, N).
    """

    status: tuple[str, ...]
    told: BoolArray
    right: BoolArray
    silent: BoolArray
    x_error: Array
    J_error: Array
    words: tuple[tuple[str, ...], ...]
    outputs: Array


def judge(
    solution_map: SolutionMap, theta: Sequence[Array], truth: Truth, *, queries: Sequence[int], seed: int = 0
) -> Outcome:
    """Solve, differentiate, and compare.

    Args:
        solution_map: of the problem.
        theta: parameters (B, *shape).
        truth: what should come out.
        queries: positions of the outputs that are differentiated one by one; a random combination of them follows.
        seed: of the combination.
    """
    batch = len(truth.x)
    try:
        solved = solution_map.solve(theta)
        outputs = np.concatenate([value.reshape(batch, -1) for value in solved.outputs], axis=1)
        x_error = _worst((outputs - truth.x) / truth.x_size)
        weights = np.zeros((len(queries) + 1, *truth.x.shape))
        for row, position in enumerate(queries):
            weights[row, :, position] = 1.0
        drawn = np.random.default_rng([seed, 1]).normal(size=(batch, len(queries)))
        weights[-1][:, list(queries)] = drawn / truth.x_size[:, list(queries)]
        asked = [_asked(solved, weight, truth) for weight in weights]
    except Exception as error:  # whatever a solver raises: it is counted, by name
        return _refused(truth.x, len(queries) + 1, type(error).__name__)
    J_errors, words = np.array([error for error, _ in asked]), [word for _, word in asked]
    optimal = np.array([status is Status.OPTIMAL for status in solved.report.status])
    ok = np.array([[word == "ok" for word in row] for row in words])
    x_wrong, J_wrong = ~(x_error <= TOLERANCE), ~(J_errors <= TOLERANCE)
    return Outcome(
        status=tuple(map(str, solved.report.status)),
        told=optimal & np.all(ok, axis=0),
        right=~x_wrong & ~np.any(J_wrong, axis=0),
        silent=optimal & np.any(ok & (J_wrong | x_wrong), axis=0),
        x_error=x_error,
        J_error=np.max(J_errors, axis=0),
        words=tuple(zip(*words, strict=True)),
        outputs=outputs,
    )


def example(theta: Sequence[Array], truth: Truth, outcome: Outcome, element: int) -> str:
    """One element in words."""
    parameters = ", ".join(_written(value[element]) for value in theta)
    return (
        f"({parameters}); {outcome.status[element]}, {' '.join(outcome.words[element])}; "
        f"x {_written(outcome.outputs[element])}, should be {_written(truth.x[element])}, "
        f"errors of x {outcome.x_error[element]:.1e}, of derivatives {outcome.J_error[element]:.1e}"
    )


def _written(value: Array) -> str:
    return " ".join(np.array2string(value, separator=", ", floatmode="unique").split())


def _asked(solved: SolvedBatch, weight: Array, truth: Truth) -> tuple[Array, tuple[str, ...]]:
    """The relative error (B,) of the gradient of weight'x, and what is said of it."""
    sizes = [value.shape for value in solved.outputs]
    ends = np.cumsum([int(np.prod(shape[1:], dtype=int)) for shape in sizes])[:-1]
    parts = [part.reshape(shape) for part, shape in zip(np.split(weight, ends, axis=1), sizes, strict=True)]
    pulled = [g for g in solved.vjp(parts) if g is not None]
    gradient = np.concatenate([g.reshape(len(weight), -1) for g in pulled], axis=1)
    expected, size = _combined(weight, truth.J), _combined(np.abs(weight), truth.J_size)
    report = solved.report.derivative
    words = ("failed",) * len(weight) if report is None else report.status
    return _worst((gradient - expected) / np.where(size > 0, size, 1.0)), words


def _combined(weight: Array, J: Array) -> Array:
    total: Array = np.einsum("bi,bij->bj", weight, J)
    return total


def _worst(errors: Array) -> Array:
    """The largest absolute value of each row; infinite where one is not a number."""
    largest: Array = np.max(np.where(np.isfinite(errors), np.abs(errors), np.inf), axis=1, initial=0.0)
    return largest


def _refused(x: Array, queries: int, word: str) -> Outcome:
    batch = len(x)
    nothing, infinite = np.zeros(batch, dtype=bool), np.full(batch, np.inf)
    failed = (("failed",) * queries,) * batch
    return Outcome((word,) * batch, nothing, nothing, nothing, infinite, infinite, failed, np.full_like(x, np.nan))
