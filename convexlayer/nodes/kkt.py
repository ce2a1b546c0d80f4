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
optimization, 2007. Scholtes, Convergence properties of a regularization scheme for mathematical programs with
complementarity constraints, 2001. Molodtsov, The solution of a class of nonantagonistic games, 1976. Dempe and Dutta,
Is bilevel programming a special case of a mathematical program with complementarity constraints?, 2012.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import final

import torch
from scipy.optimize import lsq_linear

from convexlayer.errors import ProblemError, SolverError
from convexlayer.nodes.batch import Batch, Tensors
from convexlayer.nodes.certify import polished
from convexlayer.nodes.forward import AbstractForwardSolver
from convexlayer.nodes.linear import Dense, Operator
from convexlayer.nodes.lower import LowerProgram
from convexlayer.nodes.nonlinear import NonlinearProgram
from convexlayer.nodes.scipy_ import ScipyMinimize
from convexlayer.nodes.upper import Box

__all__ = ["KKT", "Certificate", "KKTPoint"]

Upper = Callable[..., torch.Tensor]
"""(y (*variable), *theta) -> a scalar, or a vector for constraints."""

CHOICES = ("optimistic", "pessimistic")

NOISE, NOTICEABLE = 1e-9, 1e-3
"""Relative differences of a lower objective that the lower solver may leave, and of an upper one that counts."""

RESTORATIONS = 5
"""Steps of Newton's method back to the constraints."""

POLISHING = 3
"""Steps of Newton's method on the optimality conditions of a problem in between."""

HOPELESS = 1e-3
"""A relaxed problem whose constraints stay violated by this share has no solution near by."""

ZERO = 1e-6
"""Below this, relative to what it is measured by, a number counts as zero."""


@final
@dataclass(frozen=True)
class Certificate:
    """What shows that y solves the lower problem; of the objective f - eps F where the choice is pessimistic.

    Attributes:
        lam: multipliers of the equalities, (p,).
        mu: multipliers of the inequalities, (m,).
        residual: largest violation of a constraint of the KKT form, relative to 1 + |(theta, y)|.
        curvature: smallest eigenvalue of L_YY on the null space of h_Y and of the rows of g_Y with a multiplier:
            positive at a strict minimum, infinite at a vertex, 0 where y may be one of many.
        gap: f(y) less the smallest f that the lower solver finds at theta from the node's starts and from beside y;
            -infinite where it finds nothing feasible.
    """

    lam: torch.Tensor
    mu: torch.Tensor
    residual: float
    curvature: float
    gap: float


@final
@dataclass(frozen=True)
class KKTPoint:
    """A solution of the KKT form.

    Attributes:
        theta: the parameters.
        y: the lower solution, of the variable's shape.
        value: F there.
        stationarity: the part of F's gradient that no multipliers of the constraints balance.
        certificate: of y.
    """

    theta: Tensors
    y: torch.Tensor
    value: float
    stationarity: float
    certificate: Certificate


@final
@dataclass(frozen=True)
class KKT:
    """A method for ``solve_bilevel``: minimise over parameters, lower variables and multipliers together.

    Complementarity is relaxed to -mu_i g_i <= t for a few falling t (Scholtes). Then one of mu_i = 0 and g_i = 0 is set
    for each pair, which leaves no error of t; where both are zero the other one is tried too, until no such exchange
    lowers F. The lower problem's starts (``NodeOptions.start``) are starts here too. The best result counts whose y is
    a lower minimum: by second order, and against what the lower solver finds from the starts and from beside y. For a
    ``StationaryNode`` any stationary point is right.

    Solutions are local in theta. For a convex lower problem y is in S(theta); for another it is a local minimum that no
    start betters. ``pessimistic`` asks more: that f - eps F has no minima but global ones, as for convex f and concave
    F, or strongly convex f and F of bounded curvature. Only the comparison checks that. Its y is of f - eps F with the
    last eps, and its value an upper bound of w(theta).

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
        default_factory=lambda: ScipyMinimize("SLSQP", {"ftol": 1e-13, "maxiter": 200})
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
        problem = _Problem(self, upper, lower, theta)
        found, reasons = [], []
        for start in problem.starts():
            point, reason = problem.solve(start, told)
            if reason is None:
                found.append(point)
            else:
                reasons.append(reason)
        if not found:
            raise SolverError(
                f"the KKT form was solved from no start of {len(reasons)}: " + "; ".join(dict.fromkeys(reasons)) + ". "
                "Give other parameters to start from, or other starts of the lower problem (NodeOptions.start)"
            )
        return min(found, key=lambda point: point.value)


@final
class _Problem:
    """One bilevel problem in the unknowns x = (theta, y, lam, mu), with all derivatives by torch."""

    def __init__(self, method: KKT, upper: Upper, lower: LowerProgram, theta: Sequence[torch.Tensor]) -> None:
        batch = Batch.of(lower.shapes, theta)
        if not batch.single:
            raise ProblemError(
                "theta has a batch axis, and the KKT form takes one lower problem: several are one whose variable "
                "holds all of theirs, and whose objective is their sum"
            )
        if batch.tensors[0].dtype != torch.float64:
            raise ProblemError(f"expected parameters in torch.float64, got {batch.tensors[0].dtype}: convert them")
        self._method, self._upper, self._lower = method, upper, lower
        self._theta = tuple(tensor.detach() for tensor in batch.tensors)
        first = lower.starts(self._theta)
        self.p, self.m = lower.program.sizes(first[0], *self._theta)
        self._sizes = [sum(tensor.numel() for tensor in self._theta), first.shape[-1], self.p, self.m]
        value = upper(first[0].reshape(lower.variable), *self._theta)
        if value.numel() != 1:
            raise ProblemError(
                f"upper: expected a scalar, got a tensor of shape {tuple(value.shape)}; take its sum or mean"
            )
        self._relaxed = NonlinearProgram(self._scaled, self._relaxed_equalities, self._relaxed_inequalities)
        self._branch = NonlinearProgram(self._scaled, self._branch_equalities, self._branch_inequalities)

    def starts(self) -> list[torch.Tensor]:
        """x at the different points that the lower solver finds from its starts; solutions they need not be."""
        y = self._lower.starts(self._theta)
        point = self._lower.solve(self._lower.program, y, self._theta, p=self.p, m=self.m)
        fine = torch.isfinite(point.z).all(-1, keepdim=True)
        z = torch.where(fine, point.z, torch.cat([y, y.new_zeros(len(y), self.p + self.m)], -1))
        different: list[torch.Tensor] = []
        for row in z:
            if all((row - other).abs().amax() > ZERO * (1.0 + other.abs().amax()) for other in different):
                different.append(row)
        flat = torch.cat([tensor.reshape(-1) for tensor in self._theta])
        return [torch.cat([flat, row]) for row in different]

    def solve(self, x: torch.Tensor, told: Callable[[KKTPoint, float], None]) -> tuple[KKTPoint, str | None]:
        """The point that is found from x, and what is wrong with it."""
        pessimistic = self._method.choice == "pessimistic"
        perturbations = self._method.perturbations if pessimistic else (0.0,)
        eps = x.new_tensor(perturbations[0])
        for number in self._method.relaxations if self.m else ():
            t = x.new_tensor(number)
            x = self._run(self._relaxed, x, t, eps)
            point = self._point(x, self._relaxed, t, eps)
            told(point, number)
            if point.certificate.residual > HOPELESS:
                return point, _violated(point)  # the smaller t are more to ask
        for number in perturbations:
            eps = x.new_tensor(number)
            x, active = self._exchanged(x, eps)
            point = self._point(x, self._branch, active, eps)
            told(point, 0.0)
        if not isfinite(point.value):
            return point, f"the upper objective is {point.value}"
        if not point.certificate.residual <= self._method.tol:
            return point, _violated(point)
        return self._certified(point, x, eps)

    # The unknowns and their functions.

    def _split(self, x: torch.Tensor) -> tuple[Tensors, torch.Tensor, torch.Tensor, torch.Tensor]:
        flat, y, lam, mu = torch.split(x, self._sizes)
        parts = torch.split(flat, [tensor.numel() for tensor in self._theta])
        theta = tuple(part.reshape(tensor.shape) for part, tensor in zip(parts, self._theta, strict=True))
        return theta, y, lam, mu

    def _value(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return self._upper(y.reshape(self._lower.variable), *theta).reshape(())

    def _perturbed(self, eps: torch.Tensor) -> NonlinearProgram:
        """The lower problem with the objective f - eps F."""
        program = self._lower.program
        return replace(program, f=lambda y, *theta: program.f(y, *theta) - eps * self._value(y, *theta))

    def _objective(self, x: torch.Tensor) -> torch.Tensor:
        theta, y, _lam, _mu = self._split(x)
        return self._value(y, *theta)

    def _scaled(self, x: torch.Tensor, _t: torch.Tensor, _eps: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self._objective(x) / scale

    def _conditions(self, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """L_Y and h."""
        theta, y, lam, mu = self._split(x)
        slope = torch.func.grad(self._perturbed(eps).lagrangian)(y, lam, mu, *theta)
        return torch.cat([slope, self._lower.program.h(y, *theta)])

    def _outer(self, x: torch.Tensor) -> torch.Tensor:
        """The constraints of the upper level, at most 0."""
        theta, y, _lam, _mu = self._split(x)
        flat, box = x[: self._sizes[0]], self._method.regulariser or Box()
        rows = [flat[:0]]
        rows += [box.lower - flat] if box.lower > -torch.inf else []
        rows += [flat - box.upper] if box.upper < torch.inf else []
        if self._method.constraints is not None:
            rows.append(self._method.constraints(y.reshape(self._lower.variable), *theta))
        return torch.cat(rows)

    def _relaxed_equalities(
        self, x: torch.Tensor, _: torch.Tensor, eps: torch.Tensor, __: torch.Tensor
    ) -> torch.Tensor:
        return self._conditions(x, eps)

    def _relaxed_inequalities(self, x: torch.Tensor, t: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        theta, y, _lam, mu = self._split(x)
        g = self._lower.program.g(y, *theta)
        return torch.cat([g, -mu, -mu * g - t, self._outer(x)])

    def _branch_equalities(
        self, x: torch.Tensor, active: torch.Tensor, eps: torch.Tensor, _: torch.Tensor
    ) -> torch.Tensor:
        theta, y, _lam, mu = self._split(x)
        g = self._lower.program.g(y, *theta)
        return torch.cat([self._conditions(x, eps), active * g + (1 - active) * mu])

    def _branch_inequalities(self, x: torch.Tensor, active: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        theta, y, _lam, mu = self._split(x)
        g = self._lower.program.g(y, *theta)
        return torch.cat([(1 - active) * g - active * mu, self._outer(x)])

    # How they are solved.

    def _numbers(self, x: torch.Tensor, pairs: torch.Tensor, eps: torch.Tensor) -> Tensors:
        """The parameters of both programs: t or what is active, eps, and the scale of F."""
        return pairs, eps, 1.0 + self._objective(x).detach().abs()

    def _run(self, program: NonlinearProgram, x: torch.Tensor, pairs: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """The solution near x; x itself where that is not finite."""
        numbers = self._numbers(x, pairs, eps)
        p, m = program.sizes(x, *numbers)
        solver, shared = self._method.solver, (None,) * len(numbers)
        point = solver.solve(program, x.unsqueeze(0), shared, numbers, p=p, m=m, mu=0.0).point
        if not torch.isfinite(point.z).all():
            return x
        # SLSQP stops where F no longer falls, at half the digits of x.
        operator, _, _ = polished(
            Operator(program.optimality(p, m), shared, point.z, numbers), Dense(), symmetric=True, steps=POLISHING
        )
        return operator.z[0, : len(x)]

    def _settled(self, x: torch.Tensor, active: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """The solution with these active constraints, from where Newton's method makes the constraints hold.

        Without, SLSQP's line search may stall at violations of 1e-9, where its merit function is rounding.
        """
        return self._restored(self._run(self._branch, self._restored(x, active, eps), active, eps), active, eps)

    def _restored(self, x: torch.Tensor, active: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
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

    def _exchanged(self, x: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A point with exact complementarity from which no exchange of a pair of zeros lowers F; and what is active."""
        theta, y, _lam, mu = self._split(x)
        g = self._lower.program.g(y, *theta)
        # Multipliers of what eps prefers have its size.
        scale = eps if eps > 0 else 1.0
        active = (mu / scale > -g).to(x.dtype)
        x = self._settled(x, active, eps)
        tried = {tuple(active.tolist())}
        while True:
            theta, y, _lam, mu = self._split(x)
            size = self._size(x)
            both = (mu.abs() <= ZERO * scale * size) & (self._lower.program.g(y, *theta).abs() <= ZERO * size)
            for i in torch.nonzero(both).flatten().tolist():
                other = active.clone()
                other[i] = 1 - other[i]
                if tuple(other.tolist()) in tried:
                    continue
                tried.add(tuple(other.tolist()))
                moved = self._settled(x, other, eps)
                fine = self._violation(self._branch, moved, other, eps) <= self._method.tol
                if fine and self._objective(moved) < self._objective(x) - 1e-9 * (1 + self._objective(x).abs()):
                    x, active = moved, other
                    break
            else:
                return x, active

    # What is found out about a point.

    def _violation(self, program: NonlinearProgram, x: torch.Tensor, pairs: torch.Tensor, eps: torch.Tensor) -> float:
        """The largest violation of a constraint, relative to 1 + |(theta, y)|; NaN where one is not finite."""
        numbers = self._numbers(x, pairs, eps)
        rows = torch.cat([program.h(x, *numbers).abs(), program.g(x, *numbers).clamp(min=0.0), x.new_zeros(1)])
        return float(rows.amax() / self._size(x))

    def _size(self, x: torch.Tensor) -> float:
        """1 + |(theta, y)|; multipliers may be as large as they like."""
        return 1.0 + float(x[: self._sizes[0] + self._sizes[1]].abs().amax())

    def _point(self, x: torch.Tensor, program: NonlinearProgram, pairs: torch.Tensor, eps: torch.Tensor) -> KKTPoint:
        theta, y, lam, mu = self._split(x)
        return KKTPoint(
            tuple(part.clone() for part in theta),
            y.reshape(self._lower.variable),
            float(self._objective(x)),
            self._stationarity(program, x, self._numbers(x, pairs, eps)),
            Certificate(lam, mu, self._violation(program, x, pairs, eps), torch.nan, torch.nan),
        )

    def _stationarity(self, program: NonlinearProgram, x: torch.Tensor, numbers: Tensors) -> float:
        """min |F_x + h_x'a + g_x'b| over a, and b >= 0 for active rows; relative to 1 + |F_x|, all in units of F."""
        slope = torch.func.grad(program.f)(x, *numbers)
        equalities = torch.func.jacrev(program.h)(x, *numbers)
        near = program.g(x, *numbers) > -ZERO * self._size(x)
        rows = torch.cat([equalities, torch.func.jacrev(program.g)(x, *numbers)[near]])
        if not torch.isfinite(rows).all() or not torch.isfinite(slope).all():
            return torch.nan
        least = torch.where(torch.arange(len(rows)) < len(equalities), -torch.inf, 0.0)
        fit = lsq_linear(rows.mT.numpy(), -slope.numpy(), bounds=(least.numpy(), torch.inf), method="bvls")
        return float((2.0 * fit.cost) ** 0.5) / (1.0 + float(slope.norm()))

    def _certified(self, point: KKTPoint, x: torch.Tensor, eps: torch.Tensor) -> tuple[KKTPoint, str | None]:
        """The point with its certificate, and what is wrong with it."""
        theta, y, _lam, mu = self._split(x)
        program = self._perturbed(eps)
        g = program.g(y, *theta)
        curvature, direction = self._least_curvature(program, x, mu > ZERO * (float(eps) or 1.0))
        inner, _ = self._least_curvature(program, x, g > -ZERO * self._size(x))
        beside = [y + sign * 1e-3 * self._size(x) * direction for sign in (-1.0, 1.0)]
        trials = torch.cat([self._lower.starts(theta), torch.stack(beside)])
        others = self._lower.solve(program, trials, theta, p=self.p, m=self.m).y
        f, h, g = program.values((None,) * len(theta), others, theta)
        broken = torch.cat([h.abs(), g.clamp(min=0.0), h.new_zeros(len(h), 1)], -1).amax(-1)
        allowed = (broken <= self._method.tol * self._size(x)) & torch.isfinite(f)
        here = float(program.f(y, *theta))
        gap = here - float(torch.where(allowed, f, torch.inf).amin())
        certificate = replace(point.certificate, curvature=curvature, gap=gap)
        point = replace(point, certificate=certificate)
        if self._lower.minimises and inner < -ZERO:
            return point, f"y is a saddle point or maximum of the lower problem, of curvature {inner:.1e}"
        if self._lower.minimises and gap > ZERO * (1.0 + abs(here)):
            return point, f"y is no global minimum of the lower problem, whose objective is {gap:.1e} smaller elsewhere"
        if eps > 0 and self._worse(x, others[allowed]):
            return point, "another lower solution is worse for the upper level than y"
        return point, None

    def _worse(self, x: torch.Tensor, others: torch.Tensor) -> bool:
        """Whether one of these y (k, n) is no worse for the follower and noticeably worse for the leader."""
        theta, y, _lam, _mu = self._split(x)
        lower, upper = self._lower.program.f(y, *theta), self._value(y, *theta)
        return any(
            bool(self._lower.program.f(other, *theta) <= lower + NOISE * (1 + lower.abs()))
            and bool(self._value(other, *theta) > upper + NOTICEABLE * (1 + upper.abs()))
            for other in others
        )

    def _least_curvature(
        self, program: NonlinearProgram, x: torch.Tensor, held: torch.Tensor
    ) -> tuple[float, torch.Tensor]:
        """Smallest eigenvalue of L_YY where h_Y and these rows of g_Y vanish, and its vector; infinite at a vertex."""
        theta, y, lam, mu = self._split(x)
        hessian = torch.func.jacrev(torch.func.grad(program.lagrangian))(y, lam, mu, *theta)
        rows = torch.cat([torch.func.jacrev(program.h)(y, *theta), torch.func.jacrev(program.g)(y, *theta)[held]])
        _, values, vectors = torch.linalg.svd(rows, full_matrices=True)
        rank = int((values > ZERO * values.amax()).sum()) if len(values) else 0
        basis = vectors[rank:].mT
        if not basis.shape[-1]:
            return torch.inf, torch.zeros_like(y)
        eigenvalues, eigenvectors = torch.linalg.eigh(basis.mT @ hessian @ basis)
        return float(eigenvalues[0]), basis @ eigenvectors[:, 0]


def _violated(point: KKTPoint) -> str:
    return (
        f"the constraints stay violated by {point.certificate.residual:.0e}: no parameters near by may have a lower "
        "solution with multipliers that obeys them"
    )
