"""The lower problem of a node, one element at a time, and its optimality conditions.

    minimise over y    f(y, theta)
    subject to         h(y, theta) = 0        (p,)
                       g(y, theta) <= 0       (m,)

    L = f + lambda'h + mu'g,    mu >= 0

This is CVXPY's sign of the multipliers; deep declarative networks write f - lambda'h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.batch import Dims, Tensors

__all__ = ["NonlinearProgram", "Point", "Quantities"]

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
class NonlinearProgram:
    """A lower problem by its functions, which take y as a vector (n,).

    Attributes:
        f: objective.
        h: equality constraints; by default there are none.
        g: inequality constraints; by default there are none.
    """

    f: Function
    h: Function = field(default=lambda y, *theta: y[:0])
    g: Function = field(default=lambda y, *theta: y[:0])

    def sizes(self, y: torch.Tensor, *theta: torch.Tensor) -> tuple[int, int]:
        """p and m, after a look at what the functions return for one element.

        Raises:
            ProblemError: an objective that is not a scalar, constraints that are not vectors, or functions that use
                tensors with requires_grad that are no parameters, whose gradients would be lost.
        """
        sizes = []
        for name, function, ndim in (("objective", self.f, 0), ("equalities", self.h, 1), ("inequalities", self.g, 1)):
            with torch.enable_grad():
                value = function(y.detach(), *(t.detach() for t in theta))
            if not isinstance(value, torch.Tensor) or value.ndim != ndim:
                came = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                what = "a scalar, shape ()" if ndim == 0 else "a vector, shape (k,)"
                hint = "sum or squeeze it" if ndim == 0 else "stack the constraints"
                raise ProblemError(f"expected the {name} of one element as {what}, got {came}: {hint}")
            if value.requires_grad:
                raise ProblemError(
                    f"{name}: a tensor with requires_grad is used that is no parameter of the node: pass it as a "
                    "parameter, or detach it"
                )
            if value.dtype != y.dtype:
                raise ProblemError(f"expected the {name} in the dtype of the parameters, {y.dtype}, got {value.dtype}")
            sizes.append(value.numel())
        return sizes[1], sizes[2]

    def lagrangian(self, y: torch.Tensor, lam: torch.Tensor, mu: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """L = f + lambda'h + mu'g of one element."""
        return self.f(y, *theta) + lam @ self.h(y, *theta) + mu @ self.g(y, *theta)

    def optimality(self, p: int, m: int) -> Function:
        """The residual (z, *theta) -> R (n + p + m,) of one element, whose Jacobian is symmetric.

            L_Y with a mu in the place of mu,    h,    a g - (1 - a) mu,    a = 1 where g + mu > 0, else 0

        Rows with a = 1 are active; g + mu = 0 is weak activity, where the solution map has a kink.
        """

        def residual(z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
            y, lam, mu = torch.split(z, [z.shape[-1] - p - m, p, m], dim=-1)
            if m == 0:
                slope = torch.func.grad(self.lagrangian)(y, lam, mu, *theta)
                return torch.cat([slope, self.h(y, *theta)]) if p else slope
            g = self.g(y, *theta)
            active = (g + mu > 0).to(y.dtype)
            slope = torch.func.grad(self.lagrangian)(y, lam, active * mu, *theta)
            return torch.cat([slope, self.h(y, *theta), active * g - (1 - active) * mu])

        return residual

    def smoothed(self, t: float) -> NonlinearProgram:
        """The log-barrier problem f - (1 / t) sum log(-g), eq. 61 divided by t."""

        def objective(y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
            return self.f(y, *theta) - torch.log(-self.g(y, *theta)).sum() / t

        return NonlinearProgram(objective, self.h)

    def values(self, dims: Dims, y: torch.Tensor, theta: Tensors) -> Tensors:
        """f (batch,), h (batch, p) and g (batch, m)."""

        def of(y: torch.Tensor, *theta: torch.Tensor) -> Tensors:
            return self.f(y, *theta), self.h(y, *theta), self.g(y, *theta)

        found: Tensors = torch.func.vmap(of, in_dims=(0, *dims))(y, *theta)
        return found

    def quantities(self, dims: Dims, point: Point, theta: Tensors) -> Quantities:
        """Everything that a step of Newton's method needs, batched."""
        n, p = point.y.shape[-1], point.lam.shape[-1]

        def of(y: torch.Tensor, lam: torch.Tensor, mu: torch.Tensor, *theta: torch.Tensor) -> Tensors:
            def rows(y: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
                def lagrangian(y: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
                    f, h, g = self.f(y, *theta), self.h(y, *theta), self.g(y, *theta)
                    return f + lam @ h + mu @ g, (f, h, g)

                slope, (f, h, g) = torch.func.grad(lagrangian, has_aux=True)(y)
                return torch.cat([slope, h, g]), (f, slope, h, g)

            # One Jacobian of (L_Y, h, g) gives L_YY, A and G; L_Y then gives f_Y.
            jacobian, (f, slope, h, g) = torch.func.jacrev(rows, has_aux=True)(y)
            A, G = jacobian[n : n + p], jacobian[n + p :]
            return f, slope - A.mT @ lam - G.mT @ mu, jacobian[:n], h, A, g, G

        return Quantities(*torch.func.vmap(of, in_dims=(0, 0, 0, *dims))(point.y, point.lam, point.mu, *theta))

    def multipliers(self, dims: Dims, y: torch.Tensor, theta: Tensors, *, p: int, m: int) -> Point:
        """The least-squares multipliers at y: those of inactive inequalities are zero, those of active ones not below.

        A row counts as active where g > -sqrt(eps) (1 + |y|_inf).
        """
        empty = y.new_zeros(len(y), 0)
        if p + m == 0:
            return Point(y, empty, empty)
        program = self if m else NonlinearProgram(self.f, self.h)
        found = program.quantities(dims, Point(y, y.new_zeros(len(y), p), y.new_zeros(len(y), m)), theta)
        near = torch.finfo(y.dtype).eps ** 0.5 * (1.0 + y.abs().amax(-1, keepdim=True))
        active = (found.g > -near).to(y.dtype)
        rows = torch.cat([found.A, active.unsqueeze(-1) * found.G], dim=-2)
        both = -(torch.linalg.pinv(rows.mT) @ found.slope.unsqueeze(-1)).squeeze(-1)
        return Point(y, both[:, :p], active * both[:, p:].clamp(min=0.0))
