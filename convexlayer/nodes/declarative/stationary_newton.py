"""Newton's method on the optimality conditions, which finds a stationary point of any kind near the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from convexlayer.errors import SolverError
from convexlayer.nodes.autodiff.batch import Dims, Tensors
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.nonlinear_program import Iterate, KKTResidual, NonlinearProgram, Point
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.newton import TOL_EXPONENT, newton
from convexlayer.nodes.implicit.operator import Operator

__all__ = ["Stationary"]


@final
@dataclass(frozen=True)
class Stationary(AbstractForwardSolver):
    """Newton's method on f_Y + h_Y'lambda = 0, h = 0, with a line search on the residual.

    Attributes:
        tol: largest residual, each row relative to its value at the start, and largest Newton step relative to y; None
            for eps^(2/3) of the dtype.
        max_iter: largest number of iterations.
    """

    restarts: ClassVar[bool] = True

    tol: float | None = None
    max_iter: int = 100

    def solve(
        self, program: NonlinearProgram, start: torch.Tensor, dims: Dims, theta: Tensors, *, p: int, m: int, mu: float
    ) -> Iterate:
        """Solve; elements that do not converge keep their last iterate."""
        if m:
            raise SolverError("Stationary does not support inequalities: use InteriorPoint or a given solver")
        tol = torch.finfo(start.dtype).eps ** TOL_EXPONENT if self.tol is None else self.tol
        first = program.multipliers(dims, start, theta, p=p, m=0)
        operator = Operator(KKTResidual(program, p, 0), dims, first.point.z, theta, first.known)
        operator, count = newton(operator, Dense(), tol=tol, max_iter=self.max_iter)
        y, lam = operator.z[:, : start.shape[-1]], operator.z[:, start.shape[-1] :]
        return Iterate(Point(y, lam, y.new_zeros(len(y), 0)), count)
