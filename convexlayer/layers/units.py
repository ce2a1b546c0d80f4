"""Equilibration of programs, so that solutions and derivatives do not depend on the units of the problem.

With positive diagonal D and E, E constant on the block of a curved cone, and sigma > 0, the substitution x = sigma D z
gives the equilibrated program

    minimize  1/2 z'(sigma^2 D P D)z + (sigma D q)'z   subject to   (E A D) z + E s / sigma = E b / sigma,

whose objective is then divided by its largest coefficient c. D and E bring the largest entry of every row of
[P A'; A 0] near 1, sigma that of the right-hand side. All factors are powers of two, so scaling is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from convexlayer.diff.base import whole_data, whole_point
from convexlayer.linalg import program_scales
from convexlayer.program import Array, ConeProgram, IndexArray, Structure
from convexlayer.solution import Solution

__all__ = ["Equilibration", "differentiate_equilibrated"]


@final
@dataclass(frozen=True, eq=False)
class Equilibration:
    """The scale factors of a batch; 1 for elements that need no equilibration.

    Attributes:
        d: diagonal of D, (B, n).
        e: diagonal of E, (B, m).
        sigma: scale of the solution, (B,).
        c: divisor of the objective, (B,).
    """

    d: Array
    e: Array
    sigma: Array
    c: Array

    @staticmethod
    def of(program: ConeProgram) -> Equilibration | None:
        """Compute the scale factors of a batch; None if no element needs equilibration."""
        structure = program.structure
        blocks = product_cone(structure.cones).blocks
        units = Equilibration(*program_scales((structure.P, structure.A), blocks, program.values))
        return None if all(np.all(part == 1.0) for part in (units.d, units.e, units.sigma, units.c)) else units

    def select(self, index: IndexArray) -> Equilibration:
        """Select the scale factors of the elements at ``index``."""
        return Equilibration(self.d[index], self.e[index], self.sigma[index], self.c[index])

    @property
    def x_scale(self) -> Array:
        """Ratio of x to the x of the equilibrated program, (B, n)."""
        return self.d * self.sigma[:, None]

    @property
    def y_scale(self) -> Array:
        """Ratio of y to the y of the equilibrated program, (B, m)."""
        return self.e * (self.c / self.sigma)[:, None]

    @property
    def s_scale(self) -> Array:
        """Ratio of s to the s of the equilibrated program, (B, m)."""
        return self.sigma[:, None] / self.e

    def scale_program(self, program: ConeProgram) -> ConeProgram:
        """Equilibrate a program or a program tangent; the same map takes cotangents back to the original units."""
        P, A, c = program.structure.P, program.structure.A, self.c[:, None]
        x = self.x_scale
        return ConeProgram(
            program.structure,
            P=program.P * x[:, P.rows] * x[:, P.cols] / c,
            q=program.q * x / c,
            r=program.r / self.c,
            A=program.A * self.e[:, A.rows] * self.d[:, A.cols],
            b=program.b / self.s_scale,
        )

    def unscale_solution(self, found: Solution) -> Solution:
        """Convert a solution, or a ray, of the equilibrated program to the original units."""
        return replace(found, x=found.x * self.x_scale, y=found.y * self.y_scale, s=found.s * self.s_scale)

    def scale_solution(self, given: Solution) -> Solution:
        """Convert a solution of the original program to the units of the equilibrated one."""
        return replace(given, x=given.x / self.x_scale, y=given.y / self.y_scale, s=given.s / self.s_scale)


@final
class EquilibratedDifferentiator(AbstractDifferentiator):
    """Derivative in the original units, computed with the derivative of the equilibrated programs."""

    def __init__(self, units: Equilibration, inner: AbstractDifferentiator) -> None:
        """Wrap the derivative of the equilibrated programs."""
        self._units, self._inner = units, inner

    def vjp(
        self,
        cotangent: SolutionCotangent,
        *,
        on: Structure | None = None,
        observe: Callable[[ConeProgram], Array] = whole_data,
    ) -> tuple[ConeProgram, DerivativeReport]:
        """See ``AbstractDifferentiator``."""
        units = self._units
        x, y, s = units.x_scale, units.y_scale, units.s_scale
        inner = SolutionCotangent(cotangent.x * x, cotangent.y * y, None if cotangent.s is None else cotangent.s * s)
        data, report = self._inner.vjp(inner, on=on, observe=lambda data: observe(units.scale_program(data)))
        return units.scale_program(data), report

    def jvp(
        self, tangent: ConeProgram, *, observe: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """See ``AbstractDifferentiator``."""
        moved, report = self._inner.jvp(
            self._units.scale_program(tangent), observe=lambda moved: observe(self._outside(moved))
        )
        return self._outside(moved), report

    def objective_report(self, *, observe: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """See ``AbstractDifferentiator``."""
        return self._inner.objective_report(observe=lambda moved: observe(self._outside(moved)))

    def _outside(self, moved: SolutionTangent) -> SolutionTangent:
        units = self._units
        return SolutionTangent(moved.x * units.x_scale, moved.y * units.y_scale, moved.s * units.s_scale)


def _outside(units: Equilibration, relative: RelativeChange) -> RelativeChange:
    """Convert a measure of relative change in the original units to one in the units of the equilibrated programs."""

    def inner(dx: Array, dy: Array, respond: Callable[[ConeProgram], tuple[Array, Array]]) -> Array:
        def outside(tangent: ConeProgram) -> tuple[Array, Array]:
            x, y = respond(units.scale_program(tangent))
            return x * units.x_scale, y * units.y_scale

        return relative(dx * units.x_scale, dy * units.y_scale, outside)

    return inner


def differentiate_equilibrated(
    mode: DerivativeMode,
    system: KKTSystem,
    units: Equilibration | None,
    program: ConeProgram,
    solution: Solution,
    index: IndexArray | None,
    *,
    factor: KKTFactor | None = None,
    point: ComplementaryPoint | None = None,
    relative: RelativeChange | None = None,
) -> AbstractDifferentiator:
    """Differentiate at equilibrated programs and solutions; the derivative takes and returns the original units.

    Args:
        mode: the derivative mode.
        system: the KKT system of the programs' structure.
        units: the scale factors; None if the programs are not equilibrated.
        program: the equilibrated programs.
        solution: their solutions, in the same units.
        index: the elements to differentiate at; None for all.
        factor: see ``ExactDifferentiator``; for all elements, like ``point``.
        point: see ``ExactDifferentiator``.
        relative: see ``ExactDifferentiator``; for changes in the original units.
    """
    if index is not None:
        units = None if units is None else units.select(index)
        program, solution, factor = program.select(index), solution.select(index), None
        point = None if point is None else point.select(index)
    measure = relative if units is None or relative is None else _outside(units, relative)
    inner = mode(system, program, solution, factor=factor, point=point, relative=measure)
    return inner if units is None else EquilibratedDifferentiator(units, inner)
