"""Base class of nodes with a hand-written solution and pullback.

    y = solve(x),    x_bar = pullback(x, y, y_bar)

In the formulas of this package x_bar is the cotangent of x, the derivative of a loss in x, and A' the transpose of A.

The solution may take iterations; the pullback takes none, which is what these nodes have in common.

A subclass defines both for inputs with equal leading axes. This module adds reverse and forward mode, derivatives of
any order (at most one in forward mode), vmap, broadcasting and validation. The forward tangent is the transpose of the
pullback, which is linear in y_bar.

At small sizes the time of a call is that of autograd's recording. A call therefore records nothing if no derivatives
are requested (as in a backward pass that is not itself differentiated), a function with reverse mode alone if no
transform is active, and a function with all modes only under torch.func or forward mode.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, ParamSpec, TypeVar, final

import torch
from torch._C import _are_functorch_transforms_active  # torch has no public query
from torch.autograd import forward_ad

from convexlayer.arguments import MAX_LISTED
from convexlayer.errors import ProblemError, ShapeError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.autodiff.derivatives import refuse_nested_forward_mode
from convexlayer.runtime.graph_breaks import outside_graphs

__all__ = [
    "ClosedForm",
    "as_tensor_like",
    "batch_matmul",
    "batch_matvec",
    "closed_form_function",
    "describe_elements",
    "minimum",
    "require_same_type",
    "require_tensor",
]

P = ParamSpec("P")
R = TypeVar("R")

PRECISIONS = (torch.float32, torch.float64)
"""Dtypes of closed forms: torch has factorisations in no other."""


class ClosedForm(ABC):
    """A solution map and its pullback.

    Attributes:
        arguments: the inputs in order, as name -> names of the trailing axes. Axes of one name have equal lengths.
        outputs: number of leading tensors returned by ``solve`` that are outputs.
        check_finite: whether inputs must be finite. Linear maps inside a pullback propagate NaN, as torch's do.
        in_float64: whether ``solve`` runs in float64 for any input dtype, as iterations to a tight tolerance require;
            outputs have the dtype of the inputs.
    """

    arguments: ClassVar[Mapping[str, tuple[str, ...]]]
    outputs: ClassVar[int] = 1
    check_finite: ClassVar[bool] = True
    in_float64: ClassVar[bool] = False

    @abstractmethod
    def solve(self, *inputs: torch.Tensor) -> Tensors:
        """Compute the outputs, followed by intermediate results for the pullback (such as a factor).

        The intermediate results are constants in all derivatives. Inputs are plain tensors with equal leading axes, so
        control flow may depend on values. No output may be an input.
        """

    @abstractmethod
    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Any:
        """Map cotangents of the outputs to those of the inputs, linearly, by differentiable torch operations.

        Args:
            inputs: the inputs of ``solve``.
            solved: the results of ``solve``. Intermediate results may enter only maps with a derivative of their own.
            cotangents: one per output.
            wanted: which inputs need a cotangent; the others may be None.
        """

    @final
    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Evaluate for inputs whose leading axes broadcast.

        Raises:
            ShapeError: trailing axes do not fit, or leading axes do not broadcast.
            ProblemError: inputs are not float32 or float64 tensors of one dtype and device, or not finite.
        """
        leading = self._leading(inputs)
        common = leading[0]
        for shape in leading:
            if shape != common:
                inputs = self._broadcast(inputs, leading)
                break
        dtype = inputs[0].dtype
        if not self.in_float64 or dtype is torch.float64:
            return self.apply(*inputs)
        return tuple(result.to(dtype) for result in self.apply(*(t.double() for t in inputs)))

    @final
    def apply(self, *inputs: torch.Tensor) -> Tensors:
        """Evaluate without validation, as for maps inside a pullback."""
        if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
            function: Any = _AllModes.apply  # torch leaves it untyped
        elif torch.is_grad_enabled():
            function = _ReverseOnly.apply
        else:
            return self.evaluate(*inputs)[: self.outputs]
        results: Tensors = function(self, *inputs)
        return results[: self.outputs]

    @final
    def evaluate(self, *inputs: torch.Tensor) -> Tensors:
        """Run ``solve`` on plain tensors, after the check that they are finite."""
        # A finite sum proves finite entries; otherwise the sum may have overflowed.
        if self.check_finite and not all(math.isfinite(tensor.sum().item()) for tensor in inputs):
            for name, tensor in zip(self.arguments, inputs, strict=True):
                if not bool(torch.isfinite(tensor).all()):
                    raise ProblemError(f"{name}: expected finite values, got NaN or infinite ones")
        return self.solve(*inputs)

    def _leading(self, inputs: Tensors) -> list[torch.Size]:
        """Validate types and shapes; return the leading axes of each input."""
        first = inputs[0]
        lengths: dict[str, int] = {}
        leading = []
        for (name, axes), tensor in zip(self.arguments.items(), inputs, strict=True):
            tensors = isinstance(tensor, torch.Tensor) and isinstance(first, torch.Tensor)
            if not tensors or tensor.dtype not in PRECISIONS or not _same_type(tensor, first):
                require_same_type(dict(zip(self.arguments, inputs, strict=True)))
            shape = tensor.shape
            split = len(shape) - len(axes)
            if split < 0:
                raise self._shape_error(name, inputs)
            for axis, length in zip(axes, shape[split:], strict=True):
                if lengths.setdefault(axis, length) != length or not length:
                    raise self._shape_error(name, inputs)
            leading.append(shape[:split])
        return leading

    def _shape_error(self, wrong: str, inputs: Tensors) -> ShapeError:
        """Error for the input whose trailing axes are empty or do not fit those of the inputs before it."""
        lengths: dict[str, int] = {}
        for (name, axes), tensor in zip(self.arguments.items(), inputs, strict=True):
            shape = tuple(tensor.shape[max(tensor.ndim - len(axes), 0) :])
            if name == wrong:
                break
            lengths.update(zip(axes, shape, strict=True))
        if len(shape) == len(axes) and 0 in shape:
            return ShapeError(f"{name}: expected at least one {axes[shape.index(0)]}, got {tuple(tensor.shape)}")
        shown = ", ".join(str(length) for length in ("...", *(lengths.get(axis, axis) for axis in axes)))
        return ShapeError(f"{name}: expected shape ({shown}), got {tuple(tensor.shape)}")

    def _broadcast(self, inputs: Tensors, leading: list[torch.Size]) -> Tensors:
        common = max(leading, key=len)
        if any(shape and shape != common for shape in leading):
            try:
                common = torch.broadcast_shapes(*leading)
            except RuntimeError as error:
                pairs = zip(self.arguments, leading, strict=True)
                shown = ", ".join(f"{name} has {tuple(shape)}" for name, shape in pairs)
                raise ShapeError(f"leading axes must broadcast, but {shown}") from error
        return tuple(
            tensor if shape == common else tensor.expand(common + tensor.shape[len(shape) :])
            for tensor, shape in zip(inputs, leading, strict=True)
        )


def closed_form_function(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public closed form: run it in float32 under torch.autocast, and outside of torch.compile's graphs."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                kind = value.device.type
                if torch.is_autocast_enabled(kind):
                    named = {name: _half_to_float32(value) for name, value in kwargs.items()}
                    with torch.autocast(kind, enabled=False):
                        return function(*(_half_to_float32(value) for value in args), **named)
                break
        return function(*args, **kwargs)

    return outside_graphs(call)


def _half_to_float32(value: Any) -> Any:
    """Cast float16 and bfloat16 tensors to float32; return anything else unchanged."""
    lower = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if lower else value


def _pullback(form: ClosedForm, saved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
    """Apply the pullback to saved tensors (*inputs, *solved), in full precision under autocast too."""
    count = len(form.arguments)
    inputs, solved = saved[:count], saved[count:]
    kind = inputs[0].device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            found: Tensors = form.pullback(inputs, solved, cotangents, wanted)
    else:
        found = form.pullback(inputs, solved, cotangents, wanted)
    return found


def _backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    form = ctx.form
    wanted = tuple(ctx.needs_input_grad[1:])
    found = _pullback(form, ctx.saved_tensors, cotangents[: form.outputs], wanted)
    return (None, *(value if want else None for value, want in zip(found, wanted, strict=True)))


class _ReverseOnly(torch.autograd.Function):
    """(closed form, *inputs) -> outputs, with reverse mode, outside of transforms."""

    backward = staticmethod(_backward)

    @staticmethod
    def forward(ctx: Any, form: ClosedForm, *inputs: torch.Tensor) -> Tensors:
        results = form.evaluate(*inputs)
        ctx.form = form
        ctx.save_for_backward(*inputs, *results)
        return results[: form.outputs]


class _AllModes(torch.autograd.Function):
    """(closed form, *inputs) -> (*outputs, *intermediate results), with all modes and transforms."""

    backward = staticmethod(_backward)

    @staticmethod
    def forward(form: ClosedForm, *inputs: torch.Tensor) -> Tensors:
        return form.evaluate(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        form, *tensors = inputs
        ctx.form = form
        ctx.mark_non_differentiable(*output[form.outputs :])
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        form = ctx.form
        refuse_nested_forward_mode()
        # The saved tensors are still dual numbers; without unpacking, maps in the pullback would need their tangents.
        saved = tuple(forward_ad.unpack_dual(value).primal for value in ctx.saved_tensors)
        inputs, solved = saved[: len(tangents)], saved[len(tangents) :]

        def pull(*cotangents: torch.Tensor) -> Tensors:
            return _pullback(form, saved, cotangents, (True,) * len(inputs))

        transpose = torch.func.vjp(pull, *(torch.zeros_like(value) for value in solved[: form.outputs]))[1]
        given = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=True))
        return (*transpose(given), *(None for _ in solved[form.outputs :]))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], form: ClosedForm, *inputs: torch.Tensor) -> tuple[Tensors, Any]:
        fronted = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(inputs, in_dims[1:], strict=True)
        ]
        function: Any = _AllModes.apply
        results = function(form, *fronted)
        return results, (0,) * len(results)


def require_tensor(name: str, value: object) -> None:
    """Check that an argument is a float32 or float64 tensor, before its shape is read.

    Raises:
        ProblemError: it is not.
    """
    if not isinstance(value, torch.Tensor) or value.dtype not in PRECISIONS:
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise ProblemError(f"{name}: expected a float32 or float64 tensor, got {kind}; convert it first")


def require_same_type(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors have one dtype, float32 or float64, and one device.

    Raises:
        ProblemError: one differs; the message gives its name.
    """
    reference, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        require_tensor(name, tensor)
        if not _same_type(tensor, first):
            raise ProblemError(
                f"{name}: expected {first.dtype} on {first.device}, as {reference}, got {tensor.dtype} on "
                f"{tensor.device}; convert one of them"
            )


def _same_type(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.dtype == other.dtype and tensor.device == other.device


def as_tensor_like(value: torch.Tensor | float, other: torch.Tensor) -> torch.Tensor:
    """Convert a number to a tensor of the dtype and device of ``other``; return a tensor unchanged."""
    return value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=other.dtype, device=other.device)


def batch_matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right for equal leading axes; torch.bmm has a quarter of the overhead where there is one such axis."""
    return torch.bmm(left, right) if left.ndim == 3 else left @ right


def batch_matvec(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Multiply matrices (..., m, n) by vectors (..., n) with equal leading axes."""
    return batch_matmul(matrix, vector.unsqueeze(-1)).squeeze(-1)


def minimum(values: torch.Tensor) -> float:
    """Smallest value as a number, infinity if there is none: a cheap bound for all values."""
    return values.min().item() if values.numel() else math.inf


def describe_elements(wrong: torch.Tensor) -> str:
    """Text naming the batch indices at which a condition (...) holds; empty without a batch."""
    if not wrong.ndim:
        return ""
    found = torch.argwhere(wrong)
    shown = ", ".join(str(tuple(index.tolist()) if wrong.ndim > 1 else int(index)) for index in found[:MAX_LISTED])
    return f" in element{'s' if len(found) > 1 else ''} {shown}{', ...' if len(found) > MAX_LISTED else ''}"
