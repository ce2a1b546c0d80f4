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
from convexlayer.solution import BoolArray
from convexlayer.status import Status

__all__ = ["TOLERANCE", "Outcome", "Said", "Truth", "judge", "outcome_of", "refused", "words_of", "worst"]

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
        silent_outputs: those of them in which every derivative that is called ok is right.
        wrong_optimal: optimal, and an output is wrong, whatever was said of derivatives.
        x_error: largest error of an output over its size; not a number without a solution.
        J_error: largest error of a derivative over its size.
        words: of each derivative asked for, (B, N + 2).
        outputs: what was returned (B, N).
        expected: what should have been.
    """

    status: tuple[str, ...]
    told: BoolArray
    right: BoolArray
    silent: BoolArray
    silent_outputs: BoolArray
    wrong_optimal: BoolArray
    x_error: Array
    J_error: Array
    words: tuple[tuple[str, ...], ...]
    outputs: Array
    expected: Array

    def example(self, element: int) -> str:
        """One element in words."""
        return (
            f"{self.status[element]}, {' '.join(self.words[element])}; x {_written(self.outputs[element])}, should be "
            f"{_written(self.expected[element])}; errors of x {self.x_error[element]:.1e}, of derivatives "
            f"{self.J_error[element]:.1e}"
        )


def judge(
    solution_map: SolutionMap, theta: Sequence[Array], truth: Truth, *, queries: Sequence[int], seed: int = 0
) -> Outcome:
    """Solve, differentiate, and compare.

    Args:
        solution_map: of the problem.
        theta: parameters (B, *shape).
        truth: what should come out.
        queries: positions of the outputs that are differentiated one by one; a random combination of them follows,
            and a tangent that moves all parameters in proportion.
        seed: of these.
    """
    batch = len(truth.x)
    try:
        solved = solution_map.solve(theta)
        outputs = np.concatenate([value.reshape(batch, -1) for value in solved.outputs], axis=1)
        rng, said = np.random.default_rng([seed, 1]), list[Said]()
        for position in queries:
            weight = np.zeros_like(truth.x)
            weight[:, position] = 1.0
            said.append(_reverse(solved, weight, truth))
        weight = np.zeros_like(truth.x)
        weight[:, list(queries)] = rng.normal(size=(batch, len(queries))) / truth.x_size[:, list(queries)]
        said.append(_reverse(solved, weight, truth))
        said.append(_forward(solved, [value * rng.normal(size=value.shape) for value in theta], truth, queries))
    except Exception as error:  # whatever a solver raises: it is counted, by name
        return refused(truth.x, len(queries) + 2, type(error).__name__)
    return outcome_of(solved, outputs, truth.x, worst((outputs - truth.x) / truth.x_size), said)


@dataclass(frozen=True, eq=False)
class Said:
    """What came of one derivative.

    Attributes:
        error: relative, (B,).
        words: of the report, (B,).
        exists: whether there is a derivative; where there is none, ok is wrong and nothing else is.
    """

    error: Array
    words: tuple[str, ...]
    exists: bool = True


def outcome_of(solved: SolvedBatch, outputs: Array, expected: Array, x_error: Array, said: Sequence[Said]) -> Outcome:
    """The outcome of a batch with these outputs, what they should be, their errors, and these derivatives."""
    optimal = np.array([status is Status.OPTIMAL for status in solved.report.status])
    ok = np.array([[word == "ok" for word in one.words] for one in said])
    exists = np.array([one.exists for one in said])[:, None]
    errors = np.array([one.error for one in said])
    x_wrong, J_wrong = ~(x_error <= TOLERANCE), np.where(exists, ~(errors <= TOLERANCE), ok)
    J_silent = optimal & np.any(ok & J_wrong, axis=0)
    return Outcome(
        status=tuple(map(str, solved.report.status)),
        told=optimal & np.all(ok == exists, axis=0),
        right=~x_wrong & ~np.any(J_wrong & exists, axis=0),
        silent=J_silent | (optimal & x_wrong & np.any(ok, axis=0)),
        silent_outputs=optimal & x_wrong & np.any(ok, axis=0) & ~J_silent,
        wrong_optimal=optimal & x_wrong,
        x_error=x_error,
        J_error=np.max(np.where(exists, errors, 0.0), axis=0),
        words=tuple(zip(*(one.words for one in said), strict=True)),
        outputs=outputs,
        expected=expected,
    )


def words_of(solved: SolvedBatch) -> tuple[str, ...]:
    """What the report says of the last derivative; there is none where nothing was solved."""
    report = solved.report.derivative
    return ("failed",) * solved.batch if report is None else report.status


def refused(expected: Array, queries: int, word: str) -> Outcome:
    """The outcome of a batch, with what its outputs should be, whose call raised an error of this name."""
    batch = len(expected)
    no, infinite = np.zeros(batch, dtype=bool), np.full(batch, np.inf)
    failed = (("failed",) * queries,) * batch
    nothing = np.full_like(expected, np.nan)
    return Outcome((word,) * batch, no, no, no, no, no, infinite, infinite, failed, nothing, expected)


def _written(value: Array) -> str:
    return " ".join(np.array2string(value, separator=", ", floatmode="unique").split())


def worst(errors: Array) -> Array:
    """The largest absolute value of each row; infinite where one is not a number."""
    largest: Array = np.max(np.where(np.isfinite(errors), np.abs(errors), np.inf), axis=1, initial=0.0)
    return largest


def _reverse(solved: SolvedBatch, weight: Array, truth: Truth) -> Said:
    """The gradient of weight'x."""
    sizes = [value.shape for value in solved.outputs]
    ends = np.cumsum([int(np.prod(shape[1:], dtype=int)) for shape in sizes])[:-1]
    parts = [part.reshape(shape) for part, shape in zip(np.split(weight, ends, axis=1), sizes, strict=True)]
    pulled = [g for g in solved.vjp(parts) if g is not None]
    gradient = np.concatenate([g.reshape(len(weight), -1) for g in pulled], axis=1)
    expected = np.einsum("bi,bij->bj", weight, truth.J)
    size = np.einsum("bi,bij->bj", np.abs(weight), truth.J_size)
    return Said(worst((gradient - expected) / np.where(size > 0, size, 1.0)), words_of(solved))


def _forward(solved: SolvedBatch, tangents: Sequence[Array], truth: Truth, queries: Sequence[int]) -> Said:
    """The tangent of x."""
    batch = solved.batch
    symmetric = [0.5 * (t + np.swapaxes(t, -1, -2)) if _is_matrix(t) else t for t in tangents]
    moved = np.concatenate([value.reshape(batch, -1) for value in solved.jvp(symmetric)[0]], axis=1)
    flat = np.concatenate([t.reshape(batch, -1) for t in symmetric], axis=1)
    expected = np.einsum("bij,bj->bi", truth.J, flat)
    size = np.einsum("bij,bj->bi", truth.J_size, np.abs(flat))
    return Said(worst(((moved - expected) / size)[:, list(queries)]), words_of(solved))


def _is_matrix(tangent: Array) -> bool:
    return tangent.ndim == 3 and tangent.shape[1] == tangent.shape[2]
