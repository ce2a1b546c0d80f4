"""Check of every linear solve of a derivative: singular systems, weak activity, and kinks of R near the solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch

from convexlayer.nodes.autodiff.derivatives import matvec
from convexlayer.nodes.implicit.derivative_verdict import KINK_CHANGE, DerivativeVerdict
from convexlayer.nodes.implicit.error_estimate import quasirandom_signs, quasirandom_weights, rounding_error
from convexlayer.nodes.implicit.node_report import DegeneracyPolicy, NodeReport
from convexlayer.nodes.implicit.operator import LinearSolve, Operator

__all__ = ["DerivativeCheck"]

MIN_SHIFT_EXPONENT, MAX_SHIFT = 2 / 3, 1e-4
"""Relative distances from z at which K is compared: at least eps to this power, where differences of K have lost two
thirds of their digits, and at most MAX_SHIFT, within which K of a smooth function hardly changes."""

SHIFT_FACTOR = 2.0
"""Multiples of the uncertainty of z by which K is compared on both sides."""

NOISE_FACTOR = 100.0
"""Multiples of the rounding error of R that a jump of R must exceed."""

PROBES = 3
"""Products with irregular vectors that estimate the row sizes of K where it is not formed."""


@final
class DerivativeCheck:
    """Write the verdict on each linear solve of a call into its report.

    Args:
        report: report of the call.
        on_degenerate: applied to the report if a derivative is doubtful.
        tol: largest distance of an accurate solution.
        margin: operator -> distance (batch,) from the nearest known discontinuity of K; None if none is known.
        singular_message: (operator, index) -> description of a singular K.
    """

    def __init__(
        self,
        report: NodeReport,
        on_degenerate: DegeneracyPolicy,
        tol: float,
        margin: Callable[[Operator], torch.Tensor] | None,
        singular_message: Callable[[Operator, int], str],
    ) -> None:
        self._report, self._on_degenerate, self._tol = report, on_degenerate, tol
        self._margin_of, self._singular_message = margin, singular_message
        self._checked: Operator | None = None
        self._change = torch.empty(0)
        self._margin = torch.empty(0)

    def __call__(
        self, operator: Operator, solve: LinearSolve, inverse: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> None:
        """Check one linear solve; the point is examined once per operator."""
        if self._checked is not operator:
            self._checked, self._margin = operator, torch.full_like(operator.z[:, 0], torch.inf)
            if self._margin_of is not None:
                self._margin = self._margin_of(operator)
            self._change = self._change_nearby(operator, inverse)
        verdict = DerivativeVerdict(
            operator,
            solve,
            solved=self._report.solved,
            distance=self._report.distance,
            flat=self._report.flat,
            change=self._change,
            margin=self._margin,
            tol=self._tol,
            singular_message=self._singular_message,
        )
        self._report.record_derivative(verdict)
        if verdict.doubtful:
            self._on_degenerate(self._report)

    def _change_nearby(
        self, operator: Operator, inverse: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> torch.Tensor:
        """Relative change of K w within the uncertainty of z, (batch,): near 0 unless K jumps or vanishes there.

        The uncertainty is the distance of z from the solution and the effect of rounding of R. Multipliers are shifted
        by a factor, so that those of inactive inequalities stay zero.
        """
        z = operator.z
        eps = torch.finfo(z.dtype).eps
        distance = self._report.distance.nan_to_num(0.0, 0.0, 0.0).clamp(eps**MIN_SHIFT_EXPONENT, MAX_SHIFT)
        distance = distance.to(z).unsqueeze(-1)
        n = z.shape[-1] - operator.residual.multipliers
        size = z.abs()
        # A variable that is zero is shifted by the size of the largest one.
        largest = size[:, :n].amax(-1, keepdim=True)
        size[:, :n] = torch.where(size[:, :n] > 0, size[:, :n], torch.where(largest > 0, largest, 1.0))
        shift, noise = SHIFT_FACTOR * distance * size, rounding_error(operator)
        if inverse is not None:
            roundoff_step = inverse(noise).abs().nan_to_num(0.0, 0.0)
            roundoff_step[:, n:] = 0.0
            shift = torch.maximum(shift, SHIFT_FACTOR * roundoff_step)
        shift = shift * quasirandom_signs(z)
        w = size * quasirandom_weights(z)  # no multiple of the shift: a jump along it does not cancel
        here, along = operator.transposed_product(w), operator.product(shift)
        (above, value_above), (below, value_below) = operator.at_both_sides(shift, w)
        change = torch.maximum((above - below).abs(), torch.maximum((above - here).abs(), (below - here).abs()))
        magnitude = torch.maximum(here.abs(), torch.maximum(above.abs(), below.abs()))
        # K may be equal on both sides of a kink of the objective, across which R itself jumps.
        jump = ((value_above - value_below) - 2.0 * along).abs()
        step = 2.0 * along.abs() + NOISE_FACTOR * noise
        # Changes of a row are relative to the magnitudes of its entries, whose signed sum may cancel.
        if inverse is not None:
            sizes = operator.dense().abs()
            magnitude = torch.maximum(magnitude, matvec(sizes.mT, w.abs()))
            step = step + 2.0 * matvec(sizes, shift.abs())
        else:
            for number in range(1, PROBES + 1):
                weights = quasirandom_weights(z, number)
                magnitude = torch.maximum(magnitude, operator.transposed_product(size * weights).abs())
                step = torch.maximum(step, 2.0 * operator.product(shift.abs() * weights).abs())
        of_value = torch.where(jump > KINK_CHANGE * step, 1.0, 0.0).amax(-1)
        of_jacobian = (change / torch.where(magnitude > 0, magnitude, 1.0)).amax(-1).nan_to_num(0.0, 0.0, 0.0)
        return torch.maximum(of_value.to(of_jacobian), of_jacobian)
