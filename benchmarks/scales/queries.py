"""Scaled programs, queries of their derivatives, and the errors of the results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from benchmarks.scales.outcome import Outcome, QueryResult, outcome_of, raised
from benchmarks.scales.programs import DATA, Programs, Units
from convexlayer.layers.protocol import AbstractSolvedBatch
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.program import Array

__all__ = ["AbstractQuery", "Forward", "Frame", "Reverse", "Value", "answer"]


@dataclass(frozen=True, eq=False)
class Frame:
    """Scales of the inputs and outputs of a scaled program.

    Attributes:
        data: factor of each parameter: scaled parameter = factor * unscaled parameter.
        outputs: factor of the outputs, (B, N): unscaled output = factor * scaled output.
        objective: factor of the objective, (B,): scaled objective = factor * unscaled objective.
        ends: positions at which the concatenated outputs are split.
    """

    data: list[Array]
    outputs: Array
    objective: Array
    ends: list[int]


class AbstractQuery(ABC):
    """A query of a derivative, in unscaled units.

    Attributes:
        exists: whether the derivative exists.
    """

    exists: bool

    @abstractmethod
    def run(self, solved: AbstractSolvedBatch, frame: Frame) -> QueryResult:
        """Compute the derivative and its error."""

    @abstractmethod
    def select(self, index: slice) -> AbstractQuery:
        """The query for some elements."""


@final
@dataclass(frozen=True, eq=False)
class Reverse(AbstractQuery):
    """The gradient of weight'outputs.

    Attributes:
        wrt: parameters (of ``DATA``) to differentiate in.
        weight: (B, N).
        gradient: true gradient in the concatenated parameters ``wrt``, (B, M); arbitrary if it does not exist.
        exists: whether the gradient exists.
    """

    wrt: tuple[str, ...]
    weight: Array
    gradient: Array
    exists: bool = True

    def run(self, solved: AbstractSolvedBatch, frame: Frame) -> QueryResult:
        """Compute the gradient by a vjp, and its error."""
        parts = np.split(self.weight * frame.outputs, frame.ends, axis=1)
        pulled, report = solved.vjp(parts, wrt=[name in self.wrt for name in DATA])
        found = [g * unit for g, unit in zip(pulled, frame.data, strict=True) if g is not None]
        error = _error(np.concatenate(found, axis=1), self.gradient) if self.exists else np.zeros(solved.batch)
        return QueryResult(error, report.status, self.exists)

    def select(self, index: slice) -> Reverse:
        """The query for some elements."""
        return Reverse(self.wrt, self.weight[index], self.gradient[index], self.exists)


@final
@dataclass(frozen=True, eq=False)
class Value(AbstractQuery):
    """The gradient of the optimal value.

    Attributes:
        wrt: parameters (of ``DATA``) to differentiate in.
        gradient: true gradient in the concatenated parameters ``wrt``, (B, M); arbitrary if it does not exist.
        exists: whether the gradient exists.
    """

    wrt: tuple[str, ...]
    gradient: Array
    exists: bool = True

    def run(self, solved: AbstractSolvedBatch, frame: Frame) -> QueryResult:
        """Compute the gradient by a vjp of the objective, and its error."""
        pulled, report = solved.vjp(
            [*[None] * len(solved.outputs), 1.0 / frame.objective], wrt=[name in self.wrt for name in DATA]
        )
        found = [g * unit for g, unit in zip(pulled, frame.data, strict=True) if g is not None]
        error = _error(np.concatenate(found, axis=1), self.gradient) if self.exists else np.zeros(solved.batch)
        return QueryResult(error, report.status, self.exists)

    def select(self, index: slice) -> Value:
        """The query for some elements."""
        return Value(self.wrt, self.gradient[index], self.exists)


@final
@dataclass(frozen=True, eq=False)
class Forward(AbstractQuery):
    """The tangent of the outputs.

    Attributes:
        tangents: tangent of each parameter (of ``DATA``), (B, size); None for zero.
        moved: true tangents of all outputs, (B, N); arbitrary if they do not exist.
        exists: whether the derivative exists.
    """

    tangents: list[Array | None]
    moved: Array
    exists: bool = True

    def run(self, solved: AbstractSolvedBatch, frame: Frame) -> QueryResult:
        """Compute the tangent by a jvp, and its error."""
        inward = [None if t is None else t * unit for t, unit in zip(self.tangents, frame.data, strict=True)]
        (*moved, _), report = solved.jvp(inward)
        found = np.concatenate([part for part in moved if part is not None], axis=1) * frame.outputs
        error = _error(found, self.moved) if self.exists else np.zeros(solved.batch)
        return QueryResult(error, report.status, self.exists)

    def select(self, index: slice) -> Forward:
        """The query for some elements."""
        return Forward([None if t is None else t[index] for t in self.tangents], self.moved[index], self.exists)


def answer(
    solution_map: SolutionMap,
    programs: Programs,
    units: Units,
    queries: Sequence[AbstractQuery],
    *,
    visible: Sequence[int],
    duals: bool,
    ambiguous: Sequence[int] = (),
) -> Outcome:
    """Solve the scaled programs, run the queries, and compare the results in unscaled units.

    Unscaled numbers are near 1, so outputs and gradients are right if their error is at most 1e-6 times the largest
    entry, or 1e-6 if that is below 1. Outputs that are ambiguous (not unique) are not compared. If a derivative does
    not exist, every report but ok is right.
    """
    c = units.objective[:, None]
    parts = [units.variables[:, list(visible)]] + ([units.rows / c] if duals else [])
    frame = Frame(programs.units_of(units), np.concatenate(parts, axis=1), units.objective, [len(visible)] * duals)
    own = np.concatenate([programs.x[:, list(visible)]] + ([programs.y] if duals else []), axis=1)
    compared = [position for position in range(own.shape[1]) if position not in ambiguous]
    try:
        solved = solution_map.solve([v * f for v, f in zip(programs.theta(), frame.data, strict=True)])
        outputs = np.concatenate(solved.outputs, axis=1) * frame.outputs
        results = [query.run(solved, frame) for query in queries]
    except Exception as error:  # count any exception of a solver, by its type
        return raised(own, len(queries), type(error).__name__)
    return outcome_of(solved, outputs, own, _error(outputs[:, compared], own[:, compared]), results)


def _error(found: Array, expected: Array) -> Array:
    """The largest error (B,), relative to the largest entry if that is above 1."""
    errors = np.max(np.where(np.isfinite(found), np.abs(found - expected), np.inf), axis=1, initial=0.0)
    relative: Array = errors / np.maximum(np.max(np.abs(expected), axis=1, initial=0.0), 1.0)
    return relative
