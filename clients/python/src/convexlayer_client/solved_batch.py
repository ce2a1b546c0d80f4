"""RemoteSolvedBatch: a batch of solutions on a server, with the derivatives of the solution map at them, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, final

import numpy as np

from convexlayer_client.arrays import Array
from convexlayer_client.client import Client
from convexlayer_client.errors import NotFoundError, ShapeError
from convexlayer_client.results import DerivativeReport, Options, Residuals, SolveResult

if TYPE_CHECKING:
    from convexlayer_client.expression import ProblemDocument

__all__ = ["ArraySpec", "RemoteProblem", "RemoteReport", "RemoteSolvedBatch", "one_each"]

SOLVED = ("optimal", "optimal_inaccurate")
"""The statuses of elements with a solution."""

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
class RemoteProblem:
    """A problem on a server, with what every request about it has in common.

    Attributes:
        client: The client.
        document: The document, to register the problem again.
        id: ID on the server.
        parameters: Names and shapes of the parameters.
        outputs: Names and shapes of the outputs.
        duals: Whether an output is a dual variable.
        solver: Name of a solver, or "auto".
        progress: Whether every request shows a progress bar.
    """

    client: Client
    document: ProblemDocument
    id: str
    parameters: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    duals: bool
    solver: str
    progress: bool

    @property
    def results(self) -> tuple[ArraySpec, ...]:
        """The outputs, and the objective value."""
        return (*self.outputs, ArraySpec("objective", ()))

    def run(self, request: Callable[..., T]) -> T:
        """Send a request; if the server no longer has the problem, register it and send the request again."""
        common = {"solver": self.solver, "progress": self.progress}
        try:
            return request(self.id, **common)
        except NotFoundError:
            self.client.register(self.document.body)
        return request(self.id, **common)


@final
class RemoteSolvedBatch:
    """A batch of B solutions on a server, with the derivatives of the solution map at them.

    Attributes:
        report: The report.
        objective: Objective values, (B,); NaN without a solution.
        outputs: The outputs, each (B, *shape); NaN for elements without a solution.
    """

    def __init__(self, problem: RemoteProblem, values: dict[str, Array], options: Options, result: SolveResult) -> None:
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

        Raises:
            ShapeError: The wrong number of cotangents or of entries in ``wrt``.
        """
        problem, parameters = self._problem, self._problem.parameters
        mask = one_each("entries in wrt", [True] * len(parameters) if wrt is None else wrt, parameters)
        requested = [spec.name for spec, want in zip(parameters, mask, strict=True) if want]
        entries = one_each("cotangents", cotangents, problem.results, None)
        given: dict[str, Array] = {}
        for (name, _), cotangent in zip(problem.results, entries, strict=True):
            if cotangent is not None:  # a variable may be returned twice
                sent = self._as_sent(cotangent)
                given[name] = given[name] + sent if name in given else sent
        summed = [name for name in requested if not self._batched[name]]
        again = per_element and bool(summed) and self.batch > 1
        result = problem.run(
            partial(
                problem.client.vjp,
                cotangents=given,
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
        gradients = tuple(found[spec.name] if want else None for spec, want in zip(parameters, mask, strict=True))
        return gradients, result.report

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

        Raises:
            ShapeError: The wrong number of tangents or of entries in ``of``.
        """
        problem, parameters, outputs = self._problem, self._problem.parameters, self._problem.outputs
        mask = one_each("entries in of", [True] * len(outputs) if of is None else of, problem.results, True)
        sent = {
            name: tangent if tangent.shape == shape else self._as_sent(tangent)
            for (name, shape), tangent in zip(parameters, one_each("tangents", tangents, parameters), strict=True)
            if tangent is not None
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

    def _as_sent(self, value: Array) -> Array:
        """Remove the batch axis if no parameter has one."""
        return value if self._result.meta["batched"] else value[0]

    def _with_axis(self, value: Array) -> Array:
        """Add the batch axis to an output if no parameter has one."""
        return value if self._result.meta["batched"] else value[None]


def one_each(what: str, given: Sequence[Any], specs: Sequence[ArraySpec], *last: Any) -> list[Any]:
    """Return ``given`` as a list with one entry for each of ``specs``; ``last`` is the last one if it was left out.

    Raises:
        ShapeError: The number of entries is wrong.
    """
    entries = [*given, *last] if len(given) == len(specs) - len(last) else list(given)
    if len(entries) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise ShapeError(f"expected {len(specs)} {what} (for {names}), got {len(given)}")
    return entries
