"""Scaling of a nonlinear program to units in which 1 is a large step, slope and violation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.autodiff.derivatives import matvec
from convexlayer.nodes.declarative.nonlinear_program import (
    Function,
    NonlinearProgram,
    Point,
    ProgramDerivatives,
    no_constraints,
)

__all__ = ["ProblemScaling"]


@final
@dataclass(frozen=True)
class ProblemScaling:
    """Units of a program, per element.

    Attributes:
        y: units of the variables, (batch, n).
        f: unit of the objective, (batch,).
        h: units of the equalities, (batch, p).
        g: units of the inequalities, (batch, m).
    """

    y: torch.Tensor
    f: torch.Tensor
    h: torch.Tensor
    g: torch.Tensor

    @staticmethod
    def at(point: Point, found: ProgramDerivatives) -> ProblemScaling:
        """Choose units at a point, as powers of two, so that scaling is exact.

        Variables get sqrt(phi / w_j) for the curvatures w_j, the objective the largest decrease phi = slope_j^2 / w_j
        of a Newton step in one variable. Constraints get their change over the units of the variables.
        """
        slope, y = found.slope.abs(), point.y.abs()
        w = found.hessian.diagonal(dim1=-2, dim2=-1).abs() + torch.where(y > 0, slope / torch.where(y > 0, y, 1.0), 0.0)
        w = torch.where(torch.isfinite(w), w, 0.0)
        # A variable without curvature gets that at which its slope promises the largest decrease of the others.
        decrease = torch.where(w > 0, slope.square() / torch.where(w > 0, w, 1.0), 0.0).amax(-1, keepdim=True)
        largest = w.amax(-1, keepdim=True)
        w = torch.where((w > 0) | (slope == 0) | (decrease == 0), w, slope.square() / decrease)
        w = torch.where(w > 0, w, torch.where(largest > 0, largest, 1.0))
        phi = (slope.square() / w).amax(-1)
        phi = torch.where(phi > 0, phi, (y.square() * w).amax(-1))
        phi = _power_of_two(torch.where((phi > 0) & torch.isfinite(phi), phi, 1.0))
        variable_scales = _power_of_two((phi.unsqueeze(-1) / w).sqrt())

        def units(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            size = matvec(rows.abs(), variable_scales)
            size = torch.where((size > 0) & torch.isfinite(size), size, values.abs())
            return _power_of_two(torch.where((size > 0) & torch.isfinite(size), size, 1.0))

        return ProblemScaling(variable_scales, phi, units(found.h, found.A), units(found.g, found.G))

    @property
    def tensors(self) -> Tensors:
        """Leading arguments of the scaled functions, before theta."""
        return self.y, 1.0 / self.f, 1.0 / self.h, 1.0 / self.g

    def scale_program(self, program: NonlinearProgram) -> NonlinearProgram:
        """The scaled program, whose functions take (y, *tensors, *theta)."""
        named = {name: getattr(program, name) for name in ("f", "h", "g")}
        return NonlinearProgram(
            **{
                name: function if function is no_constraints else _Scaled(function, number)
                for number, (name, function) in enumerate(named.items())
            }
        )

    def scale_derivatives(self, found: ProgramDerivatives) -> ProgramDerivatives:
        """Derivatives at a point, in these units."""
        y, f = self.y, self.f.unsqueeze(-1)
        return ProgramDerivatives(
            found.f / self.f,
            found.slope * y / f,
            y.unsqueeze(-1) * found.hessian * y.unsqueeze(-2) / f.unsqueeze(-1),
            found.h / self.h,
            found.A * y.unsqueeze(-2) / self.h.unsqueeze(-1),
            found.g / self.g,
            found.G * y.unsqueeze(-2) / self.g.unsqueeze(-1),
        )

    def unscale_optimality(self, value: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(L_Y, h) and its Jacobian, in the units of the program."""
        f = self.f.unsqueeze(-1)
        unknowns = torch.cat([self.y, f / self.h], -1)
        matrix = matrix * f.unsqueeze(-1) / unknowns.unsqueeze(-1) / unknowns.unsqueeze(-2)
        return value * f / unknowns, matrix

    def scale_point(self, point: Point) -> Point:
        """A point in these units."""
        f = self.f.unsqueeze(-1)
        return Point(point.y / self.y, point.lam * self.h / f, point.mu * self.g / f)

    def unscale_point(self, point: Point) -> Point:
        """A point of the scaled program in the units of the program."""
        f = self.f.unsqueeze(-1)
        return Point(point.y * self.y, point.lam * f / self.h, point.mu * f / self.g)


@final
class _Scaled:
    """A function of the scaled variables, scaled by its own unit."""

    def __init__(self, function: Function, number: int) -> None:
        self._function, self._number = function, number

    def __call__(self, y: torch.Tensor, variable_scales: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        factors, theta = rest[:3], rest[3:]
        return factors[self._number] * self._function(variable_scales * y, *theta)


def _power_of_two(value: torch.Tensor) -> torch.Tensor:
    return torch.exp2(torch.round(torch.log2(value)))
