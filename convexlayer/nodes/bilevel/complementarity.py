"""Mathematical programs with complementarity constraints: an upper objective over the KKT points of a lower problem.

The unknowns are x = (theta, y, lam, mu); torch computes all derivatives. Complementarity has two smooth forms,

    relaxed    g <= 0,  mu >= 0,  -mu_i g_i <= t                    (Scholtes)
    branch     g_i = 0,  mu_i >= 0  or  g_i <= 0,  mu_i = 0         one of the two for each pair

A point that is a local solution of every branch that contains it is a local solution of the program. Where k pairs are
*biactive*, g_i = mu_i = 0, there are 2^k of them. If the gradients of all active constraints are linearly independent,
the branches that differ from one of them in a single pair decide; otherwise pairs may have to change together.

References: Scholtes, Convergence properties of a regularization scheme for mathematical programs with complementarity
constraints, 2001. Scheel and Scholtes, Mathematical programs with complementarity constraints: stationarity,
optimality, and sensitivity, 2000.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import final

import torch
from scipy.optimize import lsq_linear

from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.nonlinear_program import Function, KKTResidual, NonlinearProgram
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.error_estimate import polish
from convexlayer.nodes.implicit.operator import Operator

__all__ = ["STATIONARITY_TOL", "ZERO_TOL", "Complementarity", "SubproblemSolution"]

ZERO_TOL = 1e-6
"""Relative size below which a number counts as zero; the solvers reach about 1e-9."""

STATIONARITY_TOL = 1e-6
"""Largest residual of the upper gradient, relative to 1 + its norm, at a stationary point; SLSQP reaches about 1e-9."""

MAX_BRANCHES = 64
"""Branches through a point that are examined, those with the fewest changes first: all, where at most six pairs are
biactive. Each costs a small least-squares problem, and a solve where the point is not stationary."""

MIN_DECREASE = 1e-9
"""Smallest decrease of F, relative to 1 + |F|, that counts as one."""

MAX_RESTORATION_STEPS = 5
"""Limit of Gauss-Newton steps towards the constraints."""

POLISH_STEPS = 3
"""Newton steps on the KKT residual of a subproblem after its solver."""


@final
@dataclass(frozen=True)
class SubproblemSolution:
    """Last point of the solver of a smooth subproblem.

    Attributes:
        x: the unknowns.
        violation: largest violation of a constraint, relative to 1 + |(theta, y)|; NaN if one is not finite.
        stationarity: residual min |F_x + h_x'a + g_x'b| over all a, and b >= 0 of active rows, relative to 1 + |F_x|,
            with F divided by 1 + |F|; after an exchange of branches, the largest of those through x.
    """

    x: torch.Tensor
    violation: float
    stationarity: float


@final
class Complementarity:
    """min F(y, *theta) over theta and the KKT points (y, lam, mu) of a program with the parameters theta.

    Args:
        upper: F, of y as a vector.
        program: the lower problem.
        upper_constraints: (y, *theta) -> constraints of the upper level, (k,), feasible where at most 0.
        theta: the parameters, for their shapes.
        sizes: numbers of entries of y, lam and mu.
        solver: solver of the smooth subproblems.
        tol: largest violation of a solution.
    """

    def __init__(
        self,
        upper: Function,
        program: NonlinearProgram,
        upper_constraints: Function,
        theta: Tensors,
        sizes: Sequence[int],
        solver: AbstractForwardSolver,
        tol: float,
    ) -> None:
        self.upper, self._lower, self._upper_constraints = upper, program, upper_constraints
        self._theta, self._sizes = theta, [sum(tensor.numel() for tensor in theta), *sizes]
        self._solver, self._tol = solver, tol
        self._relaxed_program = NonlinearProgram(
            self._scaled_objective, self._relaxed_equalities, self._relaxed_inequalities
        )
        self._branch_program = NonlinearProgram(
            self._scaled_objective, self._branch_equalities, self._branch_inequalities
        )

    def split(self, x: torch.Tensor) -> tuple[Tensors, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Split x into theta, y, lam and mu."""
        flat, y, lam, mu = torch.split(x, self._sizes)
        parts = torch.split(flat, [tensor.numel() for tensor in self._theta])
        theta = tuple(part.reshape(tensor.shape) for part, tensor in zip(parts, self._theta, strict=True))
        return theta, y, lam, mu

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """The upper objective F at x."""
        theta, y, _lam, _mu = self.split(x)
        return self.upper(y, *theta)

    def size(self, x: torch.Tensor) -> float:
        """Scale 1 + |(theta, y)| of violations, without the multipliers, which may be arbitrarily large."""
        return 1.0 + float(x[: self._sizes[0] + self._sizes[1]].abs().amax())

    def perturbed(self, eps: float | torch.Tensor) -> NonlinearProgram:
        """Return the lower problem with the objective f - eps F."""
        program = self._lower
        return replace(program, f=lambda y, *theta: program.f(y, *theta) - eps * self.upper(y, *theta))

    def solve_relaxed(self, x: torch.Tensor, t: float, eps: float) -> SubproblemSolution:
        """Solve the problem relaxed by t, with the lower objective f - eps F, from x."""
        pairs = x.new_tensor(t)
        return self._assess(
            self._relaxed_program, self._solve_subproblem(self._relaxed_program, x, pairs, eps), pairs, eps
        )

    def solve_by_branch_exchange(self, x: torch.Tensor, eps: float) -> SubproblemSolution:
        """Solve branches from x, until no branch through the point lowers F."""
        theta, y, _lam, mu = self.split(x)
        active = (mu / self._multiplier_size(eps) > -self._lower.g(y, *theta)).to(x.dtype)
        found = self._solve_branch(x, active, eps)
        tried = {tuple(active.tolist())}
        while True:
            residuals = [found.stationarity]
            for exchanged, other in self._other_branches(found.x, active, eps):
                here = self._assess(self._branch_program, found.x, other, eps)
                if here.violation <= self._tol:
                    residuals.append(here.stationarity)
                stationary = here.stationarity <= STATIONARITY_TOL
                if tuple(other.tolist()) in tried or (exchanged > 1 and stationary):
                    continue
                tried.add(tuple(other.tolist()))
                moved, value = self._solve_branch(found.x, other, eps), self.value(found.x)
                lower = self.value(moved.x) < value - MIN_DECREASE * (1 + value.abs())
                if moved.violation <= self._tol and lower:
                    found, active = moved, other
                    break
            else:
                largest = torch.tensor(residuals, dtype=x.dtype).amax()  # NaN if any is NaN
                return replace(found, stationarity=float(largest))

    def _other_branches(self, x: torch.Tensor, active: torch.Tensor, eps: float) -> Iterator[tuple[int, torch.Tensor]]:
        """Other active sets at x, and the numbers of biactive pairs in which they differ, in ascending order."""
        theta, y, _lam, mu = self.split(x)
        size = self.size(x)
        zero = mu.abs() <= ZERO_TOL * self._multiplier_size(eps) * size
        biactive = torch.nonzero(zero & (self._lower.g(y, *theta).abs() <= ZERO_TOL * size)).flatten().tolist()
        sets = (pairs for count in range(1, len(biactive) + 1) for pairs in combinations(biactive, count))
        for pairs in islice(sets, MAX_BRANCHES - 1):
            other = active.clone()
            other[list(pairs)] = 1 - active[list(pairs)]
            yield len(pairs), other

    @staticmethod
    def _multiplier_size(eps: float) -> float:
        """Size of the multipliers: those of constraints that the term -eps F activates are of the size of eps."""
        return eps or 1.0

    # Functions of x and the subproblem's parameters: t or the active set, eps, and the scale of F.

    def _scaled_objective(
        self, x: torch.Tensor, _t: torch.Tensor, _eps: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        return self.value(x) / scale

    def _lower_stationarity(self, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """L_Y and h of the lower problem."""
        theta, y, lam, mu = self.split(x)
        slope = torch.func.grad(self.perturbed(eps).lagrangian)(y, lam, mu, *theta)
        return torch.cat([slope, self._lower.h(y, *theta)])

    def _relaxed_equalities(
        self, x: torch.Tensor, _: torch.Tensor, eps: torch.Tensor, __: torch.Tensor
    ) -> torch.Tensor:
        return self._lower_stationarity(x, eps)

    def _relaxed_inequalities(self, x: torch.Tensor, t: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        theta, y, _lam, mu = self.split(x)
        g = self._lower.g(y, *theta)
        return torch.cat([g, -mu, -mu * g - t, self._upper_constraints(y, *theta)])

    def _branch_equalities(
        self, x: torch.Tensor, active: torch.Tensor, eps: torch.Tensor, _: torch.Tensor
    ) -> torch.Tensor:
        theta, y, _lam, mu = self.split(x)
        return torch.cat([self._lower_stationarity(x, eps), active * self._lower.g(y, *theta) + (1 - active) * mu])

    def _branch_inequalities(self, x: torch.Tensor, active: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        theta, y, _lam, mu = self.split(x)
        return torch.cat([(1 - active) * self._lower.g(y, *theta) - active * mu, self._upper_constraints(y, *theta)])

    def _subproblem_parameters(self, x: torch.Tensor, pairs: torch.Tensor, eps: float) -> Tensors:
        return pairs, x.new_tensor(eps), 1.0 + self.value(x).detach().abs()

    # Solution of the subproblems.

    def _solve_subproblem(
        self, program: NonlinearProgram, x: torch.Tensor, pairs: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Solve from x and polish; returns x itself if the solution is not finite."""
        numbers = self._subproblem_parameters(x, pairs, eps)
        p, m = len(program.h(x, *numbers)), len(program.g(x, *numbers))
        shared = (None,) * len(numbers)
        point = self._solver.solve(program, x.unsqueeze(0), shared, numbers, p=p, m=m, mu=0.0).point
        if not torch.isfinite(point.z).all():
            return x
        # SLSQP stops where F no longer decreases, at half the digits of x.
        operator = Operator(KKTResidual(program, p, m), shared, point.z, numbers)
        found = polish(operator, Dense(), start=x.unsqueeze(0), steps=POLISH_STEPS, tol=self._tol)
        return found.operator.z[0, : len(x)]

    def _solve_branch(self, x: torch.Tensor, active: torch.Tensor, eps: float) -> SubproblemSolution:
        """Solve the branch of an active set, with feasibility restored before and after.

        Otherwise SLSQP's line search may stall at violations of 1e-9, where rounding dominates its merit function.
        """
        solved = self._solve_subproblem(self._branch_program, self._restore_feasibility(x, active, eps), active, eps)
        return self._assess(self._branch_program, self._restore_feasibility(solved, active, eps), active, eps)

    def _restore_feasibility(self, x: torch.Tensor, active: torch.Tensor, eps: float) -> torch.Tensor:
        """Take minimum-norm steps to the linearised violated constraints while the violation falls."""
        program = self._branch_program
        violation = self._violation(program, x, active, eps)
        for _ in range(MAX_RESTORATION_STEPS):
            numbers = self._subproblem_parameters(x, active, eps)
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

    def _assess(
        self, program: NonlinearProgram, x: torch.Tensor, pairs: torch.Tensor, eps: float
    ) -> SubproblemSolution:
        """Violation and stationarity of x for a subproblem."""
        return SubproblemSolution(
            x, self._violation(program, x, pairs, eps), self._stationarity(program, x, pairs, eps)
        )

    def _violation(self, program: NonlinearProgram, x: torch.Tensor, pairs: torch.Tensor, eps: float) -> float:
        numbers = self._subproblem_parameters(x, pairs, eps)
        rows = torch.cat([program.h(x, *numbers).abs(), program.g(x, *numbers).clamp(min=0.0), x.new_zeros(1)])
        return float(rows.amax() / self.size(x))

    def _stationarity(self, program: NonlinearProgram, x: torch.Tensor, pairs: torch.Tensor, eps: float) -> float:
        numbers = self._subproblem_parameters(x, pairs, eps)
        slope = torch.func.grad(program.f)(x, *numbers)
        equalities = torch.func.jacrev(program.h)(x, *numbers)
        g, inequalities = program.g(x, *numbers), torch.func.jacrev(program.g)(x, *numbers)
        # A bound on a multiplier alone is in its units; a row that depends on theta or y is not.
        of_point = (inequalities[:, : self._sizes[0] + self._sizes[1]] != 0.0).any(-1)
        units = torch.where(of_point, 1.0, self._multiplier_size(eps))
        rows = torch.cat([equalities, inequalities[g > -ZERO_TOL * units * self.size(x)]])
        if not torch.isfinite(rows).all() or not torch.isfinite(slope).all():
            return torch.nan
        least = torch.where(torch.arange(len(rows)) < len(equalities), -torch.inf, 0.0)
        fit = lsq_linear(rows.mT.numpy(), -slope.numpy(), bounds=(least.numpy(), torch.inf), method="bvls")
        return float((2.0 * fit.cost) ** 0.5) / (1.0 + float(slope.norm()))
