"""Componentwise error estimate of a root of R(z, theta) = 0, by the Newton step.

Near a regular root z* the error |z - z*| is about |K^-1 R|; each component is measured relative to that component of z.
The estimate is invariant to scaling of R and of the variables, and a large component cannot hide a small one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch

from convexlayer.nodes.autodiff.derivatives import matvec
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, Operator

__all__ = ["PolishedPoints", "newton_update", "polish", "quasirandom_signs", "quasirandom_weights", "rounding_error"]

ROUNDOFF_FACTOR = 16.0
"""Multiples of eps that an evaluation of R may lose; a safety factor over the few that are typical."""

CONVERGED_FACTOR = 10.0
"""Multiples of eps of the error estimate below which no Newton step is taken."""

LAST_STEP_FACTOR = 1e3
"""Multiples of eps of the error estimate below which the last step needs no new estimate: K no longer changes."""

ZERO_FACTOR = 4.0
"""Multiples of eps |z| below which a component after a Newton step is rounded to zero."""

SIGNIFICANT_FACTOR = 4.0
"""Multiples of the step that rounding of R alone causes, above which a Newton step is an error of z."""

UNREDUCED = 0.5
"""Fraction of a row of R that must remain after the Newton step for the row to count as inconsistent."""

FLAT_JACOBIAN_EXPONENT, FLAT_VALUE_EXPONENT = 1 / 2, 2 / 3
"""A row has vanished if its products with K and its value have fallen to eps to these powers since the start."""

GOLDEN_RATIO, OFFSET = 0.618033988749895, 0.7
"""Fractional part of the golden ratio, whose multiples are a low-discrepancy sequence, and the shift (any number that
is no multiple of it) between the sets of weights."""


@final
@dataclass(frozen=True)
class PolishedPoints:
    """Points after polishing, with their error estimates.

    Attributes:
        operator: K at the points.
        factor: state of the linear solver for it.
        distance: largest |K^-1 R|_j / |z_j| beyond rounding, (batch,), an estimate of the relative error of z. Infinite
            where the Newton step does not solve its system.
        flat: mask of elements where K has vanished on the way from the start, (batch,); their error is relative to the
            distance travelled.
    """

    operator: Operator
    factor: Any
    distance: torch.Tensor
    flat: torch.Tensor


def polish(
    operator: Operator, linear: AbstractLinearSolver, *, start: torch.Tensor, steps: int, tol: float
) -> PolishedPoints:
    """Take at most ``steps`` Newton steps, each only where it lowers the error estimate.

    Args:
        operator: K at the points.
        linear: solves the systems with K.
        start: initial values of the first unknowns in the search, (batch, k), k <= n.
        steps: largest number of Newton steps.
        tol: relative error of a solution; above it the effect of rounding is estimated too.
    """
    best, move = _estimate(operator, linear, start, tol)
    eps = torch.finfo(operator.z.dtype).eps
    for _ in range(steps):
        largest = float(best.distance.amax())  # NaN if any is NaN
        if largest <= CONVERGED_FACTOR * eps:
            break
        if largest <= LAST_STEP_FACTOR * eps:
            return replace(best, operator=best.operator.at(newton_update(best.operator.z, move)))
        trial, next_move = _estimate(operator.at(newton_update(best.operator.z, move)), linear, start, tol)
        good = trial.distance < best.distance  # false for NaN
        if not bool(good.any()):
            break
        if bool(good.all()):
            best, move = trial, next_move
            continue
        keep = good.unsqueeze(-1)
        best, move = _estimate(operator.at(torch.where(keep, trial.operator.z, best.operator.z)), linear, start, tol)
        # A step that was rejected is not tried again.
        move = torch.where(keep, move, 0.0)
    return best


def newton_update(z: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
    """Add a Newton step; components that are zero up to its rounding become zero."""
    updated = z + move
    return torch.where(updated.abs() <= ZERO_FACTOR * torch.finfo(z.dtype).eps * z.abs(), 0.0, updated)


def _estimate(
    operator: Operator, linear: AbstractLinearSolver, start: torch.Tensor, tol: float
) -> tuple[PolishedPoints, torch.Tensor]:
    """Return the points with their error estimate, and their Newton steps -K^-1 R."""
    factor = linear.init(operator, symmetric=operator.residual.symmetric)
    z, value, eps = operator.z, operator.value(), torch.finfo(operator.z.dtype).eps
    move = linear.solve(factor, -value, transposed=False).solution
    n = z.shape[-1] - operator.residual.multipliers
    if linear.direct and n < z.shape[-1]:
        # Inactive inequalities are coupled to their own multipliers only; a pseudo-inverse leaves rounding there.
        decoupled = (operator.dense()[:, n:, :n] == 0).all(-1)
        move[:, n:] = torch.where(decoupled, value[:, n:], move[:, n:])
    sign = quasirandom_signs(z)
    size = _reference_sizes(operator, linear, start)
    # Rows that the least-squares solution of the Newton system leaves open: K is singular, and R not in its range.
    linear_residual = (operator.product(move) + value).abs()
    threshold = ROUNDOFF_FACTOR * eps * operator.product(z * sign).abs()
    open_rows = (linear_residual > UNREDUCED * value.abs()) & (value.abs() > threshold)
    # Constraints are measured in the scale of y: huge multipliers, of inconsistent constraints, would mask the others.
    # If more constraints meet than there are variables, no step satisfies all of them to rounding.
    z_part = torch.zeros_like(z)
    z_part[:, :n] = size[:, :n] * sign[:, :n]
    allowed_violation = tol * operator.product(z_part).abs() if n < z.shape[-1] else z_part
    open_rows[:, n:] &= linear_residual[:, n:] > allowed_violation[:, n:]
    distance = _largest(torch.where(open_rows.any(-1, keepdim=True), torch.inf, _relative_size(move, size)))
    if bool((distance <= tol).all()):
        return PolishedPoints(operator, factor, distance, torch.zeros_like(distance, dtype=torch.bool)), move
    noise = rounding_error(operator)
    roundoff_step = linear.solve(factor, noise * sign, transposed=False).solution.abs()
    significant_step = (move.abs() - SIGNIFICANT_FACTOR * roundoff_step).clamp(min=0.0)
    ratio = _relative_size(significant_step, size)
    k = start.shape[-1]
    along = _relative_size(z[:, :k].abs() + move[:, :k].abs(), z[:, :k] - start)
    flat = _flat_components(operator, start, value) & (along < ratio[:, :k])
    ratio[:, :k] = torch.where(flat, along, ratio[:, :k])
    violated = value.abs() > allowed_violation + noise
    violated[:, :n] = False
    unresolved = ((open_rows & (value.abs() > noise)) | violated | ~torch.isfinite(roundoff_step)).any(-1, keepdim=True)
    refined = _largest(torch.where(unresolved, torch.inf, ratio))
    close = distance <= tol
    return PolishedPoints(operator, factor, torch.where(close, distance, refined), flat.any(-1) & ~close), move


def _reference_sizes(operator: Operator, linear: AbstractLinearSolver, start: torch.Tensor) -> torch.Tensor:
    """Sizes that errors of the unknowns are relative to, (batch, n).

    These are the magnitudes of z. A variable that constraints hold at zero is measured by its distance from the point
    where its own curvature would take it without them. An iterative linear solver has one tolerance for all components
    together, so the distance from the start counts too.
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
    force = matvec(pull, operator.z[:, n:]).abs()
    # Huge multipliers that cancel leave only rounding.
    force = force - ROUNDOFF_FACTOR * torch.finfo(size.dtype).eps * matvec(pull.abs(), size[:, n:])
    force = force.clamp(min=0.0)
    curvature = matrix[:, :n, :n].diagonal(dim1=-2, dim2=-1).abs()
    held = force / torch.where(curvature > 0, curvature, torch.inf)
    size[:, :n] = torch.maximum(size[:, :n], held)
    return size


def rounding_error(operator: Operator) -> torch.Tensor:
    """Estimate the effect of rounding of z and theta on R, (batch, n), by products with vectors of irregular signs."""
    signed = tuple(t * quasirandom_signs(t.reshape(-1)).reshape(t.shape) for t in operator.theta)
    of_z, of_theta = operator.product(operator.z * quasirandom_signs(operator.z)), operator.parameter_product(signed)
    return ROUNDOFF_FACTOR * torch.finfo(operator.z.dtype).eps * (of_z.abs() + of_theta.abs())


def _flat_components(operator: Operator, start: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Mask of rows of K that have vanished, together with R, between the start and the point, (batch, k).

    Newton's method converges linearly to such a point, as to 0 for y^4; if the point is 0, the distance from the start
    is the only length to measure the error by.
    """
    eps, k = torch.finfo(value.dtype).eps, start.shape[-1]
    z = operator.z
    first = operator.at(torch.cat([start, z[:, k:]], -1))
    way = torch.zeros_like(z)
    way[:, :k] = (z[:, :k] - start) * quasirandom_signs(start)
    current, initial = operator.product(way).abs(), first.product(way).abs()
    flat = (current <= eps**FLAT_JACOBIAN_EXPONENT * initial) & (
        value.abs() <= eps**FLAT_VALUE_EXPONENT * first.value().abs()
    )
    return flat[:, :k]


def _relative_size(step: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """|step| / |z|; 0 where the step is 0."""
    size = step.abs()
    return torch.where(size == 0, 0.0, size / z.abs())


def _largest(ratio: torch.Tensor) -> torch.Tensor:
    """Largest entry along the last axis; NaN if any is NaN."""
    return ratio.amax(-1) if ratio.shape[-1] else ratio.sum(-1)


def quasirandom_weights(like: torch.Tensor, number: int = 0) -> torch.Tensor:
    """Weights of magnitude 1/2 to 3/2 and irregular signs along the last axis; each ``number`` gives another set."""
    index = torch.arange(like.shape[-1], device=like.device).double()
    sizes = 0.5 + torch.frac(GOLDEN_RATIO * (index + 1.0 + OFFSET * number))
    signs = torch.where(torch.cos(1.0 + number + (3.0 + number) * index**2) >= 0, 1.0, -1.0)
    return (signs * sizes).to(like).expand_as(like)


def quasirandom_signs(like: torch.Tensor) -> torch.Tensor:
    """An irregular pattern of +1 and -1 along the last axis, so that weighted sums do not cancel systematically."""
    index = torch.arange(like.shape[-1], device=like.device)
    return torch.where(torch.cos(2.0 + index.double() ** 2) >= 0, 1.0, -1.0).to(like).expand_as(like)
