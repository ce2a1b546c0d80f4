"""How far a point is from solving R(z, theta) = 0, and a few steps of Newton's method towards it."""

from __future__ import annotations

import torch

from convexlayer.nodes.linear import AbstractLinearSolver, Operator

__all__ = ["distance", "polished", "solved"]


def distance(operator: Operator) -> tuple[torch.Tensor, torch.Tensor]:
    """An estimate of |z - z*| / (1 + |z|), and |R| in the maximum norm, each (batch,).

    The estimate is |R| / |K w| with w of size 1 + |z|: it does not change with the units of R.
    """
    z = operator.z
    size = operator.value().abs().amax(-1)
    sign = torch.where(torch.arange(z.shape[-1], device=z.device) % 2 == 0, 1.0, -1.0).to(z)
    scale = operator.transposed_product(sign * (1.0 + z.abs())).abs().amax(-1)
    tiny = torch.finfo(z.dtype).tiny
    return torch.where(size > 0, size / scale.clamp(min=tiny), size), size


def solved(estimate: torch.Tensor, size: torch.Tensor, tol: float) -> torch.Tensor:
    """Whether a point counts as a solution: within tol, or |R| at the level of rounding. NaN does not."""
    return (estimate <= tol) | (size <= 10.0 * torch.finfo(size.dtype).eps ** (2 / 3))


def polished(
    operator: Operator, linear: AbstractLinearSolver, *, symmetric: bool, steps: int
) -> tuple[Operator, torch.Tensor, torch.Tensor]:
    """After some steps of Newton's method, with its distance; a step that is not small or not good is not taken."""
    estimate, size = distance(operator)
    for _ in range(steps):
        if not (estimate > 10.0 * torch.finfo(size.dtype).eps).any():
            break
        answer = linear.solve(linear.init(operator, symmetric=symmetric), -operator.value(), transposed=False)
        trial = operator.at(operator.z + answer.solution)
        new_estimate, new = distance(trial)
        near = answer.solution.abs().amax(-1) <= 0.1 * (1.0 + operator.z.abs().amax(-1))
        good = near & (new < size)  # false for NaN
        if not good.any():
            break
        estimate, size = torch.where(good, new_estimate, estimate), torch.where(good, new, size)
        operator = operator.at(torch.where(good.unsqueeze(-1), trial.z, operator.z))
    return operator, estimate, size
