"""Nonlinear programs of one element given by torch functions, their derivatives and their KKT residual.

    minimise over y    f(y, theta)
    subject to         h(y, theta) = 0        (p,)
                       g(y, theta) <= 0       (m,)

    L = f + lambda'h + mu'g,    mu >= 0

The sign of the multipliers is that of CVXPY; deep declarative networks (Gould et al. 2022) write f - lambda'h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.batch import Dims, Tensors
from convexlayer.nodes.autodiff.derivatives import MAX_LOOPED_ROWS, apply_batched, gradient, jacobian, matvec
from convexlayer.nodes.implicit.operator import AbstractResidual

__all__ = [
    "Iterate",
    "KKTResidual",
    "NonlinearProgram",
    "Point",
    "ProgramDerivatives",
    "no_constraints",
    "pseudo_inverse",
]

Function = Callable[..., torch.Tensor]
"""(y, *theta) of one element -> a scalar, or a vector for constraints."""

ACTIVE_EXPONENT = 0.5
"""An inequality within eps to this power of zero, relative to its scale, counts as active; 1.5e-8 in float64."""


@final
@dataclass(frozen=True)
class Point:
    """Primal and dual variables of a batch: y (batch, n), lam (batch, p), mu (batch, m)."""

    y: torch.Tensor
    lam: torch.Tensor
    mu: torch.Tensor

    @property
    def z(self) -> torch.Tensor:
        """(y, lam, mu) concatenated, (batch, n + p + m)."""
        return torch.cat([self.y, self.lam, self.mu], dim=-1)


@final
@dataclass(frozen=True)
class ProgramDerivatives:
    """Values and derivatives of a program at one point, each with a leading batch axis.

    Attributes:
        f: value of the objective.
        slope: f_Y, (n,).
        hessian: L_YY, (n, n).
        h: equalities, (p,).
        A: h_Y, (p, n).
        g: inequalities, (m,).
        G: g_Y, (m, n).
    """

    f: torch.Tensor
    slope: torch.Tensor
    hessian: torch.Tensor
    h: torch.Tensor
    A: torch.Tensor
    g: torch.Tensor
    G: torch.Tensor

    def optimality(self, lam: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(L_Y, h) for the multipliers of L_YY, and its Jacobian [L_YY h_Y'; h_Y 0]."""
        if not lam.shape[-1]:
            return self.slope, self.hessian
        corner = self.A.new_zeros(len(self.A), lam.shape[-1], lam.shape[-1])
        upper, lower = torch.cat([self.hessian, self.A.mT], -1), torch.cat([self.A, corner], -1)
        return torch.cat([self.slope + matvec(self.A.mT, lam), self.h], -1), torch.cat([upper, lower], -2)


@final
@dataclass(frozen=True)
class Iterate:
    """Last iterate of a forward solver.

    Attributes:
        point: the point.
        iterations: iterations taken, (batch,).
        known: (L_Y, h) at the point, (batch, n + p), and its Jacobian [L_YY h_Y'; h_Y 0], for programs without
            inequalities whose solver has computed them; else None.
    """

    point: Point
    iterations: torch.Tensor
    known: tuple[torch.Tensor, torch.Tensor] | None = None


@final
@dataclass(frozen=True)
class RecordedValues:
    """Values of the functions at y (batch, n), recorded by autograd.

    Attributes:
        y: the points.
        f: objective, (batch,).
        h: equalities, (batch, p).
        g: inequalities, (batch, m).
    """

    y: torch.Tensor
    f: torch.Tensor
    h: torch.Tensor
    g: torch.Tensor

    def derivatives(self, lam: torch.Tensor, mu: torch.Tensor) -> ProgramDerivatives:
        """Compute all first derivatives, and L_YY for these multipliers."""
        n, p, m = self.y.shape[-1], lam.shape[-1], mu.shape[-1]
        lam, mu = lam.detach(), mu.detach()
        with torch.enable_grad():
            lagrangian = self.f.sum()
            rows: list[torch.Tensor] = []
            if p:
                lagrangian, rows = lagrangian + (lam * self.h).sum(), [*rows, self.h]
            if m:
                lagrangian, rows = lagrangian + (mu * self.g).sum(), [*rows, self.g]
            slope = gradient(lagrangian, self.y)
            # One Jacobian of (L_Y, h, g) gives L_YY, A and G; L_Y then gives f_Y.
            whole = jacobian(torch.cat([slope, *rows], -1) if rows else slope, self.y)
        hessian, A, G = whole[:, :n], whole[:, n : n + p], whole[:, n + p :]
        slope = slope.detach()
        if p + m:
            slope = slope - matvec(A.mT, lam) - matvec(G.mT, mu)
        return ProgramDerivatives(self.f.detach(), slope, hessian, self.h.detach(), A, self.g.detach(), G)


def no_constraints(y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
    """An empty vector of constraints."""
    return y[:0]


@final
@dataclass(frozen=True)
class NonlinearProgram:
    """A program by its functions, which take y as a vector (n,).

    Attributes:
        f: objective.
        h: equality constraints; by default there are none.
        g: inequality constraints; by default there are none.
    """

    f: Function
    h: Function = no_constraints
    g: Function = no_constraints

    @property
    def functions(self) -> dict[str, Function]:
        """The functions that are given, by name."""
        named = {"objective": self.f, "equalities": self.h, "inequalities": self.g}
        return {name: function for name, function in named.items() if function is not no_constraints}

    def evaluate(self, y: torch.Tensor, *theta: torch.Tensor) -> Tensors:
        """Evaluate and validate f, h and g of one element.

        Raises:
            ProblemError: the objective is not a scalar, constraints are not a vector, or a dtype differs.
        """
        found = {"equalities": y[:0], "inequalities": y[:0]}
        for name, function in self.functions.items():
            value, ndim = function(y, *theta), int(name != "objective")
            if not isinstance(value, torch.Tensor) or value.ndim != ndim:
                received = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                what = "a scalar, shape ()" if ndim == 0 else "a vector, shape (k,)"
                hint = "sum or squeeze it" if ndim == 0 else "stack the constraints"
                raise ProblemError(f"expected the {name} of one element as {what}, got {received}: {hint}")
            if value.dtype != y.dtype:
                raise ProblemError(f"expected the {name} in the dtype of the parameters, {y.dtype}, got {value.dtype}")
            found[name] = value
        return found["objective"], found["equalities"], found["inequalities"]

    def lagrangian(self, y: torch.Tensor, lam: torch.Tensor, mu: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """L = f + lambda'h + mu'g of one element."""
        value = self.f(y, *theta)
        if lam.numel():
            value = value + lam @ self.h(y, *theta)
        return value + mu @ self.g(y, *theta) if mu.numel() else value

    def barrier_problem(self, t: float) -> NonlinearProgram:
        """The log-barrier problem f - (1 / t) sum log(-g): eq. 61 of Gould et al. 2016, divided by t."""
        return NonlinearProgram(_BarrierObjective(self.f, self.g, t), self.h)

    def values(self, dims: Dims, y: torch.Tensor, theta: Tensors) -> Tensors:
        """f (batch,), h (batch, p) and g (batch, m)."""
        empty = y.new_zeros(len(y), 0)
        functions = self.functions

        def of(y: torch.Tensor, *theta: torch.Tensor) -> Tensors:
            return tuple(function(y, *theta) for function in functions.values())

        found = dict(zip(functions, apply_batched(of, (0, *dims), y, *theta), strict=True))
        return found["objective"], found.get("equalities", empty), found.get("inequalities", empty)

    def record(self, dims: Dims, y: torch.Tensor, theta: Tensors) -> RecordedValues:
        """Evaluate at y (batch, n), recorded by autograd."""
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            return RecordedValues(leaf, *self.values(dims, leaf, theta))

    def derivatives(self, dims: Dims, point: Point, theta: Tensors) -> ProgramDerivatives:
        """Compute the values and derivatives that a Newton step needs, batched."""
        return self.record(dims, point.y, theta).derivatives(point.lam, point.mu)

    def least_squares_multipliers(self, recorded: RecordedValues, p: int) -> tuple[torch.Tensor, ProgramDerivatives]:
        """Least-squares multipliers (batch, p) of the equalities, inequalities ignored, and L_YY for them."""
        m = recorded.g.shape[-1]
        no_multipliers = recorded.y.new_zeros(len(recorded.y), m)
        if not p:
            lam = no_multipliers[:, :0]
            return lam, recorded.derivatives(lam, no_multipliers)
        if p > MAX_LOOPED_ROWS:
            found = recorded.derivatives(recorded.y.new_zeros(len(recorded.y), p), no_multipliers)
            lam = _least_squares_multipliers(found.A, found.slope)
            return lam, recorded.derivatives(lam, no_multipliers)
        # With few equalities the gradients of f and h are kept differentiable, so that one recording serves L_YY too.
        with torch.enable_grad():
            slope = gradient(recorded.f.sum(), recorded.y)
            A = torch.stack([gradient(each, recorded.y) for each in recorded.h.sum(0).unbind()], 1)
            lam = _least_squares_multipliers(A.detach(), slope.detach())
            hessian = jacobian(slope + matvec(A.mT, lam), recorded.y)
        G = jacobian(recorded.g, recorded.y) if m else hessian[:, :0]
        found = ProgramDerivatives(
            recorded.f.detach(), slope.detach(), hessian, recorded.h.detach(), A.detach(), recorded.g.detach(), G
        )
        return lam, found

    def multipliers(self, dims: Dims, y: torch.Tensor, theta: Tensors, *, p: int, m: int) -> Iterate:
        """Estimate the multipliers at y by least squares.

        An inequality is active if g >= -eps^ACTIVE_EXPONENT, relative to the change of g over the variables' scales.
        Multipliers of inactive inequalities are zero, those of active ones nonnegative.
        """
        count = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        if not p + m:
            empty = y.new_zeros(len(y), 0)
            return Iterate(Point(y, empty, empty), count)
        if not m:
            lam, found = self.least_squares_multipliers(self.record(dims, y, theta), p)
            return Iterate(Point(y, lam, y.new_zeros(len(y), 0)), count, found.optimality(lam))
        found = self.derivatives(dims, Point(y, y.new_zeros(len(y), p), y.new_zeros(len(y), m)), theta)
        change = matvec(found.G.abs(), variable_scales(y, found))
        active = (found.g >= -(torch.finfo(y.dtype).eps ** ACTIVE_EXPONENT) * change).to(y.dtype)
        multipliers = _least_squares_multipliers(
            torch.cat([found.A, active.unsqueeze(-1) * found.G], dim=-2), found.slope
        )
        return Iterate(Point(y, multipliers[:, :p], active * multipliers[:, p:].clamp(min=0.0)), count)


def _least_squares_multipliers(rows: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Minimum-norm multipliers lam that minimise |rows'lam + slope|.

    Rows are normalised first, so that which of them are dependent does not depend on their units.
    """
    size = torch.linalg.vector_norm(rows, dim=-1)
    size = torch.where(size > 0, size, 1.0)
    unit = rows / size.unsqueeze(-1)
    if rows.shape[-2] == 1:
        return -(unit.squeeze(-2) * slope).sum(-1, keepdim=True) / size
    return -matvec(pseudo_inverse(unit.mT), slope) / size


def variable_scales(y: torch.Tensor, found: ProgramDerivatives) -> torch.Tensor:
    """Scale of each variable, (batch, n): the larger of its magnitude and the Newton step in it alone."""
    curvature = found.hessian.diagonal(dim1=-2, dim2=-1).abs()
    step = torch.where(curvature > 0, found.slope.abs() / torch.where(curvature > 0, curvature, 1.0), 0.0)
    scale = torch.maximum(y.abs(), step)
    largest = scale.amax(-1, keepdim=True)
    return torch.where(scale > 0, scale, torch.where(largest > 0, largest, 1.0))


@final
class KKTResidual(AbstractResidual):
    """KKT residual R (n + p + m,) in z = (y, lam, mu), whose Jacobian is symmetric.

        L_Y at multipliers a mu,    h,    a g - (1 - a) mu,    a = 1 where mu > 0 or g > 0, else 0

    a selects the active inequalities: at a solution with strict complementarity, exactly those with mu > 0, whatever
    the units. Where g = mu = 0 (weak activity) the solution map has a kink.

    Args:
        program: the lower problem.
        p: number of equalities.
        m: number of inequalities.
    """

    symmetric: ClassVar[bool] = True

    def __init__(self, program: NonlinearProgram, p: int, m: int) -> None:
        self.program, self.p, self.m = program, p, m
        self.multipliers = p + m

    def split(self, z: torch.Tensor) -> Tensors:
        """Split z into y, lam and mu."""
        return torch.split(z, [z.shape[-1] - self.p - self.m, self.p, self.m], dim=-1)

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """R of one element."""
        y, lam, mu = self.split(z)
        g = self.program.g(y, *theta)
        active = _active(mu, g)
        slope = torch.func.grad(self.program.lagrangian)(y, lam, active * mu, *theta)
        return torch.cat([slope, self.program.h(y, *theta), active * g - (1 - active) * mu])

    def batched(self, dims: Dims, z: torch.Tensor, theta: Tensors) -> torch.Tensor:
        """R (batch, n + p + m)."""
        y, lam, mu = self.split(z)
        f, h, g = self.program.values(dims, y, theta)
        if not self.multipliers:
            return gradient(f.sum(), y)
        active = _active(mu, g)
        slope = gradient(f.sum() + (lam * h).sum() + (active * mu * g).sum(), y)
        return torch.cat([slope, h, active * g - (1 - active) * mu], -1)


def _active(mu: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return ((mu > 0) | (g > 0)).to(mu.dtype).detach()


@final
class _BarrierObjective:
    """f - (1 / t) sum log(-g)."""

    def __init__(self, f: Function, g: Function, t: float) -> None:
        self._f, self._g, self._t = f, g, t

    def __call__(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return self._f(y, *theta) - torch.log(-self._g(y, *theta)).sum() / self._t


def numerical_rank(rows: torch.Tensor) -> int:
    """Numerical rank of a matrix whose rows may have any units."""
    size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return int(torch.linalg.matrix_rank(rows / torch.where(size > 0, size, 1.0)))


def pseudo_inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Pseudo-inverse of each matrix of a batch; entries that are not finite count as zero."""
    return torch.linalg.pinv(matrix.nan_to_num(0.0, 0.0, 0.0))
