"""Newton's method for the optimality conditions themselves: it goes to the nearest stationary point of any kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from convexlayer.errors import SolverError
from convexlayer.nodes.batch import Dims, Tensors
from convexlayer.nodes.forward import AbstractForwardSolver, Iterate
from convexlayer.nodes.linear import Dense, Operator
from convexlayer.nodes.nonlinear import NonlinearProgram, Optimality, Point

__all__ = ["Stationary"]

HALVINGS = 30


@final
@dataclass(frozen=True)
class Stationary(AbstractForwardSolver):
    """Newton's method on f_Y + h_Y'lambda = 0, h = 0, with a line search on |R|, each row in its unit at the start.

    Attributes:
        tol: largest |R| at the end, relative to that at the start, and Newton step relative to y; None for eps^(2/3)
            of the dtype.
        max_iter: iterations.
    """

    restarts: ClassVar[bool] = True

    tol: float | None = None
    max_iter: int = 100

    def solve(
        self, program: NonlinearProgram, start: torch.Tensor, dims: Dims, theta: Tensors, *, p: int, m: int, mu: float
    ) -> Iterate:
        """Solve; elements that do not converge keep their last iterate."""
        if m:
            raise SolverError("Stationary knows no inequalities: use InteriorPoint or a given solver")
        tol = torch.finfo(start.dtype).eps ** (2 / 3) if self.tol is None else self.tol
        linear = Dense()
        first = program.multipliers(dims, start, theta, p=p, m=0)
        operator = Operator(Optimality(program, p, 0), dims, first.z, theta)
        value = operator.value()
        unit = torch.where(value != 0, value.abs(), value.abs().amax(-1, keepdim=True))
        unit = torch.where(unit > 0, unit, 1.0)
        count = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        resting = torch.zeros_like(count, dtype=torch.bool)
        for _ in range(self.max_iter):
            size = torch.linalg.vector_norm(operator.value() / unit, dim=-1)
            step = linear.solve(linear.init(operator, symmetric=True), -operator.value(), transposed=False).solution
            small = (step.abs() <= tol * operator.z.abs()).all(-1)
            resting |= (size == 0) | ((size <= tol) & small)
            if bool(resting.all()):
                break
            count += ~resting
            length = torch.ones_like(size)
            z, accepted = operator.z, resting
            for _ in range(HALVINGS):
                trial = operator.at(operator.z + length.unsqueeze(-1) * step)
                new = torch.linalg.vector_norm(trial.value() / unit, dim=-1)
                good = ~accepted & (new <= (1.0 - 1e-4 * length) * size)
                z = torch.where(good.unsqueeze(-1), trial.z, z)
                accepted = accepted | good
                if bool(accepted.all()):
                    break
                length = torch.where(accepted, length, 0.5 * length)
            resting |= ~accepted
            operator = operator.at(z)
        y, lam = operator.z[:, : start.shape[-1]], operator.z[:, start.shape[-1] :]
        return Iterate(Point(y, lam, y.new_zeros(len(y), 0)), count)
