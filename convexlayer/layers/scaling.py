"""Scaling of programs, so that solutions and derivatives do not depend on the units of the problem.

With positive diagonal D and E, E constant on the block of a curved cone, sigma > 0 and c > 0, the substitution
x = sigma D z gives the scaled program

    minimize  1/2 z'(sigma^2 D P D / c)z + (sigma D q / c)'z   subject to   (E A D) z + E s / sigma = E b / sigma.

c is first the largest coefficient of the objective. Programs whose rows differ by orders of magnitude are equilibrated
too: D and E bring the largest entry of every row of [P A'; A 0] near 1 (Ruiz 2001), sigma that of the right-hand side,
and c becomes the largest coefficient of the equilibrated objective. All factors are powers of two, so scaling is exact.

Outside of this module, programs, solutions and derivatives are in the units of the problem; solvers and derivatives
work in those of the scaled program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.certificate import ComplementaryPoint
from convexlayer.cones import product_cone
from convexlayer.diff import (
    AbstractDifferentiator,
    DerivativeMode,
    DerivativeReport,
    KKTFactor,
    KKTSystem,
    RelativeChange,
    SolutionCotangent,
    SolutionTangent,
)
from convexlayer.diff.base import whole_point, whole_program
from convexlayer.linalg import program_scales
from convexlayer.program import Array, ConeProgram, IndexArray, ProgramCotangent
from convexlayer.solution import Solution

__all__ = ["Scaling", "differentiate_scaled"]


@final
@dataclass(frozen=True, eq=False)
class Scaling:
    """The scale factors of a batch.

    Attributes:
        c: divisor of the objective, (B,).
        d: diagonal of D, (B, n); None, like e and sigma, if no element is equilibrated (all of them are 1).
        e: diagonal of E, (B, m).
        sigma: scale of the solution, (B,).
    """

    c: Array
    d: Array | None = None
    e: Array | None = None
    sigma: Array | None = None

    @staticmethod
    def of(program: ConeProgram, divisor: Array) -> tuple[Scaling, ConeProgram]:
        """Compute the scale factors of a batch, and the scaled programs.

        Args:
            program: the programs, with normalised objectives.
            divisor: what their objectives were divided by, (B,); it becomes part of ``c``.
        """
        structure = program.structure
        blocks = product_cone(structure.cones).blocks
        d, e, sigma, c = program_scales((structure.P, structure.A), blocks, program.values)
        if (sigma == 1.0).all() and (c == 1.0).all() and (d == 1.0).all() and (e == 1.0).all():
            return Scaling(divisor), program
        return Scaling(c * divisor, d, e, sigma), Scaling(c, d, e, sigma).scale_program(program)

    def select(self, index: IndexArray) -> Scaling:
        """Select the scale factors of the elements at ``index``."""
        if self.d is None or self.e is None or self.sigma is None:
            return Scaling(self.c[index])
        return Scaling(self.c[index], self.d[index], self.e[index], self.sigma[index])

    @cached_property
    def x(self) -> Array | float:
        """Ratio of x to the x of the scaled program, (B, n)."""
        return 1.0 if self.d is None or self.sigma is None else self.d * self.sigma[:, None]

    @cached_property
    def y(self) -> Array:
        """Ratio of y to the y of the scaled program, (B, m) or (B, 1)."""
        return self.c[:, None] if self.e is None or self.sigma is None else self.e * (self.c / self.sigma)[:, None]

    @cached_property
    def s(self) -> Array | float:
        """Ratio of s to the s of the scaled program, (B, m)."""
        return 1.0 if self.e is None or self.sigma is None else self.sigma[:, None] / self.e

    def scale_program(self, program: ConeProgram) -> ConeProgram:
        """Convert a program, or a program tangent, to scaled units."""
        if self.d is None or self.e is None:
            return program.with_objective_divided(self.c)
        P, A, c, x = program.structure.P, program.structure.A, self.c[:, None], np.asarray(self.x)
        return ConeProgram(
            program.structure,
            P=program.P * x[:, P.rows] * x[:, P.cols] / c,
            q=program.q * x / c,
            r=program.r / self.c,
            A=program.A * self.e[:, A.rows] * self.d[:, A.cols],
            b=program.b / self.s,
        )

    def scale_solution(self, given: Solution) -> Solution:
        """Convert a solution to scaled units."""
        return replace(given, x=given.x / self.x, y=given.y / self.y, s=given.s / self.s)

    def unscale_solution(self, found: Solution) -> Solution:
        """Convert a solution, or a ray, of the scaled program to the original units."""
        return replace(found, x=found.x * self.x, y=found.y * self.y, s=found.s * self.s)

    def unscale_tangent(self, moved: SolutionTangent) -> SolutionTangent:
        """Convert a tangent of the scaled program's solution to the original units."""
        return SolutionTangent(moved.x * self.x, moved.y * self.y, moved.s * self.s)

    def pull_solution(self, cotangent: SolutionCotangent) -> SolutionCotangent:
        """Pull a cotangent of the solution back to the scaled solution: the adjoint of ``unscale_tangent``."""
        s = None if cotangent.s is None else cotangent.s * self.s
        return SolutionCotangent(cotangent.x * self.x, cotangent.y * self.y, s)

    def pull_program(self, cotangent: ProgramCotangent) -> ProgramCotangent:
        """Pull a cotangent of the scaled program back to the program: the adjoint of ``scale_program``."""
        c = cotangent
        r = None if c.r is None else c.r / self.c
        return ProgramCotangent(c.x * self.x, c.y * self.y, c.l * self.x / self.c[:, None], c.v / self.s, r)


@final
class _ScaledDifferentiator(AbstractDifferentiator):
    """Derivative in the original units, computed with the derivative of the scaled programs."""

    def __init__(self, scaling: Scaling, program: ConeProgram, inner: AbstractDifferentiator) -> None:
        """Wrap the derivative at scaled programs."""
        self._scaling, self._structure, self._inner = scaling, program.structure, inner

    def vjp(
        self, cotangent: SolutionCotangent, *, observe: Callable[[ProgramCotangent], Array] | None = None
    ) -> tuple[ProgramCotangent, DerivativeReport]:
        """See ``AbstractDifferentiator``."""
        scaling, used = self._scaling, observe or whole_program(self._structure)
        gradient, report = self._inner.vjp(
            scaling.pull_solution(cotangent), observe=lambda inner: used(scaling.pull_program(inner))
        )
        return scaling.pull_program(gradient), report

    def jvp(
        self, tangent: ConeProgram, *, observe: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """See ``AbstractDifferentiator``."""
        scaling = self._scaling
        moved, report = self._inner.jvp(
            scaling.scale_program(tangent), observe=lambda inner: observe(scaling.unscale_tangent(inner))
        )
        return scaling.unscale_tangent(moved), report

    def objective_report(self, *, observe: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """See ``AbstractDifferentiator``."""
        return self._inner.objective_report(observe=lambda inner: observe(self._scaling.unscale_tangent(inner)))


def _scaled_measure(scaling: Scaling, relative: RelativeChange) -> RelativeChange:
    """Convert a measure of relative change in the original units to one in those of the scaled programs."""

    def measure(dx: Array, dy: Array, respond: Callable[[ConeProgram], tuple[Array, Array]]) -> Array:
        def respond_unscaled(tangent: ConeProgram) -> tuple[Array, Array]:
            x, y = respond(scaling.scale_program(tangent))
            return x * scaling.x, y * scaling.y

        return relative(dx * scaling.x, dy * scaling.y, respond_unscaled)

    return measure


def differentiate_scaled(
    mode: DerivativeMode,
    system: KKTSystem,
    scaling: Scaling,
    program: ConeProgram,
    solution: Solution,
    index: IndexArray | None,
    *,
    factor: KKTFactor | None = None,
    point: ComplementaryPoint | None = None,
    relative: RelativeChange,
) -> AbstractDifferentiator:
    """Differentiate at scaled programs and solutions; the derivative takes and returns the original units.

    Args:
        mode: the derivative mode.
        system: the KKT system of the programs' structure.
        scaling: the scale factors.
        program: the scaled programs.
        solution: their solutions, in the same units.
        index: the elements to differentiate at; None for all.
        factor: see ``ExactDifferentiator``; for all elements, like ``point``.
        point: see ``ExactDifferentiator``.
        relative: see ``ExactDifferentiator``; for changes in the original units.
    """
    if index is not None:
        scaling, program, solution, factor = scaling.select(index), program.select(index), solution.select(index), None
        point = None if point is None else point.select(index)
    inner = mode(system, program, solution, factor=factor, point=point, relative=_scaled_measure(scaling, relative))
    return _ScaledDifferentiator(scaling, program, inner)
