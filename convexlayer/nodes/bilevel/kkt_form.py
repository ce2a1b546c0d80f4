"""The KKT form of a bilevel problem: the optimality conditions of the lower level as constraints of the upper one.

    minimise over theta, y, lam, mu    F(y, theta)
    subject to                         theta in a box,    G(y, theta) <= 0
                                       L_Y = 0,  h = 0,  g <= 0,  mu >= 0,  mu_i g_i = 0,    L = f + lam'h + mu'g

Eq. 3 of Gould et al. (2016). No solution map is differentiated, so that y may also be one of many solutions, and the
lower problem need not have one where the search starts.

Let S(theta) be the lower solutions. The *optimistic* problem, min over theta and y in S(theta) of F, is this one where
the lower problem is convex and has a Slater point: then S(theta) are its KKT points. The *pessimistic* one is

    min over theta of w(theta),    w(theta) = max of F(y, theta) over y in S(theta),

whose minimum may not be attained. Give the follower the objective f - eps F, so that he prefers, a little, what is bad
for the leader. A minimiser y_eps then has f(y_eps) - eps F(y_eps) <= f(y) - eps F(y) for every y in S(theta), and so

    F(y_eps, theta) >= w(theta) + (f(y_eps) - min f) / eps >= w(theta).

The optimistic value of that problem is an upper bound of the pessimistic one for every eps, and what it tends to as eps
falls to 0 where the feasible y are bounded (Molodtsov's regularisation).

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
from convexlayer.nodes.bilevel.complementarity import ZERO, Complementarity, Found
from convexlayer.nodes.bilevel.lower_certificate import Certificate, certified
from convexlayer.nodes.bilevel.lower_level import LowerProgram
from convexlayer.nodes.bilevel.regularisers import Box
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.scipy_ import ScipyMinimize

__all__ = ["KKT", "KKTPoint"]

Upper = Callable[..., torch.Tensor]
"""(y (*variable), *theta) -> a scalar, or a vector for constraints."""

CHOICES = ("optimistic", "pessimistic")

HOPELESS = 1e-3
"""A relaxed problem whose constraints stay violated by so much has no solution near by; smaller t ask more."""


HUGE = 1e6
"""Multipliers of a start beyond this are left out."""


@final
@dataclass(frozen=True)
class KKTPoint:
    """A solution of the KKT form.

    Attributes:
        theta: the parameters.
        y: the lower solution, of the variable's shape.
        value: F there.
        stationarity: the part of F's gradient that no multipliers of the constraints balance.
        certificate: of y, at the end.
    """

    theta: Tensors
    y: torch.Tensor
    value: float
    stationarity: float
    certificate: Certificate | None = None


@final
@dataclass(frozen=True)
class KKT:
    """A method for ``solve_bilevel``: minimise over parameters, lower variables and multipliers together.

    Complementarity is relaxed to -mu_i g_i <= t for a few falling t (Scholtes). Then one of mu_i = 0 and g_i = 0 is set
    for each pair, which leaves no error of t; where both are zero the other one is tried too, until no such exchange
    lowers F. The lower problem's starts (``NodeOptions.start``) are starts here too. The best result counts whose y is
    a lower minimum: by second order, and against what the lower solver finds from the starts and from beside y. For a
    ``StationaryNode`` any stationary point is right. ``NodeOptions.choose`` does not take part.

    All parameters of the node are learned: constants belong into its functions. Matrices of all unknowns are dense, so
    it is for small problems.

    Solutions are local in theta. For a convex lower problem y is in S(theta); for another it is a local minimum that no
    start betters. ``pessimistic`` asks more: that f - eps F has no minima but global ones, as for convex f and concave
    F, or strongly convex f and F of bounded curvature. Only the comparison checks that. Its y is of f - eps F with the
    last eps, and its value an upper bound of w(theta). A local solution may be one of that eps alone, no wider than eps
    in theta: another start tells.

    Attributes:
        choice: which of several lower solutions counts: the ``optimistic`` best for the upper level, or the
            ``pessimistic`` worst.
        regulariser: bounds of theta.
        constraints: (y, *theta) -> (k,), at most 0 at the solution; for the optimistic choice.
        relaxations: the numbers t, falling.
        perturbations: the numbers eps of the pessimistic choice, falling.
        solver: solves the smooth problems in between.
        tol: largest violation of a constraint at the end, relative to 1 + |(theta, y)|.
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
        """Check.

        Raises:
            ProblemError: an unknown choice, numbers that do not fall to above 0, a regulariser that is no box, or
                constraints beside the pessimistic choice.
        """
        if self.choice not in CHOICES:
            raise ProblemError(f"choice: expected one of {', '.join(CHOICES)}, got {self.choice!r}")
        for name, numbers in (("relaxations", self.relaxations), ("perturbations", self.perturbations)):
            if not numbers or min(numbers) <= 0 or list(numbers) != sorted(numbers, reverse=True):
                raise ProblemError(f"{name}: expected positive numbers that fall, got {numbers}")
        if self.regulariser is not None and not isinstance(self.regulariser, Box):
            raise ProblemError(
                f"regulariser: expected a Box, got {type(self.regulariser).__name__}; IPiano takes any, in the "
                "gradient form"
            )
        if self.constraints is not None and self.choice == "pessimistic":
            raise ProblemError(
                "constraints with the pessimistic choice would have to hold for every lower solution, which is not "
                "supported: bound theta by a Box, or take the optimistic choice"
            )

    def solve(
        self, upper: Upper, lower: LowerProgram, theta: Sequence[torch.Tensor], told: Callable[[KKTPoint, float], None]
    ) -> KKTPoint:
        """Solve from every start of the lower problem.

        Args:
            upper: F.
            lower: the lower problem.
            theta: where the parameters start.
            told: called with every point on the way, and t.

        Raises:
            SolverError: from no start a point was found that solves the lower problem and obeys the constraints.
            ProblemError: a function does not return what it should, or tensors are not float64.
        """
        if self.choice == "pessimistic" and not lower.minimises:
            raise ProblemError("the pessimistic choice is among minima: expected no StationaryNode")
        batch = Batch.of(lower.shapes, theta)
        if not batch.single:
            raise ProblemError(
                "theta has a batch axis, and the KKT form takes one lower problem: several are one whose variable "
                "holds all of theirs, and whose objective is their sum"
            )
        first = tuple(tensor.detach() for tensor in batch.tensors)
        if first[0].dtype != torch.float64:
            raise ProblemError(f"expected parameters in torch.float64, got {first[0].dtype}: convert them")
        y = lower.starts(first)
        _, h, g = lower.program.checked(y[0], *first)
        p, m = len(h), len(g)
        problem = Complementarity(
            lambda y, *theta: _scalar(upper(y.reshape(lower.variable), *theta)),
            lower.program,
            lambda y, *theta: self._outer(y.reshape(lower.variable), *theta),
            first,
            (y.shape[-1], p, m),
            self.solver,
            self.tol,
        )
        results, reasons = [], []
        for start in _starts(lower, first, y, p, m):
            point, reason = self._one(problem, lower, start, told)
            if reason is None:
                results.append(point)
            else:
                reasons.append(reason)
        if not results:
            raise SolverError(
                f"the KKT form was solved from no start of {len(reasons)}: " + "; ".join(dict.fromkeys(reasons)) + ". "
                "Give other parameters to start from, or other starts of the lower problem (NodeOptions.start)"
            )
        return min(results, key=lambda point: point.value)

    def _outer(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """The constraints of the upper level, at most 0."""
        box = self.regulariser or Box()
        rows = [y.new_zeros(0)]
        for part in theta:
            rows += [box.lower - part.reshape(-1)] if box.lower > -torch.inf else []
            rows += [part.reshape(-1) - box.upper] if box.upper < torch.inf else []
        if self.constraints is not None:
            rows.append(self.constraints(y, *theta))
        return torch.cat(rows)

    def _one(
        self, problem: Complementarity, lower: LowerProgram, x: torch.Tensor, told: Callable[[KKTPoint, float], None]
    ) -> tuple[KKTPoint, str | None]:
        """The point that is found from x, and what is wrong with it."""
        for eps in self.perturbations if self.choice == "pessimistic" else (0.0,):
            ends = [problem.exchanged(start, eps) for start in self._branch_starts(problem, lower, x, eps, told)]
            fine = [end for end in ends if end.violation <= self.tol] or ends
            found = min(fine, key=lambda end: float(problem.value(end.x)))
            point = _point(problem, lower, found)
            told(point, 0.0)
            x = found.x
        if not isfinite(point.value):
            return point, f"the upper objective is {point.value}"
        if not found.violation <= self.tol:
            return point, _violated(found)
        certificate, reason = certified(problem, lower, found, eps, self.tol)
        return replace(point, certificate=certificate), reason

    def _branch_starts(
        self,
        problem: Complementarity,
        lower: LowerProgram,
        x: torch.Tensor,
        eps: float,
        told: Callable[[KKTPoint, float], None],
    ) -> list[torch.Tensor]:
        """x itself, and the end of the relaxed path from there, which passes over minima of no width."""
        if not len(problem.split(x)[3]):
            return [x]
        path = x
        for t in self.relaxations:
            found = problem.relaxed(path, t, eps)
            told(_point(problem, lower, found), t)
            path = found.x
            if found.violation > HOPELESS:
                break
        return [path, x]


def _scalar(value: torch.Tensor) -> torch.Tensor:
    if value.numel() != 1:
        raise ProblemError(
            f"upper: expected a scalar, got a tensor of shape {tuple(value.shape)}; take its sum or mean"
        )
    return value.reshape(())


def _starts(lower: LowerProgram, theta: Tensors, y: torch.Tensor, p: int, m: int) -> list[torch.Tensor]:
    """x at the different points that the lower solver finds from y (k, n); solutions they need not be."""
    z = lower.solve(lower.program, y, theta, p=p, m=m).z
    z = torch.where(torch.isfinite(z).all(-1, keepdim=True), z, torch.cat([y, y.new_zeros(len(y), p + m)], -1))
    # Huge multipliers, of constraints without a common point, are a worse start than none.
    huge = (z[:, y.shape[-1] :].abs() > HUGE).any(-1)
    z[huge, y.shape[-1] :] = 0.0
    different: list[torch.Tensor] = []
    for row in z:
        if all((row - other).abs().amax() > ZERO * (1.0 + other.abs().amax()) for other in different):
            different.append(row)
    return [torch.cat([*(tensor.reshape(-1) for tensor in theta), row]) for row in different]


def _point(problem: Complementarity, lower: LowerProgram, found: Found) -> KKTPoint:
    theta, y, _lam, _mu = problem.split(found.x)
    value = float(problem.value(found.x))
    return KKTPoint(tuple(part.clone() for part in theta), y.reshape(lower.variable), value, found.stationarity)


def _violated(found: Found) -> str:
    return (
        f"the constraints stay violated by {found.violation:.0e}: no parameters near by may have a lower solution with "
        "multipliers that obeys them"
    )
