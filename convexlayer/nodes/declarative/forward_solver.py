"""Interface of the forward solvers, and solvers that wrap a given function; the derivative is independent of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from convexlayer.errors import SolverError
from convexlayer.nodes.autodiff.batch import Dims, Tensors, element_parameters
from convexlayer.nodes.declarative.nonlinear_program import Iterate, NonlinearProgram

__all__ = ["AbstractForwardSolver", "Given", "GivenBatch"]


class AbstractForwardSolver(ABC):
    """Solver of a batch of nonlinear programs. The caller verifies its result by the KKT residual.

    Attributes:
        restarts: whether the solver continues from its start, so that restarting it from its last point, or from near
            a saddle point, makes sense.
    """

    restarts: ClassVar[bool] = False

    @abstractmethod
    def solve(
        self, program: NonlinearProgram, start: torch.Tensor, dims: Dims, theta: Tensors, *, p: int, m: int, mu: float
    ) -> Iterate:
        """Solve.

        Args:
            program: the program.
            start: (batch, n).
            dims: batch axes of theta.
            theta: the parameters.
            p: number of equalities.
            m: number of inequalities.
            mu: barrier parameter 1 / t of the log-barrier problem to solve; 0 for the program itself.
        """


@final
@dataclass(frozen=True)
class Given(AbstractForwardSolver):
    """A given solution of one element, (*parameters) -> y, called once per element.

    Attributes:
        function: any code; returns a tensor or an array with as many numbers as the variable.
    """

    function: Callable[..., object]

    def solve(
        self, program: NonlinearProgram, start: torch.Tensor, dims: Dims, theta: Tensors, *, p: int, m: int, mu: float
    ) -> Iterate:
        """Call the function once per element, and estimate the multipliers."""
        rows = [
            torch.as_tensor(
                self.function(*element_parameters(dims, theta, i)), dtype=start.dtype, device=start.device
            ).detach()
            for i in range(len(start))
        ]
        return _given(program, start, torch.stack([row.reshape(-1) for row in rows]), dims, theta, p, m)


@final
@dataclass(frozen=True)
class GivenBatch(AbstractForwardSolver):
    """A given solution of the whole batch, (*parameters) -> y (batch, ...); all parameters have a batch axis.

    Attributes:
        function: any code; returns a tensor or an array.
    """

    function: Callable[..., object]

    def solve(
        self, program: NonlinearProgram, start: torch.Tensor, dims: Dims, theta: Tensors, *, p: int, m: int, mu: float
    ) -> Iterate:
        """Call the function once, and estimate the multipliers."""
        wide = [t if dim == 0 else t.expand(len(start), *t.shape) for t, dim in zip(theta, dims, strict=True)]
        y = torch.as_tensor(self.function(*wide), dtype=start.dtype, device=start.device).detach()
        return _given(program, start, y.reshape(len(y), -1) if y.ndim else y, dims, theta, p, m)


def _given(
    program: NonlinearProgram, start: torch.Tensor, y: torch.Tensor, dims: Dims, theta: Tensors, p: int, m: int
) -> Iterate:
    if y.shape != start.shape:
        raise SolverError(f"expected {start.shape[-1]} numbers per element from the given solver, got {tuple(y.shape)}")
    return program.multipliers(dims, y, theta, p=p, m=m)
