"""Searches along rays over all lengths, for starts and points where derivatives do not say how far to go."""

from __future__ import annotations

import torch

from convexlayer.nodes.autodiff.batch import Dims, Tensors, repeated
from convexlayer.nodes.autodiff.derivatives import times
from convexlayer.nodes.declarative.nonlinear_program import NonlinearProgram, Point, Quantities, lengths, pseudo_inverse

__all__ = ["downhill", "steepest", "towards_feasibility"]

EXPONENTS = 24
"""Lengths are 4^-24 to 4^24 times that of the direction."""

NOISE = 100.0
"""Multiples of eps, relative to the objective, that a change of it must exceed to count."""


def towards_feasibility(
    program: NonlinearProgram, start: torch.Tensor, found: Quantities, dims: Dims, theta: Tensors
) -> torch.Tensor | None:
    """The start, moved where the equalities cannot be reached from it by their gradients, as h = |y|^2 - 1 at y = 0.

    Such an element goes along -f_Y, or along an irregular direction, to where the violations are least, each relative
    to that at the start. None if there is no such element.

    Args:
        program: the lower problem.
        start: (batch, n).
        found: what is known there.
        dims: batch axes of theta.
        theta: the parameters.
    """
    size = torch.linalg.vector_norm(found.A, dim=-1)
    unit = torch.where(size > 0, size, 1.0)
    if found.h.shape[-1] == 1 and bool(((size > 0) | (found.h == 0)).all()):
        return None
    rows, target = found.A / unit.unsqueeze(-1), found.h / unit
    reached = times(rows, times(pseudo_inverse(rows), target))
    lost = ((target - reached).abs() > 0.5 * target.abs()).any(-1)
    if not bool(lost.any()):
        return None
    far = lengths(start, found)
    index = torch.arange(start.shape[-1], device=start.device)
    irregular = torch.cos(1.0 + index.to(start) ** 2).expand_as(start)
    slope = found.slope * far
    most = slope.abs().amax(-1, keepdim=True)
    downward = torch.where(most > 0, -slope / torch.where(most > 0, most, 1.0), irregular)
    y = torch.stack([_along(start, far * downward), _along(start, far * irregular)], 1).flatten(1, 2)
    _, h, _ = _values(program, dims, y, theta)
    first = found.h.abs().unsqueeze(1)
    violation = (h.abs() / torch.where(first > 0, first, 1.0)).sum(-1).nan_to_num(torch.inf, torch.inf)
    least, where = violation.min(1)
    better = lost & (least < (found.h != 0).sum(-1))
    return torch.where(better.unsqueeze(-1), y[torch.arange(len(y), device=y.device), where], start)


def steepest(
    program: NonlinearProgram, point: Point, found: Quantities, dims: Dims, theta: Tensors
) -> torch.Tensor | None:
    """The start, moved down the slope where there is no curvature to tell how far to go; None if there is no such one.

    Args:
        program: the lower problem.
        point: the start; mu is 0.
        found: what is known there.
        dims: batch axes of theta.
        theta: the parameters.
    """
    slope = found.slope if not found.A.shape[1] else found.slope + times(found.A.mT, point.lam)
    most = slope.abs().amax(-1, keepdim=True)
    straight = (found.hessian == 0).all(-1).all(-1) & (most > 0).squeeze(-1) & torch.isfinite(most).squeeze(-1)
    if not bool(straight.any()):
        return None
    direction = -slope / torch.where(most > 0, most, 1.0)
    y, falls = downhill(program, point, direction, dims, theta)
    return torch.where((straight & falls).unsqueeze(-1), y, point.y)


def downhill(
    program: NonlinearProgram, point: Point, direction: torch.Tensor, dims: Dims, theta: Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the objective first falls along +-direction, which stationary points leave open, and whether it does.

    Every trial is bent back to the active constraints, whose violation is weighed by twice their multipliers; inactive
    inequalities may not be violated.

    Args:
        program: the lower problem.
        point: stationary; mu is 0 at inactive inequalities.
        direction: (batch, n), tangent to the active constraints.
        dims: batch axes of theta.
        theta: the parameters.

    Returns:
        y (batch, n), at the first local minimum among the lengths tried, and (batch,).
    """
    found = program.quantities(dims, point, theta)
    weights = torch.cat([point.lam, point.mu], -1)
    active = torch.cat([torch.ones_like(point.lam, dtype=torch.bool), point.mu > 0], -1)
    jacobian = torch.cat([found.A, found.G], 1) * active.unsqueeze(-1)
    inverse = pseudo_inverse(jacobian)
    size = len(direction)
    y = torch.stack([_along(point.y, direction), _along(point.y, -direction)], 1).flatten(1, 2)
    _, h, g = _values(program, dims, y, theta)
    y = y - times(inverse.unsqueeze(1), torch.cat([h, g], -1) * active.unsqueeze(1))
    f, h, g = _values(program, dims, y, theta)
    rows = torch.cat([h, g], -1)
    merit = f + (2.0 * weights.unsqueeze(1) * rows * active.unsqueeze(1)).abs().sum(-1)
    count = h.shape[-1]
    allowed = (active.unsqueeze(1) | (rows <= 0))[..., count:].all(-1)
    merit = torch.where(allowed & torch.isfinite(merit), merit, torch.inf).reshape(size, 2, -1)
    here = found.f.reshape(size, 1, 1)
    noise = NOISE * torch.finfo(here.dtype).eps * torch.maximum(here.abs(), merit.abs()).nan_to_num(0.0, 0.0)
    change = merit - here
    seen = change.abs() > noise
    first = seen.int().argmax(-1, keepdim=True)
    falls = (torch.take_along_dim(change, first, -1) < 0) & torch.take_along_dim(seen, first, -1)
    rising = torch.cat([change[..., 1:] >= change[..., :-1], torch.ones_like(seen[..., :1])], -1)
    beyond = torch.arange(change.shape[-1], device=change.device) >= first
    bottom = (rising & beyond).int().argmax(-1, keepdim=True)
    value = torch.where(falls, torch.take_along_dim(change, bottom, -1), torch.inf).squeeze(-1)
    best, side = value.min(-1)
    index = side * change.shape[-1] + torch.take_along_dim(bottom.squeeze(-1), side.unsqueeze(-1), -1).squeeze(-1)
    return y[torch.arange(size, device=y.device), index], best < torch.inf


def _along(start: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """(batch, lengths, n)."""
    powers = torch.arange(-EXPONENTS, EXPONENTS + 1, device=start.device).to(start)
    return start.unsqueeze(1) + (4.0**powers).reshape(1, -1, 1) * direction.unsqueeze(1)


def _values(program: NonlinearProgram, dims: Dims, y: torch.Tensor, theta: Tensors) -> Tensors:
    """f (batch, k), h (batch, k, p) and g (batch, k, m) at points (batch, k, n)."""
    size, k, _ = y.shape
    many = repeated(dims, theta, k)
    return tuple(part.reshape(size, k, *part.shape[1:]) for part in program.values(dims, y.flatten(0, 1), many))
