"""Programs in units, derivatives that are asked for of them, and whether the answers are right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from benchmarks.scales.judge import Outcome, Said, outcome_of, refused, words_of
from benchmarks.scales.programs import DATA, Programs, Units
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.layers.solved_batch import SolvedBatch
from convexlayer.program import Array

__all__ = ["AbstractQuery", "Forward", "Frame", "Reverse", "Value", "answer"]


@dataclass(frozen=True, eq=False)
class Frame:
    """Units of what goes in and comes out.

    Attributes:
        data: one array a parameter; a parameter is this times what it is in the program's own units.
        outputs: (B, N); what an output is in the program's own units is this times what comes out.
        objective: (B,); an objective is this times what it is in its own units.
        ends: where outputs are joined.
    """

    data: list[Array]
    outputs: Array
    objective: Array
    ends: list[int]


class AbstractQuery(ABC):
    """A derivative that is asked for, in the program's own units.

    Attributes:
        exists: whether there is one.
    """

    exists: bool

    @abstractmethod
    def ask(self, solved: SolvedBatch, frame: Frame) -> Said:
        """What comes of it."""

    @abstractmethod
    def select(self, index: slice) -> AbstractQuery:
        """Of some elements."""


@final
@dataclass(frozen=True, eq=False)
class Reverse(AbstractQuery):
    """The gradient of weight'outputs.

    Attributes:
        wrt: with respect to these parameters (of ``DATA``).
        weight: (B, N).
        gradient: (B, M), of the parameters in ``wrt`` one after another; anything where there is none.
        exists: whether there is one.
    """

    wrt: tuple[str, ...]
    weight: Array
    gradient: Array
    exists: bool = True

    def ask(self, solved: SolvedBatch, frame: Frame) -> Said:
        """By a vjp."""
        parts = np.split(self.weight * frame.outputs, frame.ends, axis=1)
        pulled = solved.vjp(parts, wrt=[name in self.wrt for name in DATA])
        found = [g * unit for g, unit in zip(pulled, frame.data, strict=True) if g is not None]
        error = _error(np.concatenate(found, axis=1), self.gradient) if self.exists else np.zeros(solved.batch)
        return Said(error, words_of(solved), self.exists)

    def select(self, index: slice) -> Reverse:
        """Of some elements."""
        return Reverse(self.wrt, self.weight[index], self.gradient[index], self.exists)


@final
@dataclass(frozen=True, eq=False)
class Value(AbstractQuery):
    """The gradient of the optimal value.

    Attributes:
        wrt: with respect to these parameters (of ``DATA``).
        gradient: (B, M), of the parameters in ``wrt`` one after another; anything where there is none.
        exists: whether there is one.
    """

    wrt: tuple[str, ...]
    gradient: Array
    exists: bool = True

    def ask(self, solved: SolvedBatch, frame: Frame) -> Said:
        """By a vjp of the objective."""
        pulled = solved.vjp(
            [None] * len(solved.outputs), objective=1.0 / frame.objective, wrt=[name in self.wrt for name in DATA]
        )
        found = [g * unit for g, unit in zip(pulled, frame.data, strict=True) if g is not None]
        error = _error(np.concatenate(found, axis=1), self.gradient) if self.exists else np.zeros(solved.batch)
        return Said(error, words_of(solved), self.exists)

    def select(self, index: slice) -> Value:
        """Of some elements."""
        return Value(self.wrt, self.gradient[index], self.exists)


@final
@dataclass(frozen=True, eq=False)
class Forward(AbstractQuery):
    """The tangent of the outputs.

    Attributes:
        tangents: one a parameter (of ``DATA``), (B, size); None moves nothing.
        moved: tangents of all outputs (B, N); anything where there is none.
        exists: whether there is one.
    """

    tangents: list[Array | None]
    moved: Array
    exists: bool = True

    def ask(self, solved: SolvedBatch, frame: Frame) -> Said:
        """By a jvp."""
        inward = [None if t is None else t * unit for t, unit in zip(self.tangents, frame.data, strict=True)]
        found = np.concatenate(solved.jvp(inward)[0], axis=1) * frame.outputs
        error = _error(found, self.moved) if self.exists else np.zeros(solved.batch)
        return Said(error, words_of(solved), self.exists)

    def select(self, index: slice) -> Forward:
        """Of some elements."""
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
    """Solve the programs in units, ask, and compare in the programs' own units.

    Numbers there are near 1, so outputs and gradients are right if off by at most 1e-6 of the largest entry, or 1e-6
    where that is below 1; outputs that are ambiguous are not compared. Where no derivative exists, everything but ok is
    right.
    """
    c = units.objective[:, None]
    parts = [units.variables[:, list(visible)]] + ([units.rows / c] if duals else [])
    frame = Frame(programs.units_of(units), np.concatenate(parts, axis=1), units.objective, [len(visible)] * duals)
    own = np.concatenate([programs.x[:, list(visible)]] + ([programs.y] if duals else []), axis=1)
    compared = [position for position in range(own.shape[1]) if position not in ambiguous]
    try:
        solved = solution_map.solve([v * f for v, f in zip(programs.theta(), frame.data, strict=True)])
        outputs = np.concatenate(solved.outputs, axis=1) * frame.outputs
        said = [query.ask(solved, frame) for query in queries]
    except Exception as error:  # whatever a solver raises: it is counted, by name
        return refused(own, len(queries), type(error).__name__)
    return outcome_of(solved, outputs, own, _error(outputs[:, compared], own[:, compared]), said)


def _error(found: Array, expected: Array) -> Array:
    """The largest error (B,), relative to the largest entry where that is above 1."""
    errors = np.max(np.where(np.isfinite(found), np.abs(found - expected), np.inf), axis=1, initial=0.0)
    relative: Array = errors / np.maximum(np.max(np.abs(expected), axis=1, initial=0.0), 1.0)
    return relative
