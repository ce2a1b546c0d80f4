"""Autograd functions of a solution map: forward, vjp and jvp, each with a vmap rule.

All outputs have a leading batch axis. The additional output ``element`` holds the index of each row in the solved
batch. Under vmap, ``element`` is batched if and only if the forward pass was; from this the vmap rule of the derivative
knows whether a new axis of cotangents belongs to new elements, or holds several cotangents of the same elements.
"""

from __future__ import annotations

import copy
import inspect
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from convexlayer.errors import DerivativeError
from convexlayer.layers.protocol import (
    AbstractDerivativeReport,
    AbstractReport,
    AbstractSolutionMap,
    AbstractSolvedBatch,
)
from convexlayer.layers.rounds import Derivative, in_rounds, wanted
from convexlayer.layers.vmap_rules import Tensors, flattened, is_transformed, is_wrapped, unwrapped
from convexlayer.program import Array
from convexlayer.runtime.buffers import empty

__all__ = ["Call", "solve"]


class _Kind(NamedTuple):
    """dtype and device of the outputs."""

    dtype: torch.dtype
    device: torch.device


PLAIN = _Kind(torch.float64, torch.device("cpu"))
"""The kind of tensors that can share memory with NumPy arrays."""


def _apply(function: type[torch.autograd.Function], *inputs: Any) -> Tensors:
    """Typed wrapper of ``function.apply``."""
    outputs: Tensors = function.apply(*inputs)
    return outputs


class Call:
    """Arguments and results of one call of the layer.

    Attributes:
        solution_map: the solution map.
        options: the options of this call.
        warm_start: the report to start from, or None.
        keep_iterates: whether rows without a solution keep the solver's last iterate instead of NaN.
        differentiable: whether a derivative is expected.
        on_derivative: called with the report of the solve and that of the derivative after every derivative; it may
            warn or raise.
        kind: dtype and device of the parameters, set by the forward pass.
        solved: the solved batch, set by the forward pass.
    """

    def __init__(
        self,
        solution_map: AbstractSolutionMap,
        options: Any,
        warm_start: Any,
        *,
        keep_iterates: bool,
        differentiable: bool,
        on_derivative: Callable[[AbstractReport, AbstractDerivativeReport], None],
    ) -> None:
        """Prepare a call."""
        self.solution_map = solution_map
        self.options = options
        self.warm_start = warm_start
        self.keep_iterates = keep_iterates
        self.differentiable = differentiable
        self.on_derivative = on_derivative
        self.kind = PLAIN
        self.solved: AbstractSolvedBatch | None = None
        self._derivative: tuple[AbstractDerivativeReport, float] | None = None  # the last one, and its wall time
        self._report: Callable[[], Any] = lambda: None

    def result(self) -> AbstractSolvedBatch:
        """The solved batch, after the forward pass."""
        if self.solved is None:
            raise DerivativeError("the layer has not been solved yet")
        return self.solved

    def report(self, objective: torch.Tensor) -> Any:
        """The report for the caller, with objective values as a tensor; derivatives fill it while the caller keeps it.

        The autograd graph holds this call, and the report, by ``objective``, the graph. So the call refers to it
        weakly.
        """
        report = copy.copy(self.result().report)
        report.objective = objective
        self._report = weakref.ref(report)
        self._fill()  # in forward mode the derivative comes before
        return report

    def differentiated(self, derivative: AbstractDerivativeReport, since: float) -> None:
        """Fill the caller's report after a derivative that began at time ``since``, and call ``on_derivative``."""
        self._derivative = derivative, time.perf_counter() - since
        self._fill()
        self.on_derivative(self.result().report, derivative)

    def _fill(self) -> None:
        report = self._report()
        if report is not None and self._derivative is not None:
            report.derivative, seconds = self._derivative
            report.seconds = {**report.seconds, "derivative": seconds}


class _Solve(torch.autograd.Function):
    """(call, *theta) -> (*outputs, objective, element), all with a leading batch axis."""

    @staticmethod
    def forward(call: Call, *theta: torch.Tensor) -> Tensors:
        solved = call.solution_map.solve(
            [_array(t) for t in theta],
            options=call.options,
            warm_start=call.warm_start,
            differentiable=call.differentiable,
        )
        call.solved = solved
        values = solved.iterates if call.keep_iterates else solved.outputs
        call.kind = kind = _kind(theta)
        element = torch.arange(solved.batch, device=kind.device)
        return (*(_tensor(value, kind) for value in values), _tensor(solved.objective, kind), element)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        call, *theta = inputs
        ctx.call, ctx.solved = call, call.result()
        ctx.batched = [t.ndim > len(spec.shape) for t, spec in zip(theta, call.solution_map.parameters, strict=True)]
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[-1], *theta)
        ctx.save_for_forward(output[-1], *theta)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        element, *theta = ctx.saved_tensors
        wrt = tuple(ctx.needs_input_grad[1:])
        if not any(wrt) or all(c is None for c in cotangents[:-1]):
            return (None,) * (1 + len(wrt))
        rows = (element, *cotangents[:-1])
        per_element = is_wrapped(rows) or is_transformed((*rows, *theta))  # else the solution map sums
        arguments = (ctx.call, ctx.solved, wrt, per_element, *rows, *theta)
        gradients = iter(_derived(_Vjp, arguments, slice(4, 4 + len(rows))))
        return (
            None,
            *(
                None if not want else next(gradients) if batched or not per_element else next(gradients).sum(0)
                for want, batched in zip(wrt, ctx.batched, strict=True)
            ),
        )

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        element, *theta = ctx.saved_tensors
        expanded = [
            t if t is None or batched else t.expand(len(element), *t.shape)
            for t, batched in zip(tangents, ctx.batched, strict=True)
        ]
        arguments = (ctx.call, ctx.solved, element, *expanded, *theta)
        return (*_derived(_Jvp, arguments, slice(2, 3 + len(expanded))), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *theta: torch.Tensor) -> tuple[Tensors, tuple[int, ...]]:
        specs = call.solution_map.parameters
        fronted = [t if dim is None else t.movedim(dim, 0) for t, dim in zip(theta, in_dims[1:], strict=True)]
        inner = [
            t.ndim - (dim is not None) > len(s.shape) for t, dim, s in zip(fronted, in_dims[1:], specs, strict=True)
        ]
        sizes = [t.shape[dim is not None] for t, dim, b in zip(fronted, in_dims[1:], inner, strict=True) if b]
        batch, lanes = (sizes[0] if sizes else 1), info.batch_size

        def flat(t: torch.Tensor, dim: int | None, batched: bool) -> torch.Tensor:
            if dim is None and not batched:
                return t
            shape = t.shape[(dim is not None) + batched :]
            wide = t if dim is not None else t.unsqueeze(0)
            wide = wide if batched else wide.unsqueeze(1)
            return wide.expand(lanes, batch, *shape).reshape(lanes * batch, *shape)

        outputs = _apply(
            _Solve, call, *(flat(t, dim, b) for t, dim, b in zip(fronted, in_dims[1:], inner, strict=True))
        )
        return tuple(output.reshape(lanes, batch, *output.shape[1:]) for output in outputs), (0,) * len(outputs)


def solve(call: Call, theta: Tensors) -> Tensors:
    """Compute (*outputs, objective), each with a leading batch axis; the solved batch is stored in ``call``."""
    return _apply(_Solve, call, *theta)[:-1]


class _Derivative(torch.autograd.Function):
    """Base of the derivatives of the solution map. They take theta too, so that differentiating them again raises."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Save nothing: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        raise DerivativeError(_NO_SECOND)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> Any:
        raise DerivativeError(_NO_SECOND)


class _Vjp(_Derivative):
    """(call, solved, wrt, per_element, element, *cotangents, *theta) -> gradients of the parameters in wrt.

    With ``per_element`` they have one row per row of ``element``; else gradients of parameters without a batch axis are
    summed, and the rows are the whole batch.
    """

    @staticmethod
    def forward(
        call: Call,
        solved: AbstractSolvedBatch,
        wrt: tuple[bool, ...],
        per_element: bool,
        element: torch.Tensor,
        *rest: Any,
    ) -> Tensors:
        start = time.perf_counter()
        cotangents = [None if c is None else _array(c) for c in rest[: -len(wrt)]]
        if per_element:
            gradients, report = _by_element(element, solved, cotangents, lambda part, rows: part.vjp(rows, wrt=wrt))
        else:
            gradients, report = wanted(solved.vjp(cotangents, wrt=wrt, per_element=False))
        call.differentiated(report, start)
        return tuple(_tensor(gradient, call.kind, own=True) for gradient in gradients)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensors, tuple[int, ...]]:
        rows = slice(4, len(inputs) - len(inputs[2]))
        outputs = flattened(partial(_apply, _Vjp), info.batch_size, in_dims, inputs, rows)
        return outputs, (0,) * len(outputs)


class _Jvp(_Derivative):
    """(call, solved, element, *tangents, *theta) -> tangents (rows, *shape) of the outputs and of the objective."""

    @staticmethod
    def forward(call: Call, solved: AbstractSolvedBatch, element: torch.Tensor, *rest: Any) -> Tensors:
        start = time.perf_counter()
        tangents = [None if t is None else _array(t) for t in rest[: len(rest) // 2]]
        outputs, report = _by_element(element, solved, tangents, lambda part, rows: part.jvp(rows))
        call.differentiated(report, start)
        return tuple(_tensor(output, call.kind) for output in outputs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensors, tuple[int, ...]]:
        rows = slice(2, 3 + (len(inputs) - 3) // 2)
        outputs = flattened(partial(_apply, _Jvp), info.batch_size, in_dims, inputs, rows)
        return outputs, (0,) * len(outputs)


def _derived(derivative: type[_Derivative], inputs: tuple[Any, ...], rows: slice) -> Tensors:
    """Apply a derivative; the inputs in ``rows`` have one row per element, and may be wrapped by the legacy vmap."""
    if is_wrapped(inputs[rows]):
        return unwrapped(lambda *plain: _derived(derivative, plain, rows), inputs, rows)
    # A plain .backward() builds no graph of the derivative; without torch.func transforms the overhead of apply is
    # saved then.
    recorded = torch.is_grad_enabled() or is_transformed(inputs[rows.start :])
    return _apply(derivative, *inputs) if recorded else derivative.forward(*inputs)


_NO_SECOND = "the derivative of the layer cannot be differentiated again: second derivatives are not available"


class _Positional(inspect.Signature):
    """Signature of a function that is called with all its arguments by position, so that binding is trivial."""

    class Bound(NamedTuple):
        """The arguments as passed."""

        args: tuple[Any, ...]
        kwargs: dict[str, Any]

        def apply_defaults(self) -> None:
            """Do nothing: there are no defaults."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        return _Positional.Bound(args, kwargs)


# torch binds the arguments of every call to the signature of forward, which takes longer than solving a small problem.
for _function in (_Solve, _Vjp, _Jvp):
    setattr(_function.forward, "__signature__", _Positional())  # noqa: B010 (unknown to mypy)


def _by_element(
    element: torch.Tensor, solved: AbstractSolvedBatch, rows: list[Array | None], derivative: Derivative
) -> tuple[tuple[Array, ...], Any]:
    """``in_rounds`` for a tensor of elements."""
    if len(element) == solved.batch == 1:
        return wanted(derivative(solved, rows))
    return in_rounds(element.detach().cpu().numpy().astype(np.int64), solved, rows, derivative)


def _kind(theta: Any) -> _Kind:
    """The kind of the outputs for these parameters; float64 on the CPU without parameters."""
    if not theta:
        return PLAIN
    first, *others = theta
    dtype = first.dtype
    for t in others:
        if t.dtype != dtype:
            dtype = torch.promote_types(dtype, t.dtype)
    return _Kind(dtype, first.device)


def _array(tensor: torch.Tensor) -> Array:
    """Convert a tensor to a NumPy array; a view if dtype and device allow it."""
    plain = tensor.detach()
    if tensor.dtype != torch.float64 or not tensor.is_cpu:
        plain = plain.to("cpu", torch.float64)
    array: Array = plain.numpy()
    return array


def _tensor(array: Array, kind: _Kind, *, own: bool = False) -> torch.Tensor:
    """Convert a NumPy array to a tensor of this dtype on this device.

    The array is copied, because the caller may write to the tensor, unless it is contiguous and ``own`` says that there
    is no other reference to it.
    """
    if not own or not array.flags.c_contiguous:
        array, source = empty(*array.shape), array
        array[...] = source
    tensor = torch.from_numpy(array)
    return tensor if kind == PLAIN else tensor.to(kind.device, kind.dtype)
