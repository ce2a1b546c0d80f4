"""Trust in one linear solve of a derivative: its status per element, and the reason in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch

from convexlayer.diff import DerivativeReport
from convexlayer.diff.report import ACCURATE
from convexlayer.nodes.implicit.dense_lu import SINGULAR_FACTOR
from convexlayer.nodes.implicit.operator import LinearSolve, Operator
from convexlayer.program import Array

__all__ = ["KINK_CHANGE", "DerivativeVerdict"]

KINK_CHANGE = 0.1
"""Relative change of K within the uncertainty of z above which f is not twice differentiable; smooth functions change
by about that uncertainty, at most 1e-4."""

WEAK_ACTIVITY = 1e-6
"""Relative size of an inequality and of its multiplier at which it is weakly active, as in ``diff.report``."""

WEAK_ACTIVITY_FACTOR = 100.0
"""Multiples of eps that take the place of WEAK_ACTIVITY where they are larger, in float32."""

ACCURATE_FACTOR = 1e3
"""Multiples of eps that take the place of the accurate linear residual where they are larger, in float32."""


@final
class DerivativeVerdict:
    """Verdict on one linear solve of a derivative; words are made on demand.

    Args:
        operator: K at the solution.
        solve: the linear solve.
        solved: mask of elements with a solution, (batch,).
        distance: relative errors of the solution, (batch,).
        flat: mask of elements where K has vanished at the solution, (batch,).
        change: relative change of K within the uncertainty of z, (batch,).
        margin: distance from weak activity, (batch,).
        tol: largest distance of an accurate solution.
        singular_message: (operator, index) -> description of a singular K.

    Attributes:
        doubtful: whether the verdict of any element is other than ``ok``.
    """

    def __init__(
        self,
        operator: Operator,
        solve: LinearSolve,
        *,
        solved: torch.Tensor,
        distance: torch.Tensor,
        flat: torch.Tensor,
        change: torch.Tensor,
        margin: torch.Tensor,
        tol: float,
        singular_message: Callable[[Operator, int], str],
    ) -> None:
        n, eps = solve.solution.shape[-1], torch.finfo(solve.solution.dtype).eps
        # A new operator: a report may live long and should not hold the graph recorded for the derivative.
        self._operator, self._solve, self._singular_message = operator.at(operator.z), solve, singular_message
        self._margin, self._distance = margin, distance
        self._accurate = max(ACCURATE, ACCURATE_FACTOR * eps)
        tests = {
            "unsolved": ~solved,
            "infinite": ~torch.isfinite(solve.solution).all(-1),
            "singular": (solve.condition > 1.0 / (SINGULAR_FACTOR * n * eps)) | flat,
            "weakly active": margin <= max(WEAK_ACTIVITY, WEAK_ACTIVITY_FACTOR * eps),
            "uncertain": distance > tol,
            "kink": change > KINK_CHANGE,
            "residual": ~(solve.residual <= self._accurate),  # true for NaN
        }
        self._names = tuple(tests)
        # The first test that fails decides.
        failures = torch.stack([*tests.values(), torch.ones_like(solved)])
        self._failure = failures.int().argmax(0)
        self.doubtful = bool((self._failure < len(tests)).any())

    @property
    def derivative(self) -> DerivativeReport:
        """The verdict as a report of the kind that all derivatives have."""
        residual = self._solve.residual
        words = [_STATUS_OF[self._names[code]] if code < len(self._names) else "ok" for code in self._failure.tolist()]
        return DerivativeReport(
            linear_residual=_array(residual),
            margin=_array(self._margin),
            condition=_array(self._solve.condition),
            consistent=_array(residual) <= self._accurate,
            status=tuple(words),
        )

    def reasons(self, solved: torch.Tensor) -> dict[int, str]:
        """Why the derivative is doubtful, by index of the element, for the solved ones."""
        indices = torch.nonzero((self._failure < len(self._names)) & solved).flatten().tolist()
        return {i: self._reason(self._names[int(self._failure[i])], i) for i in indices}

    def _reason(self, failure: str, index: int) -> str:
        match failure:
            case "infinite":
                return "the second derivatives at the solution are not finite"
            case "singular":
                return self._singular_message(self._operator, index)
            case "weakly active":
                margin = float(self._margin[index])
                return f"an inequality is weakly active (it and its multiplier within {margin:.0e}): a kink"
            case "uncertain":
                message = self._singular_message(self._operator, index)
                distance = float(self._distance[index])
                return f"the second derivatives leave the solution uncertain by {distance:.0e}: {message}"
            case "kink":
                return (
                    "second derivatives jump or vanish at the solution: the function is flat there, or not twice "
                    "differentiable"
                )
        residual = float(self._solve.residual[index])
        return f"the relative residual of the linear system is {residual:.0e}"


_STATUS_OF = {
    "unsolved": "failed",
    "infinite": "failed",
    "singular": "degenerate",
    "weakly active": "degenerate",
    "uncertain": "inaccurate",
    "kink": "degenerate",
    "residual": "inaccurate",
}


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().double().numpy()
    return array
