"""How far a point is from solving R(z, theta) = 0, in units that change with those of the problem.

The measure is the Newton step: |z - z*| is |K^-1 R| near a regular solution, and each component of it is compared with
that component of z. Neither scaling R nor scaling a variable changes it, and no component hides behind a larger one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch

from convexlayer.nodes.autodiff.derivatives import times
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, Operator

__all__ = ["Iterates", "certified", "irregular_signs", "irregular_weights", "rounding", "stepped"]

ROUNDING = 16.0
"""Multiples of eps that an evaluation of R is taken to lose."""


@final
@dataclass(frozen=True)
class Iterates:
    """Points with what is known of them.

    Attributes:
        operator: K at the points.
        factor: what the linear solver has prepared for it.
        distance: the largest |K^-1 R|_j / |z_j| beyond rounding, (batch,): an estimate of the relative error of z.
            Infinite where the Newton step does not solve its system.
        flat: where K has vanished on the way from the start, (batch,): the error is relative to that way.
    """

    operator: Operator
    factor: Any
    distance: torch.Tensor
    flat: torch.Tensor


def certified(
    operator: Operator, linear: AbstractLinearSolver, *, start: torch.Tensor, steps: int, tol: float
) -> Iterates:
    """The points after at most so many steps of Newton's method, each taken where it brings a solution nearer.

    Args:
        operator: K at the points.
        linear: solves the systems with K.
        start: where the search for the first unknowns began, (batch, k), k <= n.
        steps: Newton steps at most.
        tol: distance of a solution, from which on rounding is looked at more closely.
    """
    best, move = _judged(operator, linear, start, tol)
    eps = torch.finfo(operator.z.dtype).eps
    for _ in range(steps):
        most = float(best.distance.amax())  # NaN where there is one
        if most <= 10.0 * eps:
            break
        if most <= 1e3 * eps:
            # So near that K is the same at both ends of the step.
            return replace(best, operator=best.operator.at(stepped(best.operator.z, move)))
        trial, next_move = _judged(operator.at(stepped(best.operator.z, move)), linear, start, tol)
        good = trial.distance < best.distance  # false for NaN
        if not bool(good.any()):
            break
        if bool(good.all()):
            best, move = trial, next_move
            continue
        keep = good.unsqueeze(-1)
        best, move = _judged(operator.at(torch.where(keep, trial.operator.z, best.operator.z)), linear, start, tol)
        # An element whose step was not good would try it again in vain.
        move = torch.where(keep, move, 0.0)
    return best


def stepped(z: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
    """The sum; components that are zero but for its rounding are zero."""
    there = z + move
    return torch.where(there.abs() <= 4.0 * torch.finfo(z.dtype).eps * z.abs(), 0.0, there)


def _judged(
    operator: Operator, linear: AbstractLinearSolver, start: torch.Tensor, tol: float
) -> tuple[Iterates, torch.Tensor]:
    """The points, and their Newton steps -K^-1 R."""
    factor = linear.init(operator, symmetric=operator.residual.symmetric)
    z, value, eps = operator.z, operator.value(), torch.finfo(operator.z.dtype).eps
    move = linear.solve(factor, -value, transposed=False).solution
    n = z.shape[-1] - operator.residual.multipliers
    if linear.direct and n < z.shape[-1]:
        # Inequalities that are not active stand alone with their multipliers; a pseudo-inverse leaves rounding there.
        alone = (operator.dense()[:, n:, :n] == 0).all(-1)
        move[:, n:] = torch.where(alone, value[:, n:], move[:, n:])
    sign = irregular_signs(z)
    size = _sizes(operator, linear, start)
    # Rows of the Newton system that its least-squares solution leaves open: K is singular, and R not in its range.
    left = (operator.product(move) + value).abs()
    open_rows = (left > 0.5 * value.abs()) & (value.abs() > ROUNDING * eps * operator.product(z * sign).abs())
    # Constraints must hold in the lengths of y: huge multipliers, of constraints without a common point, blur the rest.
    # Where more of them meet than there are variables no step makes all hold to rounding.
    own = torch.zeros_like(z)
    own[:, :n] = size[:, :n] * sign[:, :n]
    reach = tol * operator.product(own).abs() if n < z.shape[-1] else own
    open_rows[:, n:] &= left[:, n:] > reach[:, n:]
    distance = _largest(torch.where(open_rows.any(-1, keepdim=True), torch.inf, _relative(move, size)))
    if bool((distance <= tol).all()):
        return Iterates(operator, factor, distance, torch.zeros_like(distance, dtype=torch.bool)), move
    noise = rounding(operator)
    blurred = linear.solve(factor, noise * sign, transposed=False).solution.abs()
    beyond = (move.abs() - 4.0 * blurred).clamp(min=0.0)
    ratio = _relative(beyond, size)
    k = start.shape[-1]
    along = _relative(z[:, :k].abs() + move[:, :k].abs(), z[:, :k] - start)
    flat = _flat(operator, start, value) & (along < ratio[:, :k])
    ratio[:, :k] = torch.where(flat, along, ratio[:, :k])
    violated = value.abs() > reach + noise
    violated[:, :n] = False
    lost = ((open_rows & (value.abs() > noise)) | violated | ~torch.isfinite(blurred)).any(-1, keepdim=True)
    refined = _largest(torch.where(lost, torch.inf, ratio))
    close = distance <= tol
    return Iterates(operator, factor, torch.where(close, distance, refined), flat.any(-1) & ~close), move


def _sizes(operator: Operator, linear: AbstractLinearSolver, start: torch.Tensor) -> torch.Tensor:
    """What errors of the unknowns are relative to, (batch, n).

    That is their values. A variable that constraints hold at zero is measured by how far all of them together hold it
    from where its own curvature would take it. Steps of an iterative linear solver end at a tolerance of all components
    together, so there the way from the start counts too.
    """
    size, k = operator.z.abs(), start.shape[-1]
    if not linear.direct:
        size[:, :k] = torch.maximum(size[:, :k], (operator.z[:, :k] - start).abs())
        return size
    n = size.shape[-1] - operator.residual.multipliers
    if n == size.shape[-1]:
        return size
    matrix = operator.dense()
    pull = matrix[:, :n, n:]
    force = times(pull, operator.z[:, n:]).abs()
    # Huge multipliers that cancel leave no more than rounding.
    force = force - ROUNDING * torch.finfo(size.dtype).eps * times(pull.abs(), size[:, n:])
    force = force.clamp(min=0.0)
    curvature = matrix[:, :n, :n].diagonal(dim1=-2, dim2=-1).abs()
    held = force / torch.where(curvature > 0, curvature, torch.inf)
    size[:, :n] = torch.maximum(size[:, :n], held)
    return size


def rounding(operator: Operator) -> torch.Tensor:
    """What rounding of z and theta alone makes of R, (batch, n), up to chance."""
    signed = tuple(t * irregular_signs(t.reshape(-1)).reshape(t.shape) for t in operator.theta)
    of_z, of_theta = operator.product(operator.z * irregular_signs(operator.z)), operator.parameter_product(signed)
    return ROUNDING * torch.finfo(operator.z.dtype).eps * (of_z.abs() + of_theta.abs())


def _flat(operator: Operator, start: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Where a row of K has shrunk to nothing on the way from the start, and R with it, (batch, k).

    Newton's method goes to such a point, as that of y^4 at 0, by a constant fraction of the way only; if the point is 0
    there is no other length to compare with than the way itself.
    """
    eps, k = torch.finfo(value.dtype).eps, start.shape[-1]
    z = operator.z
    first = operator.at(torch.cat([start, z[:, k:]], -1))
    way = torch.zeros_like(z)
    way[:, :k] = (z[:, :k] - start) * irregular_signs(start)
    here, there = operator.product(way).abs(), first.product(way).abs()
    shrunk = (here <= eps**0.5 * there) & (value.abs() <= eps ** (2 / 3) * first.value().abs())
    return shrunk[:, :k]


def _relative(step: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """|step| / |z|, 0 where the step is."""
    size = step.abs()
    return torch.where(size == 0, 0.0, size / z.abs())


def _largest(ratio: torch.Tensor) -> torch.Tensor:
    """The largest entry; NaN where there is one."""
    return ratio.amax(-1) if ratio.shape[-1] else ratio.sum(-1)


def irregular_weights(like: torch.Tensor, number: int = 0) -> torch.Tensor:
    """Irregular weights between 1/2 and 3/2 of both signs along the last axis; others for each number."""
    index = torch.arange(like.shape[-1], device=like.device).double()
    sizes = 0.5 + torch.frac(0.618033988749895 * (index + 1.0 + 0.7 * number))
    signs = torch.where(torch.cos(1.0 + number + (3.0 + number) * index**2) >= 0, 1.0, -1.0)
    return (signs * sizes).to(like).expand_as(like)


def irregular_signs(like: torch.Tensor) -> torch.Tensor:
    """An irregular pattern of +1 and -1 along the last axis: sums with it do not cancel as plain ones may."""
    index = torch.arange(like.shape[-1], device=like.device)
    return torch.where(torch.cos(2.0 + index.double() ** 2) >= 0, 1.0, -1.0).to(like).expand_as(like)
