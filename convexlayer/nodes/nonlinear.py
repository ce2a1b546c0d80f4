"""The lower problem of a node, one element at a time, and its optimality conditions.

    minimise over y    f(y, theta)
    subject to         h(y, theta) = 0        (p,)
                       g(y, theta) <= 0       (m,)

    L = f + lambda'h + mu'g,    mu >= 0

This is CVXPY's sign of the multipliers; deep declarative networks write f - lambda'h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.batch import Dims, Tensors
from convexlayer.nodes.calculus import batched, gradient, jacobian
from convexlayer.nodes.linear import AbstractResidual

__all__ = ["NonlinearProgram", "Optimality", "Point", "Quantities", "no_constraints"]

Function = Callable[..., torch.Tensor]
"""(y, *theta) of one element -> a scalar, or a vector for constraints."""


@final
@dataclass(frozen=True)
class Point:
    """Primal and dual variables of a batch: y (batch, n), lam (batch, p), mu (batch, m)."""

    y: torch.Tensor
    lam: torch.Tensor
    mu: torch.Tensor

    @property
    def z(self) -> torch.Tensor:
        """(y, lam, mu) as one vector an element."""
        return torch.cat([self.y, self.lam, self.mu], dim=-1)


@final
@dataclass(frozen=True)
class Quantities:
    """First and second derivatives at one point; batched by vmap.

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


@final
@dataclass(frozen=True)
class Recorded:
    """Values of the functions at y (batch, n), of which autograd can take derivatives.

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

    def quantities(self, lam: torch.Tensor, mu: torch.Tensor) -> Quantities:
        """First derivatives, and L_YY for these multipliers."""
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
            slope = slope - _back(A, lam) - _back(G, mu)
        return Quantities(self.f.detach(), slope, hessian, self.h.detach(), A, self.g.detach(), G)


def no_constraints(y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
    """An empty vector of constraints."""
    return y[:0]


@final
@dataclass(frozen=True)
class NonlinearProgram:
    """A lower problem by its functions, which take y as a vector (n,).

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
        """The functions that there are, by what they are called."""
        named = {"objective": self.f, "equalities": self.h, "inequalities": self.g}
        return {name: function for name, function in named.items() if function is not no_constraints}

    def sizes(self, dims: Dims, y: torch.Tensor, theta: Tensors) -> tuple[int, int]:
        """p and m, after a look at what the functions return for one element.

        Args:
            dims: batch axes of theta.
            y: (n,).
            theta: the parameters.

        Raises:
            ProblemError: an objective that is not a scalar, or constraints that are not vectors.
        """
        one = tuple(t[:1] if dim == 0 else t for t, dim in zip(theta, dims, strict=True))
        sizes = {"equalities": 0, "inequalities": 0}
        for name, function in self.functions.items():

            def checked(
                y: torch.Tensor, *theta: torch.Tensor, name: str = name, function: Function = function
            ) -> torch.Tensor:
                value = function(y, *theta)
                ndim = 0 if name == "objective" else 1
                if not isinstance(value, torch.Tensor) or value.ndim != ndim:
                    came = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                    what = "a scalar, shape ()" if ndim == 0 else "a vector, shape (k,)"
                    hint = "sum or squeeze it" if ndim == 0 else "stack the constraints"
                    raise ProblemError(f"expected the {name} of one element as {what}, got {came}: {hint}")
                if value.dtype != y.dtype:
                    raise ProblemError(
                        f"expected the {name} in the dtype of the parameters, {y.dtype}, got {value.dtype}"
                    )
                return value

            # By vmap even for one element: it tells of random numbers and branches that a larger batch would not bear.
            value = torch.func.vmap(checked, in_dims=(0, *dims))(y.unsqueeze(0), *one)
            sizes[name] = value.shape[-1] if value.ndim > 1 else 0
        return sizes["equalities"], sizes["inequalities"]

    def lagrangian(self, y: torch.Tensor, lam: torch.Tensor, mu: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """L = f + lambda'h + mu'g of one element."""
        value = self.f(y, *theta)
        if lam.numel():
            value = value + lam @ self.h(y, *theta)
        return value + mu @ self.g(y, *theta) if mu.numel() else value

    def smoothed(self, t: float) -> NonlinearProgram:
        """The log-barrier problem f - (1 / t) sum log(-g), eq. 61 divided by t."""
        return NonlinearProgram(_Barrier(self.f, self.g, t), self.h)

    def values(self, dims: Dims, y: torch.Tensor, theta: Tensors) -> Tensors:
        """f (batch,), h (batch, p) and g (batch, m)."""
        empty = y.new_zeros(len(y), 0)
        functions = self.functions

        def of(y: torch.Tensor, *theta: torch.Tensor) -> Tensors:
            return tuple(function(y, *theta) for function in functions.values())

        found = dict(zip(functions, batched(of, (0, *dims), y, *theta), strict=True))
        return found["objective"], found.get("equalities", empty), found.get("inequalities", empty)

    def recorded(self, dims: Dims, y: torch.Tensor, theta: Tensors) -> Recorded:
        """The values at y (batch, n), recorded by autograd."""
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            return Recorded(leaf, *self.values(dims, leaf, theta))

    def quantities(self, dims: Dims, point: Point, theta: Tensors) -> Quantities:
        """Everything that a step of Newton's method needs, batched."""
        return self.recorded(dims, point.y, theta).quantities(point.lam, point.mu)

    def multipliers(self, dims: Dims, y: torch.Tensor, theta: Tensors, *, p: int, m: int) -> Point:
        """The least-squares multipliers at y: those of inactive inequalities are zero, those of active ones not below.

        A row counts as active where g is above -sqrt(eps) times what g changes over the lengths of the variables.
        """
        empty = y.new_zeros(len(y), 0)
        if p + m == 0:
            return Point(y, empty, empty)
        program = self if m else NonlinearProgram(self.f, self.h)
        found = program.quantities(dims, Point(y, y.new_zeros(len(y), p), y.new_zeros(len(y), m)), theta)
        far = (found.G.abs() @ lengths(y, found).unsqueeze(-1)).squeeze(-1)
        active = (found.g >= -(torch.finfo(y.dtype).eps ** 0.5) * far).to(y.dtype)
        rows = torch.cat([found.A, active.unsqueeze(-1) * found.G], dim=-2)
        # Rows of one length: which of them are dependent must not depend on their units.
        size = torch.linalg.vector_norm(rows, dim=-1)
        size = torch.where(size > 0, size, 1.0)
        rows = rows / size.unsqueeze(-1)
        both = -(torch.linalg.pinv(rows.mT) @ found.slope.unsqueeze(-1)).squeeze(-1) / size
        return Point(y, both[:, :p], active * both[:, p:].clamp(min=0.0))


def lengths(y: torch.Tensor, found: Quantities) -> torch.Tensor:
    """How far each variable is from what matters, (batch, n): its value, or the Newton step of it alone."""
    curvature = found.hessian.diagonal(dim1=-2, dim2=-1).abs()
    step = torch.where(curvature > 0, found.slope.abs() / torch.where(curvature > 0, curvature, 1.0), 0.0)
    own = torch.maximum(y.abs(), step)
    most = own.amax(-1, keepdim=True)
    return torch.where(own > 0, own, torch.where(most > 0, most, 1.0))


def _back(matrix: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (matrix.mT @ weights.unsqueeze(-1)).squeeze(-1)


@final
class Optimality(AbstractResidual):
    """R (n + p + m,) of the optimality conditions in z = (y, lam, mu), whose Jacobian is symmetric.

        L_Y with a mu in the place of mu,    h,    a g - (1 - a) mu,    a = 1 where mu > 0 or g > 0, else 0

    Rows with a = 1 are active. A point with mu = 0 at exactly the inactive inequalities says which they are, in any
    units; where g = mu = 0 (weak activity) the solution map has a kink.

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
        """y, lam and mu."""
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
class _Barrier:
    """f - (1 / t) sum log(-g)."""

    def __init__(self, f: Function, g: Function, t: float) -> None:
        self._f, self._g, self._t = f, g, t

    def __call__(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return self._f(y, *theta) - torch.log(-self._g(y, *theta)).sum() / self._t
