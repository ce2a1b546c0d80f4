"""The autograd function of a remote layer; forward, vjp and jvp each send one request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, final

import torch

from convexlayer_client.arrays import Array
from convexlayer_client.client import Client
from convexlayer_client.errors import DerivativeError, NotFoundError
from convexlayer_client.expression import ProblemDocument
from convexlayer_client.results import DerivativeReport, Options, Residuals, SolveResult

__all__ = ["RemoteCall", "RemoteProblem", "RemoteReport", "Solve", "StateForm"]

StateForm = Literal["handle", "portable", "none"]
"""Where the state of a solve is kept for its derivatives: on the server, also in the client, or nowhere."""

T = TypeVar("T")
Tensors = tuple[torch.Tensor, ...]

SOLVED = ("optimal", "optimal_inaccurate")


@final
@dataclass(eq=False)
class RemoteReport:
    """The report of one call.

    Attributes:
        result: Result of the server: statuses, residuals, iterations, solver and durations.
        objective: Objective values as a differentiable tensor, without the batch axis if no input had one.
        derivative: Report of the last derivative at these solutions; None before the first.
    """

    result: SolveResult
    objective: torch.Tensor
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
    def seconds(self) -> Mapping[str, float]:
        """Wall time of each step, on the server."""
        seconds: Mapping[str, float] = self.result.meta["seconds"]
        return seconds

    @property
    def failed(self) -> tuple[int, ...]:
        """Positions of the elements without a solution."""
        return tuple(i for i, status in enumerate(self.status) if status not in SOLVED)


@final
class RemoteProblem:
    """A problem on a server; if the server no longer has it, it is registered again.

    Args:
        client: Client of the server.
        document: The problem document.
        solver: Name of the solver.
        state: Where states are kept.
        progress: Whether to show a progress bar of the computed elements.
    """

    def __init__(
        self, client: Client, document: ProblemDocument, solver: str, state: StateForm, *, progress: bool = False
    ) -> None:
        self.client = client
        self.document = document
        self.solver = solver
        self.state = state
        self.progress = progress
        registered = client.register(document.body)
        self.id = registered.id
        self.needs_duals = any(name in registered.duals for name in document.outputs)

    def run(self, request: Callable[[], T]) -> T:
        """Send a request; if the server does not have the problem, register it and send the request again."""
        try:
            return request()
        except NotFoundError:
            self.client.register(self.document.body)
        return request()


@final
class RemoteCall:
    """One call of a layer, with its parameters and its report.

    Args:
        problem: The problem.
        options: Solver options of this call.
        on_derivative: Called with the report after every derivative; it may warn or raise.
        keep: Whether a derivative may follow, so that the state should be kept.
    """

    def __init__(
        self, problem: RemoteProblem, options: Options, on_derivative: Callable[[RemoteReport], None], *, keep: bool
    ) -> None:
        self._problem = problem
        self._options = options
        self._on_derivative = on_derivative
        self._keep = keep and problem.state != "none"
        self._parameters: dict[str, Array] = {}
        self._report: RemoteReport | None = None

    @property
    def report(self) -> RemoteReport:
        """The report; available after the forward pass."""
        if self._report is None:
            raise DerivativeError("the layer has not been solved yet")
        return self._report

    def solve(self, theta: Sequence[Array]) -> tuple[Array, ...]:
        """Solve; return the outputs and the objective values."""
        problem, document = self._problem, self._problem.document
        self._parameters = {name: value.copy() for name, value in zip(document.parameters, theta, strict=True)}
        result = problem.run(
            lambda: problem.client.solve(
                problem.id,
                self._parameters,
                solver=problem.solver,
                options=self._options,
                duals=problem.needs_duals,
                state=self._keep,
                portable=self._keep and problem.state == "portable",
                progress=problem.progress,
            )
        )
        objective = _as_outputs(result.objective, result)
        self._report = RemoteReport(result, torch.from_numpy(objective))
        outputs = {**result.variables, **result.duals}
        return (*(outputs[name] for name in document.outputs), objective)

    def vjp(self, cotangents: Sequence[Array | None], wrt: Sequence[bool]) -> tuple[Array, ...]:
        """Return the gradients of the parameters in ``wrt``, of the shapes of the tensors."""
        problem, document = self._problem, self._problem.document
        requested = [name for name, want in zip(document.parameters, wrt, strict=True) if want]
        given: dict[str, Array] = {}
        for name, cotangent in zip((*document.outputs, "objective"), cotangents, strict=True):
            if cotangent is not None:  # a variable may be returned twice
                given[name] = given[name] + cotangent if name in given else cotangent
        result = problem.run(
            lambda: problem.client.vjp(
                problem.id,
                given,
                self._parameters,
                state=self.report.result.state,
                portable=self.report.result.portable,
                wrt=requested,
                solver=problem.solver,
                options=self._options,
                progress=problem.progress,
            )
        )
        self._record(result.report)
        return tuple(result.gradients[name] for name in requested)

    def jvp(self, tangents: Sequence[Array | None]) -> tuple[Array, ...]:
        """Return the tangents of the outputs and of the objective values."""
        problem, document = self._problem, self._problem.document
        named = zip(document.parameters, tangents, strict=True)
        given = {name: tangent for name, tangent in named if tangent is not None}
        result = problem.run(
            lambda: problem.client.jvp(
                problem.id,
                given,
                self._parameters,
                state=self.report.result.state,
                portable=self.report.result.portable,
                solver=problem.solver,
                options=self._options,
                duals=problem.needs_duals,
                progress=problem.progress,
            )
        )
        self._record(result.report)
        objective = _as_outputs(result.objective, self.report.result)
        return (*(result.tangents[name] for name in document.outputs), objective)

    def _record(self, derivative: DerivativeReport) -> None:
        self.report.derivative = derivative
        self._on_derivative(self.report)


def _as_outputs(values: Array, result: SolveResult) -> Array:
    """Remove the batch axis of values if no input had one."""
    return values if result.meta["batched"] else values.reshape(())


class Solve(torch.autograd.Function):
    """(call, *theta) -> (*outputs, objective)."""

    @staticmethod
    def forward(call: RemoteCall, *theta: torch.Tensor) -> Tensors:
        """Solve."""
        like = _like(theta)
        return tuple(_tensor(value, like) for value in call.solve([_array(tensor) for tensor in theta]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep the call, and the dtypes and devices of the gradients."""
        ctx.call, *theta = inputs
        ctx.like = _like(theta)
        ctx.likes = [_like([tensor]) for tensor in theta]
        ctx.set_materialize_grads(False)
        ctx.theta = tuple(theta)  # not saved for backward: only their graph is needed, so their values may change

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Pull cotangents back."""
        wrt = ctx.needs_input_grad[1:]
        if not any(wrt) or all(cotangent is None for cotangent in cotangents):
            return (None,) * (1 + len(wrt))
        likes = [like for like, want in zip(ctx.likes, wrt, strict=True) if want]

        def gradients(*given: torch.Tensor | None) -> Tensors:
            values = ctx.call.vjp(_arrays(given), wrt)
            return tuple(_tensor(value, like) for value, like in zip(values, likes, strict=True))

        found = iter(_opaque(gradients, cotangents, ctx.theta))
        return (None, *(next(found) if want else None for want in wrt))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> Tensors:
        """Push tangents forward."""

        def push(*given: torch.Tensor | None) -> Tensors:
            return tuple(_tensor(value, ctx.like) for value in ctx.call.jvp(_arrays(given)))

        return _opaque(push, tangents, ctx.theta)


def _opaque(function: Callable[..., Tensors], tensors: Sequence[torch.Tensor | None], theta: Tensors) -> Tensors:
    """Return function(*tensors), with a dependence on theta."""
    outputs: Tensors = _Opaque.apply(function, len(tensors), *tensors, *theta)  # type: ignore[no-untyped-call]
    return outputs


class _Opaque(torch.autograd.Function):
    """(function, count, *tensors, *theta) -> function(*tensors), on plain tensors even within torch.func transforms.

    The result depends on theta, too, so that second derivatives with respect to theta raise an error.
    """

    @staticmethod
    def forward(function: Callable[..., Tensors], count: int, *tensors: torch.Tensor | None) -> Tensors:
        """Call the function of the first ``count`` tensors."""
        return function(*tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep nothing: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        """Raise: there is no second derivative."""
        raise DerivativeError(_NO_SECOND)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> Any:
        """Raise: there is no second derivative."""
        raise DerivativeError(_NO_SECOND)


_NO_SECOND = "the derivative of the layer cannot be differentiated again: second derivatives are not available"


def _like(theta: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return an empty tensor of the outputs' dtype and device (without parameters, float64 on the CPU)."""
    if not theta:
        return torch.empty(0, dtype=torch.float64)
    dtype = theta[0].dtype
    for tensor in theta[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.empty(0, dtype=dtype, device=theta[0].device)


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().to("cpu", torch.float64).numpy()
    return array


def _arrays(tensors: Sequence[torch.Tensor | None]) -> list[Array | None]:
    return [None if tensor is None else _array(tensor) for tensor in tensors]


def _tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(array).to(like.device, like.dtype)
