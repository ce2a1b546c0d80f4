"""KKT form of a bilevel problem: the KKT conditions of the lower level as constraints of the upper level.

    minimise over theta, y, lam, mu    F(y, theta)
    subject to                         theta in a box,    G(y, theta) <= 0
                                       L_Y = 0,  h = 0,  g <= 0,  mu >= 0,  mu_i g_i = 0,    L = f + lam'h + mu'g

Eq. 3 of Gould et al. (2016). No solution map is differentiated, so y may be one of many solutions, and the lower
problem need not have one at the start.

Let S(theta) be the set of lower solutions. The *optimistic* problem, min over theta and y in S(theta) of F, is equal to
the KKT form where the lower problem is convex with a Slater point, since S(theta) is then the set of its KKT points.
The *pessimistic* problem is

    min over theta of w(theta),    w(theta) = max of F(y, theta) over y in S(theta),

whose minimum may not be attained. With the lower objective f - eps F the follower slightly prefers what is bad for the
leader. A minimiser y_eps has f(y_eps) - eps F(y_eps) <= f(y) - eps F(y) for every y in S(theta), and so

    F(y_eps, theta) >= w(theta) + (f(y_eps) - min f) / eps >= w(theta).

The optimistic value of that problem is an upper bound of the pessimistic value for every eps, and tends to it as eps
falls to 0 if the feasible y are bounded (Molodtsov's regularisation).

References: Dempe, Foundations of Bilevel Programming, 2002. Colson, Marcotte and Savard, An overview of bilevel
optimization, 2007. Molodtsov, The solution of a class of nonantagonistic games, 1976. Dempe and Dutta, Is bilevel
programming a special case of a mathematical program with complementarity constraints?, 2012.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import final

import torch

from convexlayer.errors import ProblemError, SolverError
from convexlayer.nodes.autodiff.batch import Batch, Tensors
from convexlayer.nodes.bilevel.complementarity import ZERO_TOL, Complementarity, SubproblemSolution
from convexlayer.nodes.bilevel.lower_certificate import Certificate, certify
from convexlayer.nodes.bilevel.lower_level import LowerProgram
from convexlayer.nodes.bilevel.regularisers import Box
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.scipy_ import ScipyMinimize

__all__ = ["KKT", "KKTPoint"]

Upper = Callable[..., torch.Tensor]
"""(y (*variable), *theta) -> a scalar, or a vector for constraints."""

CHOICES = ("optimistic", "pessimistic")

INFEASIBLE_VIOLATION = 1e-3
"""Relative violation of a relaxed problem at which the relaxations end; smaller t are harder to satisfy."""

MAX_MULTIPLIER = 1e6
"""Largest multiplier of a start; larger ones, of inconsistent constraints, are replaced by zero."""


@final
@dataclass(frozen=True)
class KKTPoint:
    """A solution of the KKT form.

    Attributes:
        theta: the parameters.
        y: the lower solution, of the variable's shape.
        value: F(y, theta).
        stationarity: residual of the upper stationarity condition, see ``SubproblemSolution``.
        certificate: evidence that y solves the lower problem; None before the end.
    """

    theta: Tensors
    y: torch.Tensor
    value: float
    stationarity: float
    certificate: Certificate | None = None


@final
@dataclass(frozen=True)
class KKT:
    """Method for ``solve_bilevel`` that minimises over parameters, lower variables and multipliers together.

    Complementarity is relaxed to -mu_i g_i <= t for decreasing t (Scholtes). Then, for each pair, one of mu_i = 0 and
    g_i = 0 is imposed, which removes the error of t; where both are zero, the other is tried too, for one pair and for
    several together, until no such exchange lowers F. The result is stationary if it is on each of these branches, of
    at most 64. The search starts from the starts of the lower problem (``NodeOptions.start``). The result is the
    best point whose y passes as a lower minimum: by second-order conditions, and compared with the lower solver's
    results from the starts and from near y. For a ``StationaryNode`` any stationary point passes.
    ``NodeOptions.choose`` is not used.

    All parameters of the node are learned: put constants into its functions. Matrices of all unknowns are dense, so the
    method suits small problems.

    Solutions are local in theta. For a convex lower problem y is in S(theta); otherwise it is a local minimum that no
    start improves on. The pessimistic choice further requires that all minima of f - eps F are global, as for convex f
    and concave F, or strongly convex f and F of bounded curvature; only the comparison with other starts checks that.
    Its y minimises f - eps F for the last eps, and its value is an upper bound of w(theta). A local solution may exist
    for that eps only, in a neighbourhood of theta of width eps; another start reveals it.

    Attributes:
        choice: ``optimistic`` for the lower solution that is best for the upper level, ``pessimistic`` for the worst.
        regulariser: bounds of theta.
        constraints: (y, *theta) -> (k,), at most 0 at the solution; for the optimistic choice only.
        relaxations: decreasing relaxations t.
        perturbations: decreasing eps of the pessimistic choice.
        solver: solver of the smooth subproblems.
        tol: largest violation of a constraint, relative to 1 + |(theta, y)|.
    """

    choice: str = "optimistic"
    regulariser: Box | None = None
    constraints: Upper | None = None
    relaxations: Sequence[float] = (1.0, 1e-2, 1e-4, 1e-6, 1e-8)
    perturbations: Sequence[float] = (1e-2, 1e-4, 1e-6)
    solver: AbstractForwardSolver = field(
        default_factory=lambda: ScipyMinimize("SLSQP", {"ftol": 1e-13, "maxiter": 100})
    )
    tol: float = 1e-7

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: the choice is unknown, ``relaxations`` or ``perturbations`` are not positive and decreasing,
                the regulariser is not a Box, or constraints are combined with the pessimistic choice.
        """
        if self.choice not in CHOICES:
            raise ProblemError(f"choice: expected one of {', '.join(CHOICES)}, got {self.choice!r}")
        for name, numbers in (("relaxations", self.relaxations), ("perturbations", self.perturbations)):
            if not numbers or min(numbers) <= 0 or list(numbers) != sorted(numbers, reverse=True):
                raise ProblemError(f"{name}: expected positive, decreasing numbers, got {numbers}")
        if self.regulariser is not None and not isinstance(self.regulariser, Box):
            raise ProblemError(
                f"regulariser: expected a Box, got {type(self.regulariser).__name__}; IPiano, in the gradient form, "
                "takes any"
            )
        if self.constraints is not None and self.choice == "pessimistic":
            raise ProblemError(
                "constraints with the pessimistic choice would have to hold for every lower solution, which is not "
                "supported: bound theta by a Box, or use the optimistic choice"
            )

    def solve(
        self,
        upper: Upper,
        lower: LowerProgram,
        theta: Sequence[torch.Tensor],
        on_point: Callable[[KKTPoint, float], None],
    ) -> KKTPoint:
        """Solve from every start of the lower problem; return the best point.

        Args:
            upper: F.
            lower: the lower problem.
            theta: initial parameters.
            on_point: called with every intermediate point and its t.

        Raises:
            SolverError: no start led to a point that solves the lower problem and satisfies the constraints.
            ProblemError: a function returns a wrong type or shape, or tensors are not float64.
        """
        if self.choice == "pessimistic" and not lower.minimises:
            raise ProblemError("the pessimistic choice is among minima: it does not support a StationaryNode")
        batch = Batch.of(lower.shapes, theta)
        if not batch.single:
            raise ProblemError(
                "theta has a batch axis, but the KKT form takes one lower problem: combine several into one, with "
                "all their variables and the sum of their objectives"
            )
        first = tuple(tensor.detach() for tensor in batch.tensors)
        if first[0].dtype != torch.float64:
            raise ProblemError(f"expected parameters in torch.float64, got {first[0].dtype}: convert them")
        y = lower.starts(first)
        _, h, g = lower.program.evaluate(y[0], *first)
        p, m = len(h), len(g)
        problem = Complementarity(
            lambda y, *theta: _scalar(upper(y.reshape(lower.variable), *theta)),
            lower.program,
            lambda y, *theta: self._upper_constraints(y.reshape(lower.variable), *theta),
            first,
            (y.shape[-1], p, m),
            self.solver,
            self.tol,
        )
        results, reasons = [], []
        for start in _distinct_starts(lower, first, y, p, m):
            point, reason = self._solve_from(problem, lower, start, on_point)
            if reason is None:
                results.append(point)
            else:
                reasons.append(reason)
        if not results:
            raise SolverError(
                f"the KKT form was solved from none of {len(reasons)} starts: "
                + "; ".join(dict.fromkeys(reasons))
                + ". Give other initial parameters, or other starts of the lower problem (NodeOptions.start)"
            )
        return min(results, key=lambda point: point.value)

    def _upper_constraints(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """Constraints of the upper level, feasible where at most 0."""
        box = self.regulariser or Box()
        rows = [y.new_zeros(0)]
        for part in theta:
            rows += [box.lower - part.reshape(-1)] if box.lower > -torch.inf else []
            rows += [part.reshape(-1) - box.upper] if box.upper < torch.inf else []
        if self.constraints is not None:
            rows.append(self.constraints(y, *theta))
        return torch.cat(rows)

    def _solve_from(
        self,
        problem: Complementarity,
        lower: LowerProgram,
        x: torch.Tensor,
        on_point: Callable[[KKTPoint, float], None],
    ) -> tuple[KKTPoint, str | None]:
        """Solve from x; return the point, and why it is not a solution (None if it is)."""
        for eps in self.perturbations if self.choice == "pessimistic" else (0.0,):
            ends = [
                problem.solve_by_branch_exchange(start, eps)
                for start in self._relaxation_starts(problem, lower, x, eps, on_point)
            ]
            fine = [end for end in ends if end.violation <= self.tol] or ends
            found = min(fine, key=lambda end: float(problem.value(end.x)))
            point = _point(problem, lower, found)
            on_point(point, 0.0)
            x = found.x
        if not isfinite(point.value):
            return point, f"the upper objective is {point.value}"
        if not found.violation <= self.tol:
            return point, _infeasible_message(found)
        certificate, reason = certify(problem, lower, found, eps, self.tol)
        return replace(point, certificate=certificate), reason

    def _relaxation_starts(
        self,
        problem: Complementarity,
        lower: LowerProgram,
        x: torch.Tensor,
        eps: float,
        on_point: Callable[[KKTPoint, float], None],
    ) -> list[torch.Tensor]:
        """The end of the relaxation path from x, which skips narrow minima, and x itself."""
        if not len(problem.split(x)[3]):
            return [x]
        path = x
        for t in self.relaxations:
            found = problem.solve_relaxed(path, t, eps)
            on_point(_point(problem, lower, found), t)
            path = found.x
            if found.violation > INFEASIBLE_VIOLATION:
                break
        return [path, x]


def _scalar(value: torch.Tensor) -> torch.Tensor:
    if value.numel() != 1:
        raise ProblemError(
            f"upper: expected a scalar, got a tensor of shape {tuple(value.shape)}; take its sum or mean"
        )
    return value.reshape(())


def _distinct_starts(lower: LowerProgram, theta: Tensors, y: torch.Tensor, p: int, m: int) -> list[torch.Tensor]:
    """Starts x at the distinct points that the lower solver reaches from y (k, n), whether solutions or not."""
    z = lower.solve(lower.program, y, theta, p=p, m=m).z
    z = torch.where(torch.isfinite(z).all(-1, keepdim=True), z, torch.cat([y, y.new_zeros(len(y), p + m)], -1))
    # Huge multipliers, of inconsistent constraints, are a worse start than zero.
    huge = (z[:, y.shape[-1] :].abs() > MAX_MULTIPLIER).any(-1)
    z[huge, y.shape[-1] :] = 0.0
    different: list[torch.Tensor] = []
    for row in z:
        if all((row - other).abs().amax() > ZERO_TOL * (1.0 + other.abs().amax()) for other in different):
            different.append(row)
    return [torch.cat([*(tensor.reshape(-1) for tensor in theta), row]) for row in different]


def _point(problem: Complementarity, lower: LowerProgram, found: SubproblemSolution) -> KKTPoint:
    theta, y, _lam, _mu = problem.split(found.x)
    value = float(problem.value(found.x))
    return KKTPoint(tuple(part.clone() for part in theta), y.reshape(lower.variable), value, found.stationarity)


def _infeasible_message(found: SubproblemSolution) -> str:
    return (
        f"the constraints stay violated by {found.violation:.0e}: nearby parameters may have no lower solution with "
        "multipliers that satisfies them"
    )
