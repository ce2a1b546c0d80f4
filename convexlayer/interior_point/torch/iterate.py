"""Iterates of the homogeneous embedding, and the predictor-corrector step from one to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlayer.interior_point.torch.cones import ConeRows
from convexlayer.interior_point.torch.kkt import KktData, KktFactor
from convexlayer.linalg.equilibration.tensors import DenseProgram

__all__ = ["Iterate", "Residual", "residual", "start", "step"]

START_REGULARISATION = 1e-4
"""Regularisation of the KKT matrix for the starting point: bounds the components that the data leave undetermined to
some thousands."""

STEP_FRACTION = 0.99
"""Fraction of the step to the boundary that is taken (Clarabel's max_step_fraction)."""


@final
@dataclass(frozen=True, eq=False)
class Iterate:
    """Points (x, y, s, tau, kappa) of the homogeneous embedding, or directions.

    Attributes:
        x: (B, n, 1).
        y: (B, p + rows, 1), the p rows of the zero cone first.
        s: (B, rows, 1), without the rows of the zero cone.
        tau: (B, 1, 1), positive.
        kappa: (B, 1, 1), positive.
    """

    x: Tensor
    y: Tensor
    s: Tensor
    tau: Tensor
    kappa: Tensor

    def select(self, index: Tensor) -> Iterate:
        """The elements at these positions."""
        return Iterate(self.x[index], self.y[index], self.s[index], self.tau[index], self.kappa[index])

    def advance(self, direction: Iterate, alpha: Tensor, moving: Tensor) -> Iterate:
        """The iterate plus alpha times the direction, for elements where ``moving`` (B, 1, 1) holds."""
        return Iterate(
            torch.where(moving, self.x + alpha * direction.x, self.x),
            torch.where(moving, self.y + alpha * direction.y, self.y),
            torch.where(moving, self.s + alpha * direction.s, self.s),
            torch.where(moving, self.tau + alpha * direction.tau, self.tau),
            torch.where(moving, self.kappa + alpha * direction.kappa, self.kappa),
        )


@final
@dataclass(frozen=True, eq=False)
class Residual:
    """Residuals of the homogeneous embedding at an iterate, and their terms.

    Attributes:
        Px: (B, n, 1).
        Aty: A'y, (B, n, 1).
        Ax: (B, p + rows, 1).
        dual: -(Px + A'y + tau q).
        primal: Ax + s - tau b.
        xtPx, qx, by: the inner products, (B, 1, 1).
        gap: q'x + b'y + kappa + x'Px / tau.
        mu: (s'y + tau kappa) / (degree + 1).
    """

    Px: Tensor
    Aty: Tensor
    Ax: Tensor
    dual: Tensor
    primal: Tensor
    xtPx: Tensor  # noqa: N815 - x'Px
    qx: Tensor
    by: Tensor
    gap: Tensor
    mu: Tensor


def residual(program: DenseProgram, cone: ConeRows, at: Iterate) -> Residual:
    """Compute the residuals at an iterate."""
    p = program.A.shape[1] - cone.rows
    Px, Aty, Ax = program.P @ at.x, program.A.mT @ at.y, program.A @ at.x
    primal = Ax - at.tau * program.b
    primal[:, p:] += at.s
    xtPx, qx, by = _dot(at.x, Px), _dot(program.q, at.x), _dot(program.b, at.y)
    return Residual(
        Px=Px,
        Aty=Aty,
        Ax=Ax,
        dual=-(Px + Aty + at.tau * program.q),
        primal=primal,
        xtPx=xtPx,
        qx=qx,
        by=by,
        gap=qx + by + at.kappa + xtPx / at.tau,
        mu=(_dot(at.s, at.y[:, p:]) + at.tau * at.kappa) / (cone.degree + 1),
    )


def start(program: DenseProgram, cone: ConeRows, *, quadratic: bool) -> Iterate:
    """Starting point: least-squares estimates of s and y, shifted along the identity to smallest eigenvalues >= 1.

    With a quadratic term a single system gives both, s = -y. Without it, s and y are the feasible ones of least norm,
    from two right-hand sides (Clarabel).
    """
    data = KktData(program.P, program.A, program.A.shape[1] - cone.rows, START_REGULARISATION)
    unit = cone.unit(program.q).expand(program.q.shape[0], -1, -1)
    factor = KktFactor(data, cone.scaling(unit, unit))
    nothing = torch.zeros_like(program.q), torch.zeros_like(program.b)
    if quadratic:
        x, y = factor.solve(-program.q, program.b, refinements=0)
        s = -y[:, data.p :]
    else:
        both = torch.cat((nothing[0], -program.q), 2), torch.cat((program.b, nothing[1]), 2)
        x, y = factor.solve(*both, refinements=0)
        x, s, y = x[:, :, :1], -y[:, data.p :, :1], y[:, :, 1:]
    inside = [v + (1.0 - cone.min_eigenvalue(v)).clamp(min=0.0) * unit for v in (s, y[:, data.p :])]
    one = torch.ones_like(program.q[:, :1])
    return Iterate(x, torch.cat((y[:, : data.p], inside[1]), 1), inside[0], one, one)


def step(
    data: KktData, program: DenseProgram, cone: ConeRows, at: Iterate, residuals: Residual
) -> tuple[Iterate, Tensor]:
    """The predictor-corrector direction at an iterate, and the step length along it, (B, 1, 1), at most 1."""
    p = data.p
    scaling = cone.scaling(at.s, at.y[:, p:])
    lam = scaling.lam
    factor = KktFactor(data, scaling)

    def shifted(constant: Tensor, rest: Tensor) -> Tensor:
        """Lower block of the right-hand side: ``constant`` on the cone rows, minus ``rest``."""
        return torch.cat((-rest[:, :p], constant - rest[:, p:]), 1)

    # One solve for two right-hand sides: the constant one (-q, b) and the affine direction.
    both = torch.cat((-program.q, residuals.dual), 2), torch.cat((program.b, shifted(at.s, residuals.primal)), 2)
    x, y = factor.solve(*both)
    x_tau, y_tau = x[:, :, :1], y[:, :, :1]
    ray = at.x / at.tau
    difference = ray - x_tau
    slope = program.q + 2.0 * (data.P @ ray)
    denominator = (
        at.kappa / at.tau
        - _dot(program.q, x_tau)
        - _dot(program.b, y_tau)
        + _dot(difference, data.P @ difference)
        - _dot(x_tau, data.P @ x_tau)
    )

    def complete(x: Tensor, y: Tensor, gap: Tensor, comp: Tensor, target: Tensor) -> tuple[Iterate, Tensor, Tensor]:
        """The direction from a solution (x, y) of the KKT system, and its ds and dy in the scaled space.

        ``target`` is the scaled complementarity residual: scaled ds + scaled dy = -target.
        """
        tau = (gap - comp / at.tau + _dot(slope, x) + _dot(program.b, y)) / denominator
        x, y = x + tau * x_tau, y + tau * y_tau
        scaled_y = scaling.multiply(y[:, p:])
        scaled_s = -(scaled_y + target)
        kappa = -(comp + at.kappa * tau) / at.tau
        return Iterate(x, y, scaling.multiply(scaled_s), tau, kappa), scaled_s, scaled_y

    def inverse_length(direction: Iterate, scaled_s: Tensor, scaled_y: Tensor) -> Tensor:
        """1 / alpha for the longest step that stays in the cones."""
        inverse = torch.maximum(cone.inverse_step(lam, scaled_s), cone.inverse_step(lam, scaled_y))
        return torch.maximum(inverse, torch.maximum(-direction.tau / at.tau, -direction.kappa / at.kappa))

    affine, scaled_s, scaled_y = complete(x[:, :, 1:], y[:, :, 1:], residuals.gap, at.tau * at.kappa, lam)
    alpha = 1.0 / inverse_length(affine, scaled_s, scaled_y).clamp(min=1.0)
    sigma = (1.0 - alpha) ** 3

    centre = sigma * residuals.mu
    target = cone.product(lam, lam) + cone.product(scaled_s, scaled_y) - centre * cone.unit(lam)
    target = cone.jordan_divide(lam, target)
    rest = 1.0 - sigma
    x, y = factor.solve(rest * residuals.dual, shifted(scaling.multiply(target), rest * residuals.primal))
    comp = at.tau * at.kappa + affine.tau * affine.kappa - centre
    direction, scaled_s, scaled_y = complete(x, y, rest * residuals.gap, comp, target)
    alpha = 1.0 / (inverse_length(direction, scaled_s, scaled_y) / STEP_FRACTION).clamp(min=1.0)
    return direction, alpha


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """u'v, (B, 1, 1)."""
    return (u * v).sum(1, keepdim=True)
