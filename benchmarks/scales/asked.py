"""Programs in units, derivatives that are asked for of them, and whether the answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.scales.judge import TOLERANCE, Outcome
from benchmarks.scales.programs import DATA, Programs, Units
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.program import Array
from convexlayer.solution import Status

__all__ = ["Query", "answer"]


@dataclass(frozen=True, eq=False)
class Query:
    """A derivative that is asked for, in the program's own units.

    Attributes:
        wrt: with respect to these parameters (of ``DATA``).
        weight: of the outputs, (B, N): the derivative is that of weight'outputs.
        gradient: (B, M), of the parameters in ``wrt`` one after another; None where there is none.
    """

    wrt: tuple[str, ...]
    weight: Array
    gradient: Array | None

    def select(self, index: slice) -> Query:
        """Of some elements."""
        return Query(self.wrt, self.weight[index], None if self.gradient is None else self.gradient[index])


def answer(
    solution_map: SolutionMap,
    programs: Programs,
    units: Units,
    queries: Sequence[Query],
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
    factors = programs.units_of(units)
    c = units.objective[:, None]
    output_units = [units.variables[:, list(visible)]] + ([units.rows / c] if duals else [])
    own = np.concatenate([programs.x[:, list(visible)]] + ([programs.y] if duals else []), axis=1)
    ends = [part.shape[1] for part in output_units][:-1]
    unit = np.concatenate(output_units, axis=1)
    try:
        solved = solution_map.solve([v * f for v, f in zip(programs.theta(), factors, strict=True)])
        outputs = np.concatenate(solved.outputs, axis=1) * unit
        said: list[tuple[Array, tuple[str, ...]]] = []
        for query in queries:
            pulled = solved.vjp(np.split(query.weight * unit, ends, axis=1), wrt=[name in query.wrt for name in DATA])
            found = [g * f for g, f in zip(pulled, factors, strict=True) if g is not None]
            report = solved.report.derivative
            words = ("failed",) * len(own) if report is None else report.status  # None where nothing is solved
            said.append((_error(np.concatenate(found, axis=1), query.gradient), words))
    except Exception as error:  # whatever a solver raises: it is counted, by name
        return _refused(own, len(queries), type(error).__name__)
    status = solved.report.status
    optimal = np.array([word is Status.OPTIMAL for word in status])
    ok = np.array([[word == "ok" for word in words] for _, words in said])
    missing = np.array([query.gradient is None for query in queries])[:, None]
    compared = [position for position in range(own.shape[1]) if position not in ambiguous]
    x_error = _error(outputs[:, compared], own[:, compared])
    x_wrong = ~(x_error <= TOLERANCE)
    errors = np.array([error for error, _ in said])
    wrong = np.where(missing, ok, ~(errors <= TOLERANCE))
    return Outcome(
        status=tuple(map(str, status)),
        told=optimal & np.all(ok != missing, axis=0),
        right=~x_wrong & ~np.any(wrong & ~missing, axis=0),
        silent=optimal & np.any(ok & (wrong | x_wrong), axis=0),
        x_error=x_error,
        J_error=np.max(np.where(missing, 0.0, errors), axis=0),
        words=tuple(zip(*(words for _, words in said), strict=True)),
        outputs=outputs,
    )


def _error(found: Array, expected: Array | None) -> Array:
    """The largest error (B,), relative to the largest entry where that is above 1."""
    if expected is None:
        return np.zeros(len(found))
    errors = np.max(np.where(np.isfinite(found), np.abs(found - expected), np.inf), axis=1, initial=0.0)
    relative: Array = errors / np.maximum(np.max(np.abs(expected), axis=1, initial=0.0), 1.0)
    return relative


def _refused(outputs: Array, queries: int, word: str) -> Outcome:
    batch = len(outputs)
    nothing, infinite = np.zeros(batch, dtype=bool), np.full(batch, np.inf)
    failed = (("failed",) * queries,) * batch
    return Outcome(
        (word,) * batch, nothing, nothing, nothing, infinite, infinite, failed, np.full_like(outputs, np.nan)
    )
