"""An upper objective over the KKT points of a lower problem: a program with complementarity constraints.

The unknowns are x = (theta, y, lam, mu), and all derivatives are by torch. Complementarity has two smooth forms,

    relaxed    g <= 0,  mu >= 0,  -mu_i g_i <= t                    (Scholtes)
    branch     g_i = 0,  mu_i >= 0  or  g_i <= 0,  mu_i = 0         one of the two for each pair

A point at which no branch that it lies on leads down is a local solution of the whole.

Reference: Scholtes, Convergence properties of a regularization scheme for mathematical programs with complementarity
constraints, 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from scipy.optimize import lsq_linear

from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.nonlinear_program import Function, NonlinearProgram, Optimality
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.error_estimate import certified
from convexlayer.nodes.implicit.operator import Operator

__all__ = ["ZERO", "Complementarity", "Found"]

ZERO = 1e-6
"""Below this, relative to what it is measured by, a number counts as zero."""

DECREASE = 1e-9
"""Relative to 1 + |F|, the smallest fall of F that is one."""

RESTORATIONS = 5
"""Steps of Newton's method back to the constraints."""

POLISHING = 3
"""Steps of Newton's method on the optimality conditions of a smooth problem."""


@final
@dataclass(frozen=True)
class Found:
    """Where a smooth problem was solved, or not.

    Attributes:
        x: the unknowns.
        violation: the largest violation of a constraint, relative to 1 + |(theta, y)|; NaN where one is not finite.
        stationarity: min |F_x + h_x'a + g_x'b| over all a, and b >= 0 of active rows, relative to 1 + |F_x|, with F
            divided by 1 + |F|.
    """

    x: torch.Tensor
    violation: float
    stationarity: float


@final
class Complementarity:
    """min F(y, *theta) over the KKT points (y, lam, mu) of a program with the parameters theta.

    Args:
        upper: F, of y as a vector.
        program: the lower problem.
        outer: (y, *theta) -> constraints of the upper level, (k,), at most 0.
        theta: the parameters, for their shapes.
        sizes: the numbers of entries of y, lam and mu.
        solver: solves the smooth problems.
        tol: largest violation of a solution.
    """

    def __init__(
        self,
        upper: Function,
        program: NonlinearProgram,
        outer: Function,
        theta: Tensors,
        sizes: Sequence[int],
        solver: AbstractForwardSolver,
        tol: float,
    ) -> None:
        self.upper, self._lower, self._outer = upper, program, outer
        self._theta, self._sizes = theta, [sum(tensor.numel() for tensor in theta), *sizes]
        self._solver, self._tol = solver, tol
        self._relaxed = NonlinearProgram(self._scaled, self._relaxed_equalities, self._relaxed_inequalities)
        self._branch = NonlinearProgram(self._scaled, self._branch_equalities, self._branch_inequalities)

    def split(self, x: torch.Tensor) -> tuple[Tensors, torch.Tensor, torch.Tensor, torch.Tensor]:
        """theta, y, lam and mu."""
        flat, y, lam, mu = torch.split(x, self._sizes)
        parts = torch.split(flat, [tensor.numel() for tensor in self._theta])
        theta = tuple(part.reshape(tensor.shape) for part, tensor in zip(parts, self._theta, strict=True))
        return theta, y, lam, mu

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """F."""
        theta, y, _lam, _mu = self.split(x)
        return self.upper(y, *theta)

    def size(self, x: torch.Tensor) -> float:
        """1 + |(theta, y)|; multipliers may be as large as they like."""
        return 1.0 + float(x[: self._sizes[0] + self._sizes[1]].abs().amax())

    def perturbed(self, eps: float | torch.Tensor) -> NonlinearProgram:
        """The lower problem with the objective f - eps F."""
        program = self._lower
        return replace(program, f=lambda y, *theta: program.f(y, *theta) - eps * self.upper(y, *theta))

    def relaxed(self, x: torch.Tensor, t: float, eps: float) -> Found:
        """A solution near x of the problem that is relaxed by t, with the lower objective f - eps F."""
        pairs = x.new_tensor(t)
        return self._found(self._relaxed, self._run(self._relaxed, x, pairs, eps), pairs, eps)

    def exchanged(self, x: torch.Tensor, eps: float) -> Found:
        """A point near x with exact complementarity, from which no exchange of one pair of zeros lowers F."""
        theta, y, _lam, mu = self.split(x)
        scale = eps or 1.0  # multipliers of what eps decides have its size
        active = (mu / scale > -self._lower.g(y, *theta)).to(x.dtype)
        found = self._settled(x, active, eps)
        tried = {tuple(active.tolist())}
        while True:
            for other in self._exchanges(found.x, active, scale):
                if tuple(other.tolist()) in tried:
                    continue
                tried.add(tuple(other.tolist()))
                moved, here = self._settled(found.x, other, eps), self.value(found.x)
                lower = self.value(moved.x) < here - DECREASE * (1 + here.abs())
                if moved.violation <= self._tol and lower:
                    found, active = moved, other
                    break
            else:
                return found

    def _exchanges(self, x: torch.Tensor, active: torch.Tensor, scale: float) -> list[torch.Tensor]:
        """What else may be active: each pair of zeros set the other way."""
        theta, y, _lam, mu = self.split(x)
        size = self.size(x)
        both = (mu.abs() <= ZERO * scale * size) & (self._lower.g(y, *theta).abs() <= ZERO * size)
        flips = torch.diag(both.to(x.dtype))[both]
        return list((active - flips).abs())

    # The functions of x, and of the parameters: t or what is active, eps, and the scale of F.

    def _scaled(self, x: torch.Tensor, _t: torch.Tensor, _eps: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.value(x) / scale

    def _conditions(self, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """L_Y and h."""
        theta, y, lam, mu = self.split(x)
        slope = torch.func.grad(self.perturbed(eps).lagrangian)(y, lam, mu, *theta)
        return torch.cat([slope, self._lower.h(y, *theta)])

    def _relaxed_equalities(
        self, x: torch.Tensor, _: torch.Tensor, eps: torch.Tensor, __: torch.Tensor
    ) -> torch.Tensor:
        return self._conditions(x, eps)

    def _relaxed_inequalities(self, x: torch.Tensor, t: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        theta, y, _lam, mu = self.split(x)
        g = self._lower.g(y, *theta)
        return torch.cat([g, -mu, -mu * g - t, self._outer(y, *theta)])

    def _branch_equalities(
        self, x: torch.Tensor, active: torch.Tensor, eps: torch.Tensor, _: torch.Tensor
    ) -> torch.Tensor:
        theta, y, _lam, mu = self.split(x)
        return torch.cat([self._conditions(x, eps), active * self._lower.g(y, *theta) + (1 - active) * mu])

    def _branch_inequalities(self, x: torch.Tensor, active: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        theta, y, _lam, mu = self.split(x)
        return torch.cat([(1 - active) * self._lower.g(y, *theta) - active * mu, self._outer(y, *theta)])

    def _numbers(self, x: torch.Tensor, pairs: torch.Tensor, eps: float) -> Tensors:
        return pairs, x.new_tensor(eps), 1.0 + self.value(x).detach().abs()

    # How they are solved.

    def _run(self, program: NonlinearProgram, x: torch.Tensor, pairs: torch.Tensor, eps: float) -> torch.Tensor:
        """The solution near x; x itself where that is not finite."""
        numbers = self._numbers(x, pairs, eps)
        p, m = len(program.h(x, *numbers)), len(program.g(x, *numbers))
        shared = (None,) * len(numbers)
        point = self._solver.solve(program, x.unsqueeze(0), shared, numbers, p=p, m=m, mu=0.0).point
        if not torch.isfinite(point.z).all():
            return x
        # SLSQP stops where F no longer falls, at half the digits of x.
        operator = Operator(Optimality(program, p, m), shared, point.z, numbers)
        found = certified(operator, Dense(), start=x.unsqueeze(0), steps=POLISHING, tol=self._tol)
        return found.operator.z[0, : len(x)]

    def _settled(self, x: torch.Tensor, active: torch.Tensor, eps: float) -> Found:
        """The solution with these active constraints, from where Newton's method makes the constraints hold.

        Without, SLSQP's line search may stall at violations of 1e-9, where its merit function is rounding.
        """
        solved = self._run(self._branch, self._restored(x, active, eps), active, eps)
        return self._found(self._branch, self._restored(solved, active, eps), active, eps)

    def _restored(self, x: torch.Tensor, active: torch.Tensor, eps: float) -> torch.Tensor:
        """After the shortest steps to where the linearised violated constraints hold, as long as they help."""
        program = self._branch
        violation = self._violation(program, x, active, eps)
        for _ in range(RESTORATIONS):
            numbers = self._numbers(x, active, eps)
            h, g = program.h(x, *numbers), program.g(x, *numbers)
            rows = [torch.func.jacrev(program.h)(x, *numbers), torch.func.jacrev(program.g)(x, *numbers)[g > 0]]
            matrix, side = torch.cat(rows), torch.cat([h, g[g > 0]])
            if not violation > torch.finfo(x.dtype).eps or not torch.isfinite(matrix).all():
                break
            moved = x - torch.linalg.lstsq(matrix, side.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
            left = self._violation(program, moved, active, eps)
            if not left < violation:
                break
            x, violation = moved, left
        return x

    def _found(self, program: NonlinearProgram, x: torch.Tensor, pairs: torch.Tensor, eps: float) -> Found:
        violation = self._violation(program, x, pairs, eps)
        return Found(x, violation, self._stationarity(program, x, self._numbers(x, pairs, eps)))

    def _violation(self, program: NonlinearProgram, x: torch.Tensor, pairs: torch.Tensor, eps: float) -> float:
        numbers = self._numbers(x, pairs, eps)
        rows = torch.cat([program.h(x, *numbers).abs(), program.g(x, *numbers).clamp(min=0.0), x.new_zeros(1)])
        return float(rows.amax() / self.size(x))

    def _stationarity(self, program: NonlinearProgram, x: torch.Tensor, numbers: Tensors) -> float:
        slope = torch.func.grad(program.f)(x, *numbers)
        equalities = torch.func.jacrev(program.h)(x, *numbers)
        near = program.g(x, *numbers) > -ZERO * self.size(x)
        rows = torch.cat([equalities, torch.func.jacrev(program.g)(x, *numbers)[near]])
        if not torch.isfinite(rows).all() or not torch.isfinite(slope).all():
            return torch.nan
        least = torch.where(torch.arange(len(rows)) < len(equalities), -torch.inf, 0.0)
        fit = lsq_linear(rows.mT.numpy(), -slope.numpy(), bounds=(least.numpy(), torch.inf), method="bvls")
        return float((2.0 * fit.cost) ** 0.5) / (1.0 + float(slope.norm()))
