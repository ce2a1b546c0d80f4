"""RemoteConvexLayer: a torch module whose solves and derivatives happen on a server."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final, get_args

import cvxpy as cp
import torch

from convexlayer_client.client import Client
from convexlayer_client.errors import DerivativeError, FailedElementsError, ShapeError
from convexlayer_client.expression import to_document
from convexlayer_client.function import RemoteCall, RemoteProblem, RemoteReport, Solve, StateForm
from convexlayer_client.results import Options

__all__ = ["LayerErrors", "RemoteConvexLayer", "RemoteReport"]

ON_FAILURE = ("raise", "nan")
ON_DEGENERATE = ("warn", "report", "raise")


@final
@dataclass(frozen=True)
class LayerErrors:
    """What a layer raises: the client's errors, or another package's of the same signatures.

    Attributes:
        shape: Of tensors that do not fit.
        failed: Of elements without a solution.
        invalid: Likewise, where some of them have values that cannot be used.
        derivative: Of derivatives that cannot be trusted.
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

    The call is that of ``convexlayer.ConvexLayer``, which need not be installed here. Each tensor has its parameter's
    shape, or one leading batch axis; the two mix by broadcasting, and the gradient of a shared parameter is the sum
    over the batch. The server keeps what a solve found, so that backward need not solve again; where it has dropped it,
    or was started anew, backward computes it again from the parameters, and the answer is the same. A batch that is too
    large for one request is sent in parts. Numbers travel in double precision; dtype and device of the tensors come
    back in the outputs. Works under torch.no_grad, torch.autograd.gradcheck, torch.func.jvp and vjp; not under
    torch.func.vmap, where a batch of tensors does the same.
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
            parameters: Every parameter of the problem, in the order of the tensors.
            variables: What to return: variables of the problem, and dual variables of its constraints
                (``constraint.dual_variables[i]``).
            url: Where the server is; the environment's ``CONVEXLAYER_URL`` unless given.
            client: A client to use in place of ``url`` and ``api_key``, with its own options
                (``client.with_options(timeout_s=60)``); it is not closed by the layer.
            api_key: The server's key; ``CONVEXLAYER_API_KEY`` unless given.
            gp: The problem is a geometric program.
            on_failure: What to do when an element of a batch has no solution, or values that cannot be used: ``raise``
                a FailedElementsError that carries the others, or fill its outputs with ``nan``. Gradients of such
                elements are zero, the others' untouched.
            on_degenerate: What to do when a derivative may not exist or is inaccurate: ``warn`` (once a layer; of
                solutions that are inaccurate themselves the call warns once, too), ``report`` only, or ``raise`` a
                DerivativeError.
            solver: Name of a solver of the server, or ``auto``.
            options: Options of every call, complete or as changes to the server's.
            state: Where what a solve found is kept for backward: on the server under a ``handle``; ``portable``, with
                the outputs here, too, for a server that drops it early; or ``none``, and backward solves again.
            progress: Show a bar of the elements that are done, in every call and backward pass (needs tqdm).
            errors: What to raise instead of this package's errors.

        Raises:
            UnsupportedExpressionError: The problem cannot be stated as a document.
            ApiError: The server refuses the problem.
            TransportError: No server answers.
            ValueError: An argument is not one of its choices.
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
        self._judge = _Judge(on_degenerate, self._errors.derivative)
        document = to_document(problem, parameters, variables, gp=gp)
        self._remote = RemoteProblem(client or Client(url, api_key), document, solver, state, progress=progress)

    @property
    def problem_id(self) -> str:
        """The problem's id on the server."""
        return self._remote.id

    def extra_repr(self) -> str:
        """Names and id, for torch's repr."""
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
            tensors: One a parameter, of its shape or with one leading batch axis.
            options: Complete options, or changes to the layer's, for this call.
            warm_start: Taken as the local layer takes it, and not used: the server begins anew.

        Returns:
            One tensor a variable, with the batch axis if any input had it.

        Raises:
            ShapeError: Shapes or batch sizes do not fit.
            FailedElementsError: Elements without a solution, under ``on_failure="raise"``.
            ApiError: The server refuses the values; InvalidError where one that is no batch is not finite or violates
                an attribute.
            TransportError: No server answers.
        """
        outputs, report = self.solve(*tensors, options=options, warm_start=warm_start)
        self._judge.of_solutions(report)
        return outputs

    def solve(
        self,
        *tensors: torch.Tensor,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: RemoteReport | None = None,
    ) -> tuple[tuple[torch.Tensor, ...], RemoteReport]:
        """Like the call, with the report, which backward completes."""
        self._check(tensors)
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        call = RemoteCall(self._remote, Options.of(options, self._options), self._judge, keep=keep)
        *outputs, objective = Solve.apply(call, *tensors)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        report = call.report
        report.objective = objective  # the one that autograd knows
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
    named = ", ".join(f"{i} ({report.status[i]})" for i in report.failed[:8])
    more = f" and {len(report.failed) - 8} more" if len(report.failed) > 8 else ""
    known = "".join(f". Element {i}: {report.details[i]}" for i in sorted(report.details)[:3])
    return (
        f"{len(report.failed)} of {len(report.status)} elements have no solution: {named}{more}. The others are in "
        f"this error's outputs; on_failure='nan' returns them instead{known}"
    )


@final
class _Judge:
    """What becomes of derivatives that cannot be trusted, and of inaccurate solutions; warns once of each."""

    def __init__(self, on_degenerate: str, error: Callable[[str], Exception]) -> None:
        self._on_degenerate = on_degenerate
        self._error = error
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def __reduce__(self) -> tuple[Callable[..., _Judge], tuple[Any, ...]]:
        return _Judge, (self._on_degenerate, self._error)

    def of_solutions(self, report: RemoteReport) -> None:
        """Of a call that returns no report."""
        inaccurate = [str(i) for i, word in enumerate(report.status) if word == "optimal_inaccurate"]
        if inaccurate and self._on_degenerate != "report":
            self._warn(
                "solutions",
                f"the solutions of {len(inaccurate)} of {len(report.status)} elements are inaccurate: "
                f"{_first(inaccurate)}. The report of layer.solve(...) says how far: its status and residuals",
            )

    def __call__(self, report: RemoteReport) -> None:
        if self._on_degenerate == "report" or report.derivative is None:
            return
        failed = set(report.failed)
        doubtful = [
            f"{i} ({word})" for i, word in enumerate(report.derivative.status) if word != "ok" and i not in failed
        ]
        if not doubtful:
            return
        message = (
            f"the derivative of {len(doubtful)} of {len(report.status)} elements may not exist or is inaccurate: "
            f"{_first(doubtful)}. What is returned is a least-squares direction; report.derivative says how far to "
            "trust it"
        )
        if self._on_degenerate == "raise":
            raise self._error(message)
        self._warn("derivatives", message)

    def _warn(self, about: str, message: str) -> None:
        with self._lock:
            first = about not in self._said
            self._said.add(about)
        if first:
            warnings.warn(message + " (said once a layer; on_degenerate='report' is silent)", UserWarning, stacklevel=2)


def _first(named: list[str]) -> str:
    return f"{', '.join(named[:8])}{' ...' if len(named) > 8 else ''}"
