"""Newton's method for R(z, theta) = 0 with a line search on |R|, for a batch in lock step."""

from __future__ import annotations

import torch

from convexlayer.nodes.implicit.error_estimate import newton_update
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, Operator

__all__ = ["TOL_EXPONENT", "newton"]

TOL_EXPONENT = 2 / 3
"""Default tolerances of Newton's method are eps to this power, 4e-11 in float64: above rounding, and one quadratically
convergent step from it."""

MAX_HALVINGS = 30
"""Halvings of a Newton step, to 1e-9 of it, before the line search fails."""

ARMIJO_FRACTION = 1e-4
"""Sufficient decrease of |R|, as a fraction of the linear prediction (Nocedal and Wright 2006, section 11.2)."""


def newton(
    operator: Operator, linear: AbstractLinearSolver, *, tol: float, max_iter: int
) -> tuple[Operator, torch.Tensor]:
    """Iterate until R and the Newton step are small.

    Each row of R is measured relative to its value at the start, each component of the step relative to z. Elements
    that do not converge keep their last iterate.

    Args:
        operator: dR/dz at the start.
        linear: solves the systems with it.
        tol: largest relative |R| and largest relative component of the Newton step.
        max_iter: largest number of iterations.

    Returns:
        The operator at the last iterates, and the iterations, (batch,).
    """
    value = operator.value()
    unit = torch.where(value != 0, value.abs(), value.abs().amax(-1, keepdim=True))
    unit = torch.where(unit > 0, unit, 1.0)
    count = torch.zeros(len(value), dtype=torch.int64, device=value.device)
    finished = torch.zeros_like(count, dtype=torch.bool)
    for _ in range(max_iter):
        value = operator.value()
        size = torch.linalg.vector_norm(value / unit, dim=-1)
        factor = linear.init(operator, symmetric=operator.residual.symmetric)
        step = linear.solve(factor, -value, transposed=False).solution
        small = (step.abs() <= tol * operator.z.abs()).all(-1)
        finished = finished | (size == 0) | ((size <= tol) & small)
        if bool(finished.all()):
            break
        count += ~finished
        length = torch.ones_like(size)
        z, accepted = operator.z, finished
        for _ in range(MAX_HALVINGS):
            trial = operator.at(newton_update(operator.z, length.unsqueeze(-1) * step))
            new = torch.linalg.vector_norm(trial.value() / unit, dim=-1)
            good = ~accepted & (new <= (1.0 - ARMIJO_FRACTION * length) * size)
            if bool(good.all()):
                z, accepted, operator = trial.z, good, trial
                break
            z = torch.where(good.unsqueeze(-1), trial.z, z)
            accepted = accepted | good
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, 0.5 * length)
        finished = finished | ~accepted
        operator = operator if operator.z is z else operator.at(z)
    return operator, count
