"""Accuracy report of a derivative, element by element."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexlayer.program import Array
from convexlayer.solution import BoolArray

__all__ = ["ACCURATE", "ACCURATE_SOLUTION", "DerivativeReport"]

DEGENERATE_MARGIN = 1e-6
"""Relative distance of w from a jump of D below which the active set counts as uncertain."""

ACCURATE = 1e-8
"""Largest relative linear residual of a derivative with status ok."""

ACCURATE_SOLUTION = 1e-7
"""Largest relative error of a solution whose derivative has status ok."""

FAILED = 1e-2
"""Relative linear residual above which a derivative has status failed, unless the system is singular."""


WORDS = ("ok", "inaccurate", "degenerate", "failed")
"""The statuses, from best to worst."""


@dataclass(frozen=True, eq=False)
class DerivativeReport:
    """Accuracy report of a derivative; one entry per element.

    Attributes:
        linear_residual: largest row residual of the equilibrated linear system after refinement, relative to the sum of
            the magnitudes of the row's terms.
        margin: strict complementarity margin: smallest distance, over the blocks, of w = c y - s / c from a jump of the
            projection's derivative, relative to the size of the terms of the block's rows; infinite without jumps. It
            may be a lower bound if it is large. If it is too small for certainty, blocks at which both sides of the
            jump give the same derivative are excluded.
        condition: estimate of the condition number of the equilibrated system.
        consistent: whether the right-hand side is in the range of the system.
        status: ``ok``; ``inaccurate`` (linear residual above 1e-8, or relative error of the solution above 1e-7);
            ``degenerate`` (the system is singular and this affects the requested derivative, or the margin is below
            1e-6 or below ten times the error of w: the derivative may not exist, and the returned one is the
            minimum-norm least-squares solution for one active set); ``failed`` (not finite, or no solution to
            differentiate).
    """

    linear_residual: Array
    margin: Array
    condition: Array
    consistent: BoolArray
    status: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether every element is ``ok``."""
        return self.status.count("ok") == len(self.status)

    def worse(self, other: DerivativeReport) -> DerivativeReport:
        """Combine two reports at the same solutions: the worse of each entry."""
        rank = WORDS.index
        return DerivativeReport(
            linear_residual=np.maximum(self.linear_residual, other.linear_residual),
            margin=np.minimum(self.margin, other.margin),
            condition=np.maximum(self.condition, other.condition),
            consistent=self.consistent & other.consistent,
            status=tuple(max(pair, key=rank) for pair in zip(self.status, other.status, strict=True)),
        )

    @staticmethod
    def certain_margin(error: Array) -> Array:
        """Margins (B,) above which the active set is certain, given the relative errors of w, (B,)."""
        bound: Array = np.maximum(DEGENERATE_MARGIN, 10.0 * error)
        return bound

    @staticmethod
    def all_ok(residual: Array, margin: Array, error: Array) -> bool:
        """Whether ``from_measures`` reports ok for all elements if no system is singular, from the batch extrema.

        False where a number is NaN, and for an empty batch.
        """
        if not len(residual):
            return False
        worst = float(error.max())
        certain = max(DEGENERATE_MARGIN, 10.0 * worst)  # in this order: NaN stays
        return worst <= ACCURATE_SOLUTION and float(margin.min()) > certain and float(residual.max()) <= ACCURATE

    @staticmethod
    def ok(residual: Array, margin: Array, condition: Array) -> DerivativeReport:
        """The report of a batch for which ``all_ok`` holds."""
        batch = len(residual)
        return DerivativeReport(residual, margin, condition, np.ones(batch, dtype=bool), ("ok",) * batch)

    @staticmethod
    def from_measures(
        residual: Array,
        margin: Array,
        condition: Array,
        singular: BoolArray,
        error: Array,
        certain: Array | None = None,
    ) -> DerivativeReport:
        """Build the report from residuals, margins, conditions, singularity, and errors of the solutions, each (B,).

        Margins above ``certain`` count as safe; its default is ``DerivativeReport.certain_margin(error)``.
        """
        certain = DerivativeReport.certain_margin(error) if certain is None else certain
        finite = np.isfinite(residual) & np.isfinite(condition)
        degenerate = singular | ~(margin > certain)
        failed = ~finite | np.isnan(margin) | (~singular & (residual > FAILED))
        inaccurate = (residual > ACCURATE) | ~(error <= ACCURATE_SOLUTION)
        status: tuple[str, ...] = ("ok",) * len(residual)
        if np.any(failed | degenerate | inaccurate):
            words = np.select([failed, degenerate, inaccurate], ["failed", "degenerate", "inaccurate"], "ok")
            status = tuple(words.tolist())
        return DerivativeReport(residual, margin, condition, residual <= ACCURATE, status)
