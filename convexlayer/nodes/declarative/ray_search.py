"""Searches along rays over a geometric grid of lengths, where derivatives give no step length."""

from __future__ import annotations

import torch

from convexlayer.nodes.autodiff.batch import Dims, Tensors, repeat_elements
from convexlayer.nodes.autodiff.derivatives import matvec
from convexlayer.nodes.declarative.nonlinear_program import (
    NonlinearProgram,
    Point,
    ProgramDerivatives,
    pseudo_inverse,
    variable_scales,
)

__all__ = ["descend_along", "feasibility_start", "steepest_descent_start"]

LENGTH_RATIO, MAX_EXPONENT = 4.0, 24
"""Lengths tried are 4^-24 to 4^24 times that of the direction: 29 decades, beyond the range of float64 rounding."""

ROUNDOFF_FACTOR = 100.0
"""Multiples of eps, relative to the objective, that its change must exceed to count as one."""

UNREACHED = 0.5
"""Fraction of a violated equality that must remain at the linearised step for it to count as unreachable."""

PENALTY_FACTOR = 2.0
"""Weight of a constraint in the merit function, as a multiple of its multiplier; above 1 for an exact penalty."""


def feasibility_start(
    program: NonlinearProgram, start: torch.Tensor, found: ProgramDerivatives, dims: Dims, theta: Tensors
) -> torch.Tensor | None:
    """Move starts from which the linearised equalities cannot be reached, such as y = 0 for h = |y|^2 - 1.

    Such an element is moved along -f_Y, or along an irregular direction, to the smallest violation, each equality
    relative to its violation at the start.

    Args:
        program: the program.
        start: (batch, n).
        found: derivatives at the start.
        dims: batch axes of theta.
        theta: the parameters.

    Returns:
        The starts, or None if none has been moved.
    """
    size = torch.linalg.vector_norm(found.A, dim=-1)
    unit = torch.where(size > 0, size, 1.0)
    if found.h.shape[-1] == 1 and bool(((size > 0) | (found.h == 0)).all()):
        return None
    rows, target = found.A / unit.unsqueeze(-1), found.h / unit
    reached = matvec(rows, matvec(pseudo_inverse(rows), target))
    unreachable = ((target - reached).abs() > UNREACHED * target.abs()).any(-1)
    if not bool(unreachable.any()):
        return None
    scales = variable_scales(start, found)
    index = torch.arange(start.shape[-1], device=start.device)
    irregular = torch.cos(1.0 + index.to(start) ** 2).expand_as(start)
    slope = found.slope * scales
    largest = slope.abs().amax(-1, keepdim=True)
    downward = torch.where(largest > 0, -slope / torch.where(largest > 0, largest, 1.0), irregular)
    y = torch.stack([_along(start, scales * downward), _along(start, scales * irregular)], 1).flatten(1, 2)
    _, h, _ = _values(program, dims, y, theta)
    first = found.h.abs().unsqueeze(1)
    violation = (h.abs() / torch.where(first > 0, first, 1.0)).sum(-1).nan_to_num(torch.inf, torch.inf)
    least, where = violation.min(1)
    better = unreachable & (least < (found.h != 0).sum(-1))
    return torch.where(better.unsqueeze(-1), y[torch.arange(len(y), device=y.device), where], start)


def steepest_descent_start(
    program: NonlinearProgram, point: Point, found: ProgramDerivatives, dims: Dims, theta: Tensors
) -> torch.Tensor | None:
    """Move starts without any curvature along steepest descent to the first local minimum on the ray.

    Args:
        program: the program.
        point: the start; mu is 0.
        found: derivatives at the start.
        dims: batch axes of theta.
        theta: the parameters.

    Returns:
        The starts, or None if all have curvature.
    """
    slope = found.slope if not found.A.shape[1] else found.slope + matvec(found.A.mT, point.lam)
    largest = slope.abs().amax(-1, keepdim=True)
    straight = (found.hessian == 0).all(-1).all(-1) & (largest > 0).squeeze(-1) & torch.isfinite(largest).squeeze(-1)
    if not bool(straight.any()):
        return None
    direction = -slope / torch.where(largest > 0, largest, 1.0)
    y, descends = descend_along(program, point, direction, dims, theta)
    return torch.where((straight & descends).unsqueeze(-1), y, point.y)


def descend_along(
    program: NonlinearProgram, point: Point, direction: torch.Tensor, dims: Dims, theta: Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search along +-direction for a decrease of the objective that second derivatives do not show.

    Each trial point is corrected to the active constraints, whose remaining violation is penalised; inactive
    inequalities must hold.

    Args:
        program: the program.
        point: a stationary point; mu is 0 at inactive inequalities.
        direction: (batch, n), tangent to the active constraints.
        dims: batch axes of theta.
        theta: the parameters.

    Returns:
        y (batch, n), the first local minimum on the grid, and a mask of the elements whose objective falls, (batch,).
    """
    found = program.derivatives(dims, point, theta)
    weights = torch.cat([point.lam, point.mu], -1)
    active = torch.cat([torch.ones_like(point.lam, dtype=torch.bool), point.mu > 0], -1)
    jacobian = torch.cat([found.A, found.G], 1) * active.unsqueeze(-1)
    inverse = pseudo_inverse(jacobian)
    size = len(direction)
    y = torch.stack([_along(point.y, direction), _along(point.y, -direction)], 1).flatten(1, 2)
    _, h, g = _values(program, dims, y, theta)
    y = y - matvec(inverse.unsqueeze(1), torch.cat([h, g], -1) * active.unsqueeze(1))
    f, h, g = _values(program, dims, y, theta)
    rows = torch.cat([h, g], -1)
    merit = f + (PENALTY_FACTOR * weights.unsqueeze(1) * rows * active.unsqueeze(1)).abs().sum(-1)
    count = h.shape[-1]
    allowed = (active.unsqueeze(1) | (rows <= 0))[..., count:].all(-1)
    merit = torch.where(allowed & torch.isfinite(merit), merit, torch.inf).reshape(size, 2, -1)
    here = found.f.reshape(size, 1, 1)
    noise = ROUNDOFF_FACTOR * torch.finfo(here.dtype).eps * torch.maximum(here.abs(), merit.abs()).nan_to_num(0.0, 0.0)
    change = merit - here
    significant = change.abs() > noise
    first = significant.int().argmax(-1, keepdim=True)
    descends = (torch.take_along_dim(change, first, -1) < 0) & torch.take_along_dim(significant, first, -1)
    rising = torch.cat([change[..., 1:] >= change[..., :-1], torch.ones_like(significant[..., :1])], -1)
    beyond = torch.arange(change.shape[-1], device=change.device) >= first
    bottom = (rising & beyond).int().argmax(-1, keepdim=True)
    value = torch.where(descends, torch.take_along_dim(change, bottom, -1), torch.inf).squeeze(-1)
    best, side = value.min(-1)
    index = side * change.shape[-1] + torch.take_along_dim(bottom.squeeze(-1), side.unsqueeze(-1), -1).squeeze(-1)
    return y[torch.arange(size, device=y.device), index], best < torch.inf


def _along(start: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Points on a ray at all lengths, (batch, lengths, n)."""
    powers = torch.arange(-MAX_EXPONENT, MAX_EXPONENT + 1, device=start.device).to(start)
    return start.unsqueeze(1) + (LENGTH_RATIO**powers).reshape(1, -1, 1) * direction.unsqueeze(1)


def _values(program: NonlinearProgram, dims: Dims, y: torch.Tensor, theta: Tensors) -> Tensors:
    """f (batch, k), h (batch, k, p) and g (batch, k, m) at points (batch, k, n)."""
    size, k, _ = y.shape
    theta_repeated = repeat_elements(dims, theta, k)
    return tuple(
        part.reshape(size, k, *part.shape[1:]) for part in program.values(dims, y.flatten(0, 1), theta_repeated)
    )
