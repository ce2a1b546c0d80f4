"""SciPy's minimisers as forward solvers, one element after another, in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import numpy as np
import torch
from scipy.optimize import minimize

from convexlayer.errors import SolverError
from convexlayer.nodes.autodiff.batch import Dims, Tensors, element_parameters
from convexlayer.nodes.autodiff.derivatives import jacobian_vector_product
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.nonlinear_program import Function, Iterate, NonlinearProgram

__all__ = ["ScipyMinimize"]

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

HESSIAN_METHODS = {"newton-cg", "trust-ncg", "trust-krylov", "trust-constr"}
"""Methods of scipy.optimize.minimize that use Hessian-vector products."""


@final
@dataclass(frozen=True)
class ScipyMinimize(AbstractForwardSolver):
    """scipy.optimize.minimize with derivatives by torch, for variables too large for a dense Hessian.

    Attributes:
        method: method of scipy.optimize.minimize: ``L-BFGS-B`` or ``trust-ncg`` without constraints, ``SLSQP`` with.
        options: options of the method.
    """

    restarts: ClassVar[bool] = True

    method: str = "L-BFGS-B"
    options: Mapping[str, Any] = field(default_factory=lambda: {"ftol": 0.0, "gtol": 1e-9, "maxiter": 10_000})

    def solve(
        self, program: NonlinearProgram, start: torch.Tensor, dims: Dims, theta: Tensors, *, p: int, m: int, mu: float
    ) -> Iterate:
        """Solve each element; SciPy's success flag is ignored, since the KKT residual decides."""
        if mu > 0 and m:
            raise SolverError("SciPy's methods do not support a barrier: use InteriorPoint where t is given")
        rows, counts = [], []
        for i in range(len(start)):
            y, count = self._one(program, start[i], element_parameters(dims, theta, i), p, m)
            rows.append(y)
            counts.append(count)
        y = torch.stack(rows)
        found = program.multipliers(dims, y, theta, p=p, m=m)
        return replace(found, iterations=torch.tensor(counts, device=y.device))

    def _one(
        self, program: NonlinearProgram, start: torch.Tensor, theta: Tensors, p: int, m: int
    ) -> tuple[torch.Tensor, int]:
        def tensor(y: Array) -> torch.Tensor:
            return torch.as_tensor(y).to(start)

        def array(value: torch.Tensor) -> Array:
            found: Array = value.detach().cpu().double().numpy()
            return found

        def slope(y: torch.Tensor) -> torch.Tensor:
            return torch.func.grad(program.f)(y, *theta)

        def objective(y: Array) -> tuple[float, Array]:
            gradient, value = torch.func.grad_and_value(program.f)(tensor(y), *theta)
            return float(value), array(gradient)

        def constraint(kind: str, function: Function) -> dict[str, Any]:
            return {
                "type": kind,
                "fun": lambda y: array(function(tensor(y), *theta)),
                "jac": lambda y: array(torch.func.jacrev(function)(tensor(y), *theta)),
            }

        # SciPy's inequalities are nonnegative where feasible.
        constraints = [constraint("eq", program.h)] if p else []
        constraints += [constraint("ineq", lambda y, *theta: -program.g(y, *theta))] if m else []
        hessian: dict[str, Any] = {}
        if self.method.lower() in HESSIAN_METHODS:
            hessian["hessp"] = lambda y, w: array(jacobian_vector_product(slope, tensor(y), tensor(w)))
        result = minimize(
            objective,
            array(start),
            jac=True,
            method=self.method,
            constraints=constraints,
            options=dict(self.options),
            **hessian,
        )
        return tensor(result.x), int(result.nit)
