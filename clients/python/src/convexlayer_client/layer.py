"""RemoteConvexLayer: a torch module that solves and differentiates on a server."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final, get_args

import cvxpy as cp
import torch

from convexlayer_client.autograd import RemoteCall, RemoteProblem, RemoteReport, Solve, StateForm
from convexlayer_client.client import Client
from convexlayer_client.errors import DerivativeError, FailedElementsError, ShapeError
from convexlayer_client.expression import to_document
from convexlayer_client.results import Options

__all__ = ["LayerErrors", "RemoteConvexLayer", "RemoteReport"]

ON_FAILURE = ("raise", "nan")
ON_DEGENERATE = ("warn", "report", "raise")

_MAX_LISTED = 8
"""Elements that a message lists."""

_MAX_DETAILS = 3
"""Elements whose details a message quotes."""


@final
@dataclass(frozen=True)
class LayerErrors:
    """The errors that a layer raises: those of the client, or of another package with the same signatures.

    Attributes:
        shape: Shapes or batch sizes do not match.
        failed: Elements have no solution.
        invalid: Elements have no solution, and some have invalid values.
        derivative: Derivatives may not exist or are inaccurate.
    """

    shape: Callable[[str], Exception] = ShapeError
    failed: Callable[..., Exception] = FailedElementsError
    invalid: Callable[..., Exception] = FailedElementsError
    derivative: Callable[[str], Exception] = DerivativeError


@final
class RemoteConvexLayer(torch.nn.Module):
    """theta -> solution of a convex problem, solved and differentiated on a server.

        layer = RemoteConvexLayer(problem, parameters=[A, b], variables=[x], url="http://127.0.0.1:8000")
        (solution,) = layer(A_tensor, b_tensor)
        loss(solution).backward()

    The interface is that of ``convexlayer.ConvexLayer``, which need not be installed. Each tensor has its parameter's
    shape, or a leading batch axis; they broadcast, and the gradient of a parameter without a batch axis is summed over
    the batch. The server keeps the state of a solve, so that backward need not solve again. If the state has expired,
    or the server was restarted, backward recomputes it from the parameters, with the same result. A batch that is too
    large for one request is sent in parts. Numbers are sent in double precision; the outputs have the dtype and device
    of the tensors. Supports torch.no_grad, torch.autograd.gradcheck, torch.func.jvp and torch.func.vjp, but not
    torch.func.vmap; use a batch of tensors instead.
    """

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
        on_failure: str = "raise",
        on_degenerate: str = "warn",
        solver: str = "auto",
        options: Options | Mapping[str, Any] | None = None,
        state: StateForm = "handle",
        progress: bool = False,
        errors: LayerErrors | None = None,
    ) -> None:
        """Register a problem.

        Args:
            problem: A DPP problem.
            parameters: All parameters of the problem, in the order of the tensors.
            variables: Outputs: variables of the problem, and dual variables of its constraints
                (``constraint.dual_variables[i]``).
            url: URL of the server; by default the variable ``CONVEXLAYER_URL``.
            client: A client to use instead of ``url`` and ``api_key``, with its own options
                (``client.with_options(timeout_s=60)``); the layer does not close it.
            api_key: Key of the server; by default the variable ``CONVEXLAYER_API_KEY``.
            gp: Whether the problem is a geometric program.
            on_failure: What to do if an element has no solution, or invalid values: ``raise`` a FailedElementsError,
                which holds the outputs of the other elements, or fill its outputs with ``nan``. Gradients of failed
                elements are zero; those of the others are not affected.
            on_degenerate: What to do if a derivative may not exist or is inaccurate: ``warn`` (once per layer; the call
                also warns once about inaccurate solutions), only ``report``, or ``raise`` a DerivativeError.
            solver: Name of a solver of the server, or ``auto``.
            options: Solver options of every call, complete or as changes to the defaults.
            state: Where the state of a solve is kept for backward: on the server (``handle``); also in the client
                (``portable``), in case it expires on the server; or nowhere (``none``), so that backward solves again.
            progress: Whether to show a progress bar in every call and backward pass (needs tqdm).
            errors: Errors to raise instead of those of this package.

        Raises:
            UnsupportedExpressionError: The problem cannot be expressed as a document.
            ApiError: The server rejects the problem.
            TransportError: No response arrives.
            ValueError: An argument has an unknown value.
        """
        super().__init__()
        _check_choice("on_failure", on_failure, ON_FAILURE)
        _check_choice("on_degenerate", on_degenerate, ON_DEGENERATE)
        _check_choice("state", state, get_args(StateForm))
        if client is not None and (url is not None or api_key is not None):
            raise ValueError("expected either url or client; a client has its own api_key, too")
        self._options = Options.of(options, Options())
        self._on_failure = on_failure
        self._shapes = [parameter.shape for parameter in parameters]
        self._errors = errors or LayerErrors()
        self._accuracy = _AccuracyReporter(on_degenerate, self._errors.derivative)
        document = to_document(problem, parameters, variables, gp=gp)
        self._remote = RemoteProblem(client or Client(url, api_key), document, solver, state, progress=progress)

    @property
    def problem_id(self) -> str:
        """ID of the problem on the server."""
        return self._remote.id

    def extra_repr(self) -> str:
        """Return names and ID for torch's repr."""
        document = self._remote.document
        return f"({', '.join(document.parameters)}) -> ({', '.join(document.outputs)}), {self.problem_id}"

    def forward(
        self,
        *tensors: torch.Tensor,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: RemoteReport | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Solve.

        Args:
            tensors: A tensor for each parameter, of its shape or with a leading batch axis.
            options: Solver options of this call, complete or as changes to those of the layer.
            warm_start: Accepted for compatibility with the local layer, and ignored.

        Returns:
            A tensor for each variable, with a batch axis if any input had one.

        Raises:
            ShapeError: Shapes or batch sizes do not match.
            FailedElementsError: Elements have no solution, and ``on_failure`` is ``raise``.
            ApiError: The server rejects the values; InvalidError if a value without a batch axis is not finite or
                violates an attribute.
            TransportError: No response arrives.
        """
        outputs, report = self.solve(*tensors, options=options, warm_start=warm_start)
        self._accuracy.check_solutions(report)
        return outputs

    def solve(
        self,
        *tensors: torch.Tensor,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: RemoteReport | None = None,
    ) -> tuple[tuple[torch.Tensor, ...], RemoteReport]:
        """Solve, and return the report, too; backward adds the derivative to it."""
        self._check(tensors)
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        call = RemoteCall(self._remote, Options.of(options, self._options), self._accuracy, keep=keep)
        *outputs, objective = Solve.apply(call, *tensors)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        report = call.report
        report.objective = objective  # with its graph
        if report.failed and self._on_failure == "raise":
            error = self._errors.invalid if "invalid" in report.status else self._errors.failed
            raise error(_failure_message(report), indices=report.failed, outputs=tuple(outputs), report=report)
        return tuple(outputs), report

    def _check(self, tensors: tuple[torch.Tensor, ...]) -> None:
        names = self._remote.document.parameters
        if len(tensors) != len(names):
            raise self._errors.shape(f"expected {len(names)} tensors (for {', '.join(names)}), got {len(tensors)}")
        sizes: dict[str, int] = {}
        for name, shape, tensor in zip(names, self._shapes, tensors, strict=True):
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                raise TypeError(f"parameter {name!r}: expected a tensor of floating point, got {_kind(tensor)}")
            if tuple(tensor.shape) == shape:
                continue
            if tuple(tensor.shape[1:]) != shape or tensor.ndim != len(shape) + 1:
                raise self._errors.shape(
                    f"parameter {name!r}: expected shape {list(shape)} or {['batch', *shape]}, got {list(tensor.shape)}"
                )
            sizes[name] = tensor.shape[0]
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name!r} has {size}" for name, size in sizes.items())
            raise self._errors.shape(f"batch sizes must be equal: {listed}")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def _failure_message(report: RemoteReport) -> str:
    named = ", ".join(f"{i} ({report.status[i]})" for i in report.failed[:_MAX_LISTED])
    more = f" and {len(report.failed) - _MAX_LISTED} more" if len(report.failed) > _MAX_LISTED else ""
    known = "".join(f". Element {i}: {report.details[i]}" for i in sorted(report.details)[:_MAX_DETAILS])
    return (
        f"{len(report.failed)} of {len(report.status)} elements have no solution: {named}{more}. The outputs of the "
        f"others are in this error's outputs; on_failure='nan' returns them instead{known}"
    )


@final
class _AccuracyReporter:
    """Reports inaccurate derivatives and solutions; warns at most once of each."""

    def __init__(self, on_degenerate: str, error: Callable[[str], Exception]) -> None:
        self._on_degenerate = on_degenerate
        self._error = error
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Callable[..., _AccuracyReporter], tuple[Any, ...]]:
        return _AccuracyReporter, (self._on_degenerate, self._error)

    def check_solutions(self, report: RemoteReport) -> None:
        """Check the solutions of a call that returns no report."""
        inaccurate = [str(i) for i, word in enumerate(report.status) if word == "optimal_inaccurate"]
        if inaccurate and self._on_degenerate != "report":
            self._warn(
                "solutions",
                f"the solutions of {len(inaccurate)} of {len(report.status)} elements are inaccurate: "
                f"{_first(inaccurate)}. See status and residuals in the report of layer.solve(...)",
            )

    def __call__(self, report: RemoteReport) -> None:
        if self._on_degenerate == "report" or report.derivative is None:
            return
        failed = set(report.failed)
        inaccurate_ = [
            f"{i} ({word})" for i, word in enumerate(report.derivative.status) if word != "ok" and i not in failed
        ]
        if not inaccurate_:
            return
        message = (
            f"the derivative of {len(inaccurate_)} of {len(report.status)} elements may not exist or is inaccurate: "
            f"{_first(inaccurate_)}. The returned derivative is a least-squares direction; see report.derivative "
            "for its accuracy"
        )
        if self._on_degenerate == "raise":
            raise self._error(message)
        self._warn("derivatives", message)

    def _warn(self, about: str, message: str) -> None:
        with self._lock:
            first = about not in self._warned
            self._warned.add(about)
        if first:
            warnings.warn(
                message + " (shown once per layer; on_degenerate='report' turns it off)", UserWarning, stacklevel=2
            )


def _first(named: list[str]) -> str:
    return f"{', '.join(named[:_MAX_LISTED])}{' ...' if len(named) > _MAX_LISTED else ''}"
