"""Solutions of a batch of cone programs, their residuals, and the certification of their statuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from convexlayer.certificate import ComplementaryPoint
from convexlayer.cones import product_cone
from convexlayer.program import Array, ConeProgram, IndexArray, is_finite
from convexlayer.rays import BoolArray, refuted_claims
from convexlayer.sparse import Point, relative_residuals
from convexlayer.status import Status

__all__ = ["BoolArray", "Residuals", "Solution"]

MIN_TOL = 1e-12
"""Lower bound of the tolerance in certification by backward errors, close to what double precision allows."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """Relative residuals of the optimality conditions, one number per element.

    Attributes:
        primal: norm(Ax + s - b) / max(1, norm(Ax), norm(s), norm(b)), in the maximum norm.
        dual: norm(Px + q + A'y) / max(1, norm(Px), norm(q), norm(A'y)).
        gap: abs(x'Px + q'x + b'y) / max(1, abs(x'Px), abs(q'x), abs(b'y)).
        natural: natural residual norm(y - Pi_{K*}(y - s)) / max(1, norm(y), norm(s)). On curved cones the first three
            may be 1e-10 while this is 1e-6, and gradients have errors accordingly.
        backward: largest componentwise backward error of the nearest complementary point (see ``certificate``): each
            row relative to the sum of the magnitudes of its own terms. It detects a wrong row beside one that is 1e7
            times larger.
        worst: the largest of the first four; infinite if one is NaN.
        objective: objective value x'Px/2 + q'x + r, a by-product.
    """

    primal: Array
    dual: Array
    gap: Array
    natural: Array
    backward: Array
    worst: Array
    objective: Array

    @staticmethod
    def of(rows: Array, backward: Array) -> Residuals:
        """The residuals from the rows of ``sparse.relative_residuals``, (6, B), and backward errors."""
        primal, dual, gap, natural, worst, objective = rows
        return Residuals(primal, dual, gap, natural, backward, worst, objective)

    @cached_property
    def largest(self) -> float:
        """The largest ``worst`` of all elements; 0 for an empty batch."""
        return float(self.worst.max(initial=0.0))


@dataclass(frozen=True, eq=False)
class Solution:
    """Solutions of a batch of B cone programs.

    Attributes:
        x: primal variables, (B, n); a ray if the status is unbounded.
        y: dual variables, (B, m), in K*; a ray if the status is infeasible.
        s: slacks, (B, m), in K.
        status: one status per element.
        iterations: iterations reported by the solver, (B,).
        seconds: solve times reported by the solver, (B,).
        stats: further results of the solver; the key ``solver`` holds its name.
    """

    x: Array
    y: Array
    s: Array
    status: tuple[Status, ...]
    iterations: IndexArray
    seconds: Array
    stats: dict[str, Any]

    @cached_property
    def all_optimal(self) -> bool:
        """Whether every element is optimal."""
        return self.status.count(Status.OPTIMAL) == len(self.status)

    @cached_property
    def all_solved(self) -> bool:
        """Whether every element has a solution."""
        return self.all_optimal or all(status.solved for status in self.status)

    @cached_property
    def solved(self) -> BoolArray:
        """Mask (B,) of the elements with a solution."""
        if self.all_optimal:
            return np.ones(len(self.status), dtype=bool)
        return np.array([status.solved for status in self.status], dtype=bool)

    def with_objective_divided(self, scale: Array) -> Solution:
        """Divide y by scale (B,): the solution of the program with its objective divided by scale."""
        y = self.y / scale[:, None]
        return Solution(self.x, y, self.s, self.status, self.iterations, self.seconds, self.stats)

    def select(self, index: IndexArray) -> Solution:
        """Select the elements at these positions."""
        status = tuple(self.status[i] for i in index.tolist())
        return replace(
            self,
            x=self.x[index],
            y=self.y[index],
            s=self.s[index],
            status=status,
            iterations=self.iterations[index],
            seconds=self.seconds[index],
        )

    def with_elements(self, index: IndexArray, other: Solution) -> Solution:
        """Replace the elements at these positions by those of ``other``."""
        x, y, s = self.x.copy(), self.y.copy(), self.s.copy()
        iterations, seconds = self.iterations.copy(), self.seconds.copy()
        status = list(self.status)
        x[index], y[index], s[index] = other.x, other.y, other.s
        iterations[index], seconds[index] = other.iterations, other.seconds
        for i, word in zip(index.tolist(), other.status, strict=True):
            status[i] = word
        return replace(self, x=x, y=y, s=s, status=tuple(status), iterations=iterations, seconds=seconds)

    def complementary(self, program: ConeProgram) -> ComplementaryPoint:
        """Compute the complementary points nearest to the solutions."""
        return ComplementaryPoint.near(program, self.x, self.y, self.s)

    def residuals(self, program: ConeProgram, point: ComplementaryPoint | None = None) -> Residuals:
        """Compute the residuals of all elements; NaN for nonfinite points.

        Args:
            program: the programs.
            point: ``self.complementary(program)``, if already computed.
        """
        point = point or self.complementary(program)
        x, y, s = self.x, self.y, self.s
        cone = product_cone(program.structure.cones)
        if y is point.y and s is point.s:  # complementary: the projections of y - s
            projection = y
        else:
            w = y - s
            projection = cone.at(w if is_finite(w) else np.where(np.isfinite(w), w, 0.0)).projection
        rows = relative_residuals(
            (program.structure.P, program.structure.A), cone.zero, program.values, program.r, Point(x, y, s),
            projection[:, cone.flat :],
        )  # fmt: skip
        return Residuals.of(rows, point.backward)

    def certified(
        self, program: ConeProgram, tol: float, residuals: Residuals | None = None, *, row_by_row: bool = False
    ) -> tuple[Solution, Residuals]:
        """Set the statuses according to the residuals; returns the solution and the residuals.

        - ``optimal``: with ``row_by_row``, the backward error is at most 10 tol. Without, as is appropriate for points
          that were not polished, the primal, dual and gap residuals are at most 10 tol and the natural residual is at
          most sqrt(tol), the accuracy that solvers reach at weakly active constraints.
        - ``optimal_inaccurate``: these four residuals are at most 100 times larger.
        - ``numerical_error``: the solver claimed a solution, but the residuals are larger; or it claimed infeasibility
          or unboundedness with a ray that is not a certificate.

        An element stopped by a limit or a numerical error is also optimal or inaccurate if its residuals allow it.
        """
        residuals = residuals or self.residuals(program)
        norms = np.maximum(np.maximum(residuals.primal, residuals.dual), residuals.gap)
        if row_by_row:
            certain = residuals.backward <= 10.0 * max(tol, MIN_TOL)
        else:
            certain = (norms <= 10.0 * tol) & (residuals.natural <= np.sqrt(tol))
        if self.all_optimal and np.all(certain):
            return self, residuals
        usable = (norms <= 1e3 * tol) & (residuals.natural <= 1e2 * np.sqrt(tol))
        infeasible, unbounded = (
            np.array([word is claim for word in self.status], dtype=bool)
            for claim in (Status.INFEASIBLE, Status.UNBOUNDED)
        )
        unproved = refuted_claims(program, self.x, self.y, infeasible, unbounded)
        status = tuple(
            Status.NUMERICAL_ERROR if wrong else _certified(word, *verdict)
            for word, wrong, *verdict in zip(
                self.status, unproved.tolist(), certain.tolist(), usable.tolist(), strict=True
            )
        )
        return replace(self, status=status), residuals


def _certified(word: Status, certain: bool, usable: bool) -> Status:
    if not word.solved and word not in (Status.ITERATION_LIMIT, Status.TIME_LIMIT, Status.NUMERICAL_ERROR):
        return word
    if certain:
        return Status.OPTIMAL
    if usable:
        return Status.OPTIMAL_INACCURATE
    return Status.NUMERICAL_ERROR if word.solved else word
