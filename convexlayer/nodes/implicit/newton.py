"""Newton's method for equations R(z, theta) = 0, a whole batch in lock step, with a line search on |R|."""

from __future__ import annotations

import torch

from convexlayer.nodes.implicit.error_estimate import stepped
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, Operator

__all__ = ["newton"]

HALVINGS = 30


def newton(
    operator: Operator, linear: AbstractLinearSolver, *, tol: float, max_iter: int
) -> tuple[Operator, torch.Tensor]:
    """Iterate until R is small in the units that its rows have at the start, and the Newton step is in those of z.

    Elements that do not converge keep their last iterate.

    Args:
        operator: dR/dz at the start.
        linear: solves the systems with it.
        tol: largest |R|, relative to the start, and Newton step, relative to z, component by component.
        max_iter: iterations.

    Returns:
        The operator at the end, and the iterations, (batch,).
    """
    value = operator.value()
    unit = torch.where(value != 0, value.abs(), value.abs().amax(-1, keepdim=True))
    unit = torch.where(unit > 0, unit, 1.0)
    count = torch.zeros(len(value), dtype=torch.int64, device=value.device)
    resting = torch.zeros_like(count, dtype=torch.bool)
    for _ in range(max_iter):
        value = operator.value()
        size = torch.linalg.vector_norm(value / unit, dim=-1)
        factor = linear.init(operator, symmetric=operator.residual.symmetric)
        step = linear.solve(factor, -value, transposed=False).solution
        small = (step.abs() <= tol * operator.z.abs()).all(-1)
        resting = resting | (size == 0) | ((size <= tol) & small)
        if bool(resting.all()):
            break
        count += ~resting
        length = torch.ones_like(size)
        z, accepted = operator.z, resting
        for _ in range(HALVINGS):
            trial = operator.at(stepped(operator.z, length.unsqueeze(-1) * step))
            new = torch.linalg.vector_norm(trial.value() / unit, dim=-1)
            good = ~accepted & (new <= (1.0 - 1e-4 * length) * size)
            if bool(good.all()):
                z, accepted, operator = trial.z, good, trial
                break
            z = torch.where(good.unsqueeze(-1), trial.z, z)
            accepted = accepted | good
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, 0.5 * length)
        resting = resting | ~accepted
        operator = operator if operator.z is z else operator.at(z)
    return operator, count
