"""RemoteSolutionMap: the solution map of a problem on a server, in NumPy.

It follows the protocol of the library's solution maps, ``convexlayer.layers.protocol``, so that
``convexlayer.ConvexLayer.from_solution_map`` makes a torch layer of it; the library itself need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final, get_args

import numpy as np
from numpy.typing import ArrayLike

from convexlayer_client.arrays import Array
from convexlayer_client.client import Client
from convexlayer_client.errors import ShapeError
from convexlayer_client.results import Options
from convexlayer_client.solved_batch import ArraySpec, RemoteProblem, RemoteReport, RemoteSolvedBatch, one_each

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["RemoteSolutionMap", "StateForm"]

StateForm = Literal["handle", "portable", "none"]
"""Where the state of a solve is kept for its derivatives: on the server, also in the client, or nowhere."""


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
        self._problem = RemoteProblem(
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
        values: dict[str, Array] = {}
        sizes: dict[str, int] = {}
        for (name, shape), given in zip(self.parameters, one_each("values", theta, self.parameters), strict=True):
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
