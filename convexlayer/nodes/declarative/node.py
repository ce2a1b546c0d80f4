"""Base class of nodes defined by a nonlinear program that is given by torch functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch

from convexlayer.errors import FailedElementsError, ProblemError
from convexlayer.nodes.autodiff.batch import Batch, Shape, flatten_warm_start, without_autocast
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Function, NonlinearProgram, Point
from convexlayer.nodes.declarative.solution_search import SearchProblem, SolutionSearch
from convexlayer.nodes.implicit.equation import Equation, solve_implicitly
from convexlayer.nodes.implicit.node_report import DegeneracyPolicy, FailurePolicy, NodeReport
from convexlayer.nodes.implicit.operator import Operator
from convexlayer.runtime.graph_breaks import outside_graphs

__all__ = ["AbstractNode", "flat_function"]


class AbstractNode(torch.nn.Module, ABC):
    """theta -> y, a stationary point of a nonlinear program, differentiable as often as its functions allow.

        node = ArgminNode(f, variable=(3,), parameters=[(4, 3), (4,)])
        y = node(A, b)

    Each parameter has its own shape, or that shape behind one batch axis; both kinds mix by broadcasting, and the
    gradient of a shared parameter is the sum over the batch. The functions are torch functions of one element,
    f(y, *parameters), batched by torch.func.vmap: no data-dependent branches. All work is done in the dtype (float32 or
    float64) and on the device of the parameters. Supports torch.no_grad, autocast, torch.func (vmap, vjp, jvp, jacrev,
    jacfwd, hessian), gradcheck and gradgradcheck. torch.compile breaks its graph around a node. A node pickles if its
    functions do.

    Captured tensors with requires_grad, such as the weights of a module, get first derivatives. A function that is a
    torch.nn.Module becomes a submodule of the node.

    Args:
        program: the program of one element.
        variable: shape of y.
        parameters: shapes of the parameters, -1 for any size.
        solver: forward solver.
        options: start, tolerances and policies; None for the defaults.
        t: inverse barrier parameter of the point on the central path that the node returns; None for the solution.

    Attributes:
        program: as given.
        variable: as given.
        shapes: shapes of the parameters.
        solver: as given.
        options: as given, or the defaults.
        t: as given.
    """

    def __init__(
        self,
        program: NonlinearProgram,
        variable: Shape,
        parameters: Sequence[Shape],
        solver: AbstractForwardSolver,
        options: NodeOptions | None,
        *,
        t: float | None = None,
    ) -> None:
        super().__init__()
        options = options or NodeOptions()
        if not parameters:
            raise ProblemError("expected at least one parameter shape: a node is a function of its parameters")
        if t is not None and not t > 0:
            raise ProblemError(f"t must be positive, got {t}")
        self.program, self.variable, self.shapes = program, tuple(variable), [tuple(s) for s in parameters]
        self.solver, self.options, self.t = solver, options, t
        self._conditions = program if t is None else program.barrier_problem(t)
        self._on_failure = FailurePolicy(options.on_failure)
        self._on_degenerate = DegeneracyPolicy(options.on_degenerate)
        self._seen: set[Any] = set()
        for name, function in program.functions.items():
            while not isinstance(function, torch.nn.Module) and hasattr(function, "function"):
                function = function.function
            if isinstance(function, torch.nn.Module):
                self.add_module(name, function)

    minimises: ClassVar[bool] = True
    """Whether a solution must be a minimum; else any stationary point is one."""

    @abstractmethod
    def _singular_message(self, operator: Operator, index: int) -> str:
        """Describe why K is singular for one element."""

    @outside_graphs
    def forward(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> torch.Tensor:
        """Return y (*variable), or (batch, *variable) if any parameter has a batch axis.

        Args:
            parameters: the parameters.
            warm_start: an earlier y that replaces the start. One of another batch size, such as that of the last batch
                of a DataLoader, is ignored with a warning.

        Raises:
            ShapeError: shapes or batch sizes do not fit.
            ProblemError: a function returns a wrong type, shape or dtype, or cannot be batched.
            FailedElementsError: elements have no solution, under ``on_failure="raise"``.
        """
        return self.solve(*parameters, warm_start=warm_start)[0].y

    @outside_graphs
    def solve(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> tuple[Point, NodeReport]:
        """Return y and the multipliers, all differentiable, and the report, which backward passes complete."""
        batch = Batch.of(self.shapes, parameters)
        with without_autocast(batch.tensors[0]):
            return self._solve(batch, warm_start)

    def _solve(self, batch: Batch, warm_start: torch.Tensor | None) -> tuple[Point, NodeReport]:
        start = flatten_warm_start(warm_start, self.variable, batch)
        problem = SearchProblem(
            self.program, self._conditions, self.solver, self.options, self.variable, self.t, self.minimises
        )
        search = SolutionSearch(problem, batch, self._seen)
        equation = Equation(
            search.residual,
            search.solve,
            self.options.linear,
            search.derivative_check(self._on_degenerate, self._singular_message),
        )
        search.on_factor = equation.cache_factor
        z, solved = solve_implicitly(equation, batch, start, search.captured)
        z = self._on_failure.masked(z, solved, search.report)
        n, p = search.n, search.p
        y, lam, mu = z[:, :n].reshape(-1, *self.variable), z[:, n : n + p], z[:, n + p :]
        if self.t is not None and search.inequalities:
            mu = torch.func.vmap(search.barrier_multipliers, in_dims=(0, *batch.dims))(z[:, :n], *batch.tensors)
        point = Point(batch.unbatched(y), batch.unbatched(lam), batch.unbatched(mu))
        if self._on_failure.choice == "raise" and not search.report.all_solved:
            message = self._on_failure.message(search.report, search.tol) + search.dependent_equalities_message(batch)
            raise FailedElementsError(message, indices=search.report.failed, outputs=point, report=search.report)
        return point, search.report


def flat_function(function: Function, variable: Shape) -> Function:
    """Wrap a function of y (*variable) as a function of the vector (n,)."""
    return function if len(variable) == 1 else _FlatFunction(function, variable)


@final
class _FlatFunction:
    """A function of y (*variable), called with the vector (n,)."""

    def __init__(self, function: Function, variable: Shape) -> None:
        self.function, self._variable = function, variable

    def __call__(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return self.function(y.reshape(self._variable), *theta)
