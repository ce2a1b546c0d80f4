"""RemoteSolutionMap: the solution map of a problem on a server, in NumPy.

It follows the protocol of the library's solution maps, ``convexlayer.layers.protocol``, so that
``convexlayer.ConvexLayer.from_solution_map`` makes a torch layer of it; the library itself need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, final, get_args

import numpy as np
from numpy.typing import ArrayLike

from convexlayer_client.arrays import Array
from convexlayer_client.client import Client
from convexlayer_client.errors import NotFoundError, ShapeError
from convexlayer_client.results import DerivativeReport, Options, Residuals, SolveResult

if TYPE_CHECKING:
    import cvxpy as cp

    from convexlayer_client.expression import ProblemDocument

__all__ = ["ArraySpec", "RemoteReport", "RemoteSolutionMap", "RemoteSolvedBatch", "StateForm"]

StateForm = Literal["handle", "portable", "none"]
"""Where the state of a solve is kept for its derivatives: on the server, also in the client, or nowhere."""

SOLVED = ("optimal", "optimal_inaccurate")

T = TypeVar("T")


class ArraySpec(NamedTuple):
    """Name and shape of a parameter or an output."""

    name: str
    shape: tuple[int, ...]


@final
@dataclass(eq=False)
class RemoteReport:
    """The report of one solve.

    Attributes:
        result: Result of the server: statuses, residuals, iterations, solver and durations.
        objective: Objective values, NaN without a solution; from a torch layer a differentiable tensor, without the
            batch axis if no input had one.
        seconds: Wall time of each step, on the server; after a derivative of a torch layer ``derivative``, with the
            network.
        derivative: Report of the last derivative of a torch layer at these solutions; None before the first.
    """

    result: SolveResult
    objective: Any
    seconds: dict[str, float]
    derivative: DerivativeReport | None = None

    @property
    def status(self) -> tuple[str, ...]:
        """Status of each element."""
        return self.result.status

    @property
    def details(self) -> Mapping[int, str]:
        """Messages about single elements, by position."""
        return self.result.details

    @property
    def residuals(self) -> Residuals:
        """Residuals of each element."""
        return self.result.residuals

    @property
    def iterations(self) -> Array:
        """Iterations of the solver."""
        return self.result.iterations

    @property
    def solver(self) -> str:
        """The solver that ran."""
        return str(self.result.meta["solver"])

    @property
    def reason(self) -> str:
        """Why it was chosen."""
        return str(self.result.meta["reason"])

    @property
    def failed(self) -> tuple[int, ...]:
        """Positions of the elements without a solution."""
        return tuple(i for i, status in enumerate(self.status) if status not in SOLVED)


@final
@dataclass(frozen=True)
class _RemoteProblem:
    """A problem on a server, with what every request about it has in common."""

    client: Client
    document: ProblemDocument
    id: str
    parameters: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    duals: bool
    solver: str
    progress: bool

    def run(self, request: Callable[..., T]) -> T:
        """Send a request; if the server no longer has the problem, register it and send the request again."""
        common = {"solver": self.solver, "progress": self.progress}
        try:
            return request(self.id, **common)
        except NotFoundError:
            self.client.register(self.document.body)
        return request(self.id, **common)


@final
class RemoteSolutionMap:
    """The map from parameters to solutions of a convex problem, computed on a server.

        solution_map = RemoteSolutionMap(problem, parameters=[A, b], variables=[x], url="http://127.0.0.1:8000")
        solved = solution_map.solve([A_values, b_values])
        (of_A, of_b), report = solved.vjp([weight])

    The server keeps the state of a solve, so that derivatives need not solve again. If the state has expired, or the
    server was restarted, they recompute it from the parameters, with the same result; a problem that the server no
    longer has is registered again. A batch that is too large for one request is sent in parts. Thread-safe, picklable.

    Args:
        problem: A DPP problem.
        parameters: All parameters of the problem, in the order of the values.
        variables: Outputs: variables of the problem, and dual variables of its constraints
            (``constraint.dual_variables[i]``).
        url: URL of the server; by default the variable ``CONVEXLAYER_URL``.
        client: A client to use instead of ``url`` and ``api_key``, with its own options
            (``client.with_options(timeout_s=60)``).
        api_key: Key of the server; by default the variable ``CONVEXLAYER_API_KEY``.
        gp: Whether the problem is a geometric program.
        solver: Name of a solver of the server, or ``auto``.
        options: Solver options of every call, complete or as changes to the defaults.
        state: Where the state of a solve is kept for its derivatives: on the server (``handle``); also in the client
            (``portable``), in case it expires on the server; or nowhere (``none``), so that derivatives solve again.
        progress: Whether to show a progress bar in every call (needs tqdm).

    Raises:
        UnsupportedExpressionError: The problem cannot be expressed as a document.
        ApiError: The server rejects the problem.
        TransportError: No response arrives.
        ValueError: An argument has an unknown value.
    """

    has_iterates = False

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        variables: Sequence[cp.Variable],
        *,
        url: str | None = None,
        client: Client | None = None,
        api_key: str | None = None,
        gp: bool = False,
        solver: str = "auto",
        options: Options | Mapping[str, Any] | None = None,
        state: StateForm = "handle",
        progress: bool = False,
    ) -> None:
        if state not in get_args(StateForm):
            raise ValueError(f"state must be one of {', '.join(get_args(StateForm))}, got {state!r}")
        if client is not None and (url is not None or api_key is not None):
            raise ValueError("expected either url or client; a client has its own api_key, too")
        from convexlayer_client.expression import to_document  # late, because CVXPY is optional and takes a second

        self._options, self._state = Options.of(options, Options()), state
        document, used = to_document(problem, parameters, variables, gp=gp), client or Client(url, api_key)
        registered = used.register(document.body)
        shapes = {**registered.parameters, **registered.variables, **registered.duals}
        self._problem = _RemoteProblem(
            used,
            document,
            registered.id,
            parameters=tuple(ArraySpec(name, shapes[name]) for name in document.parameters),
            outputs=tuple(ArraySpec(name, shapes[name]) for name in document.outputs),
            duals=any(name in registered.duals for name in document.outputs),
            solver=solver,
            progress=progress,
        )

    @property
    def problem_id(self) -> str:
        """ID of the problem on the server."""
        return self._problem.id

    @property
    def parameters(self) -> tuple[ArraySpec, ...]:
        """Names and shapes of the parameters."""
        return self._problem.parameters

    @property
    def outputs(self) -> tuple[ArraySpec, ...]:
        """Names and shapes of the outputs."""
        return self._problem.outputs

    @property
    def summary(self) -> str:
        """The problem's ID and the server."""
        return f"problem {self.problem_id} on {self._problem.client.url}"

    def solve(
        self,
        theta: Sequence[ArrayLike],
        *,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: RemoteReport | None = None,
        differentiable: bool = True,
    ) -> RemoteSolvedBatch:
        """Solve for a batch of parameters.

        Args:
            theta: An array for each parameter, of its shape or with a leading batch axis.
            options: Solver options of this call, complete or as changes to the defaults.
            warm_start: Accepted as local solution maps do, and ignored.
            differentiable: Whether derivatives will be asked for, so that the state is kept; without it they solve
                again.

        Raises:
            ShapeError: Shapes or batch sizes do not match.
            ApiError: The server rejects the values; InvalidError if a value without a batch axis is not finite or
                violates an attribute.
            TransportError: No response arrives.
        """
        problem, values = self._problem, self._checked(theta)
        changed, keep = Options.of(options, self._options), differentiable and self._state != "none"
        result = problem.run(
            partial(
                problem.client.solve,
                parameters=values,
                options=changed,
                duals=problem.duals,
                state=keep,
                portable=keep and self._state == "portable",
            )
        )
        return RemoteSolvedBatch(problem, values, changed, result)

    def _checked(self, theta: Sequence[ArrayLike]) -> dict[str, Array]:
        """Copy the values, by name, and check their shapes."""
        if len(theta) != len(self.parameters):
            names = ", ".join(spec.name for spec in self.parameters)
            raise ShapeError(f"expected {len(self.parameters)} values (for {names}), got {len(theta)}")
        values: dict[str, Array] = {}
        sizes: dict[str, int] = {}
        for (name, shape), given in zip(self.parameters, theta, strict=True):
            value = np.array(given, dtype=np.float64)
            if value.shape != shape:
                if value.shape[1:] != shape or value.ndim != len(shape) + 1:
                    expected = f"{list(shape)} or {['batch', *shape]}"
                    raise ShapeError(f"parameter {name!r}: expected shape {expected}, got {list(value.shape)}")
                sizes[name] = len(value)
            values[name] = value
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name!r} has {size}" for name, size in sizes.items())
            raise ShapeError(f"batch sizes must be equal: {listed}")
        return values


@final
class RemoteSolvedBatch:
    """A batch of B solutions on a server, with the derivatives of the solution map at them.

    Attributes:
        report: The report.
        objective: Objective values, (B,); NaN without a solution.
        outputs: The outputs, each (B, *shape); NaN for elements without a solution.
    """

    def __init__(
        self, problem: _RemoteProblem, values: dict[str, Array], options: Options, result: SolveResult
    ) -> None:
        self._problem, self._values, self._options, self._result = problem, values, options, result
        self._batched = {spec.name: values[spec.name].ndim > len(spec.shape) for spec in problem.parameters}
        self.objective = result.objective
        self.report = RemoteReport(result, result.objective, dict(result.meta["seconds"]))
        found = {**result.variables, **result.duals}
        self.outputs = tuple(self._with_axis(found[spec.name]) for spec in problem.outputs)

    @property
    def batch(self) -> int:
        """Number of elements."""
        return len(self._result.status)

    @property
    def iterates(self) -> tuple[Array, ...]:
        """The outputs: a server does not return the last iterates of elements without a solution."""
        return self.outputs

    def vjp(
        self, cotangents: Sequence[Array | None], *, wrt: Sequence[bool] | None = None, per_element: bool = True
    ) -> tuple[tuple[Array | None, ...], DerivativeReport]:
        """Return gradients of a loss with respect to the parameters.

        Args:
            cotangents: d loss / d output, each (B, *shape), and last d loss / d objective value, (B,), which may be
                left out; None is zero.
            wrt: Mask of the parameters; all by default.
            per_element: Whether gradients of parameters without a batch axis have one too, or are summed over the
                elements. A server sums them, so that it solves again for them if there are several elements.

        Returns:
            An array (B, *shape) for each parameter, or of the parameter's shape if summed; None for parameters not in
            ``wrt``. And the accuracy report.
        """
        problem, parameters, outputs = self._problem, self._problem.parameters, self._problem.outputs
        mask = [True] * len(parameters) if wrt is None else list(wrt)
        requested = [spec.name for spec, want in zip(parameters, mask, strict=True) if want]
        names = [*(spec.name for spec in outputs), "objective"]
        given: dict[str, Array] = {}
        for name, cotangent in zip(names, cotangents, strict=len(cotangents) != len(outputs)):
            if cotangent is not None:  # a variable may be returned twice
                given[name] = given[name] + cotangent if name in given else cotangent
        summed = [name for name in requested if not self._batched[name]]
        again = per_element and bool(summed) and self.batch > 1
        result = problem.run(
            partial(
                problem.client.vjp,
                cotangents=self._as_sent(given),
                parameters=self._spread(summed) if again else self._values,
                wrt=requested,
                options=self._options,
                state=None if again else self._result.state,
                portable=None if again else self._result.portable,
            )
        )
        found: dict[str, Array] = dict(result.gradients)
        if per_element and not again:
            found |= {name: found[name][None] for name in summed}
        return tuple(
            found[spec.name] if want else None for spec, want in zip(parameters, mask, strict=True)
        ), result.report

    def jvp(
        self, tangents: Sequence[Array | None], *, of: Sequence[bool] | None = None
    ) -> tuple[tuple[Array | None, ...], DerivativeReport]:
        """Return the tangents of the outputs and of the objective value.

        Args:
            tangents: One for each parameter, (B, *shape), or of the parameter's shape for all elements; None is zero.
            of: Mask of the outputs and, last, of the objective value, which may be left out; all by default.

        Returns:
            An array (B, *shape) for each output, and (B,) for the objective value; None for those not in ``of``. And
            the accuracy report.
        """
        problem, parameters, outputs = self._problem, self._problem.parameters, self._problem.outputs
        mask = [*([True] * len(outputs) if of is None else of), True][: len(outputs) + 1]
        named = {spec.name: tangent for spec, tangent in zip(parameters, tangents, strict=True) if tangent is not None}
        sent = {
            spec.name: named[spec.name] if named[spec.name].shape == spec.shape else self._as_sent(named)[spec.name]
            for spec in parameters
            if spec.name in named
        }
        result = problem.run(
            partial(
                problem.client.jvp,
                tangents=sent,
                parameters=self._values,
                options=self._options,
                duals=problem.duals,
                state=self._result.state,
                portable=self._result.portable,
            )
        )
        moved = (*(self._with_axis(result.tangents[spec.name]) for spec in outputs), result.objective)
        return tuple(value if want else None for value, want in zip(moved, mask, strict=True)), result.report

    def _spread(self, names: Sequence[str]) -> dict[str, Array]:
        """Return the values, with a batch axis for these parameters."""
        wide = {name: np.broadcast_to(self._values[name], (self.batch, *self._values[name].shape)) for name in names}
        return self._values | wide

    def _as_sent(self, rows: Mapping[str, Array]) -> dict[str, Array]:
        """Remove the batch axis if no parameter has one."""
        return dict(rows) if self._result.meta["batched"] else {name: value[0] for name, value in rows.items()}

    def _with_axis(self, value: Array) -> Array:
        """Add the batch axis to an output if no parameter has one."""
        return value if self._result.meta["batched"] else value[None]
