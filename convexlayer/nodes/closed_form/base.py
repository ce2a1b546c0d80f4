"""A node whose solution and whose pullback are written by hand, and all that torch needs to know of it.

    y = solve(x),    x' = pullback(x, y, y')

A closed form gives these two, for inputs that share their leading axes; this module makes of them a function with
reverse and forward mode, derivatives of any order (of which one in forward mode), vmap, broadcasting and checks. The
forward tangent is the transpose of the pullback, which is linear in y'.

At small sizes the time of a call is what torch takes to record it, so a call records as little as it can: nothing where
nobody asks for derivatives (in a backward that is not itself differentiated), a function of reverse mode alone where no
transform is active, and only under torch.func or forward mode the function that knows all of them.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, ParamSpec, TypeVar, final

import torch
from torch._C import _are_functorch_transforms_active  # torch has no public way to ask
from torch.autograd import forward_ad

from convexlayer.errors import ProblemError, ShapeError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.autodiff.derivatives import refuse_nested_forward_mode

__all__ = ["ClosedForm", "elements", "entry", "least", "like", "product", "require_alike", "times"]

P = ParamSpec("P")
R = TypeVar("R")

PRECISIONS = (torch.float32, torch.float64)
"""The dtypes that closed forms work in: factorisations exist in no other."""


class ClosedForm(ABC):
    """A solution map with its pullback.

    Attributes:
        arguments: the inputs in order: name -> names of the trailing axes. Axes of one name have one length.
        outputs: how many of the tensors that ``solve`` gives are outputs.
        checked: whether values must be finite. Linear maps inside a pullback let NaN pass, as torch's own backward
            does.
        double: whether the work is done in float64 whatever comes in, as iterations to a tolerance need it; the dtype
            of the inputs comes back.
    """

    arguments: ClassVar[Mapping[str, tuple[str, ...]]]
    outputs: ClassVar[int] = 1
    checked: ClassVar[bool] = True
    double: ClassVar[bool] = False

    @abstractmethod
    def solve(self, *inputs: torch.Tensor) -> Tensors:
        """The outputs, and behind them what the pullback can use again (a factor): constants to every derivative.

        Inputs are plain tensors with equal leading axes, so decisions may depend on values. No output is an input.
        """

    @abstractmethod
    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Any:
        """Cotangents of the inputs, linear in those of the outputs, in differentiable torch operations.

        Args:
            inputs: as ``solve`` got them.
            solved: what ``solve`` gave. What was kept enters only maps that know their own derivative.
            cotangents: one an output.
            wanted: which inputs need theirs; the others may be None.
        """

    @final
    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """The outputs, for inputs whose leading axes broadcast.

        Raises:
            ShapeError: trailing axes that do not fit, or leading axes that do not broadcast.
            ProblemError: tensors that are not float32 or float64 ones of one dtype and device, or not finite.
        """
        leading = self._leading(inputs)
        common = leading[0]
        for shape in leading:
            if shape != common:
                inputs = self._broadcast(inputs, leading)
                break
        dtype = inputs[0].dtype
        if not self.double or dtype is torch.float64:
            return self.apply(*inputs)
        return tuple(result.to(dtype) for result in self.apply(*(t.double() for t in inputs)))

    @final
    def apply(self, *inputs: torch.Tensor) -> Tensors:
        """As a call, for inputs that need no check, as those of a map inside a pullback."""
        if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
            function: Any = _Apply.apply  # torch leaves it untyped
        elif torch.is_grad_enabled():
            function = _Reverse.apply
        else:
            return self.evaluate(*inputs)[: self.outputs]
        results: Tensors = function(self, *inputs)
        return results[: self.outputs]

    @final
    def evaluate(self, *inputs: torch.Tensor) -> Tensors:
        """What ``solve`` gives, for plain tensors that may have to be finite."""
        # Where a sum is finite all entries are; where it is not, it may have overflowed.
        if self.checked and not all(math.isfinite(tensor.sum().item()) for tensor in inputs):
            for name, tensor in zip(self.arguments, inputs, strict=True):
                if not bool(torch.isfinite(tensor).all()):
                    raise ProblemError(f"{name}: expected finite values, got NaN or infinite ones")
        return self.solve(*inputs)

    def _leading(self, inputs: Tensors) -> list[torch.Size]:
        """The leading axes of each input, after all checks that need no values."""
        first = inputs[0]
        lengths: dict[str, int] = {}
        leading = []
        for (name, axes), tensor in zip(self.arguments.items(), inputs, strict=True):
            tensors = isinstance(tensor, torch.Tensor) and isinstance(first, torch.Tensor)
            if not tensors or tensor.dtype not in PRECISIONS or not _alike(tensor, first):
                require_alike(dict(zip(self.arguments, inputs, strict=True)))
            shape = tensor.shape
            split = len(shape) - len(axes)
            if split < 0:
                raise self._misfit(name, inputs)
            for axis, length in zip(axes, shape[split:], strict=True):
                if lengths.setdefault(axis, length) != length or not length:
                    raise self._misfit(name, inputs)
            leading.append(shape[:split])
        return leading

    def _misfit(self, wrong: str, inputs: Tensors) -> ShapeError:
        """The error of the input whose trailing axes do not fit those of the inputs before it, or are empty."""
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


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """A public closed form, a function of tensors, as a whole to what surrounds it.

    Under ``torch.autocast`` it works in float32, as torch.linalg does; ``torch.compile`` leaves it as it is, with a
    break of the graph before and after.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                kind = value.device.type
                if torch.is_autocast_enabled(kind):
                    named = {name: _single(value) for name, value in kwargs.items()}
                    with torch.autocast(kind, enabled=False):
                        return function(*(_single(value) for value in args), **named)
                break
        return function(*args, **kwargs)

    disabled: Callable[P, R] = torch.compiler.disable(call)
    return disabled


def _single(value: Any) -> Any:
    """Tensors of autocast's lower precision in float32, anything else as it is."""
    lower = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if lower else value


def _pulled(form: ClosedForm, saved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
    """The pullback of what an autograd function saved, (*inputs, *solved), in full precision under autocast too."""
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
    found = _pulled(form, ctx.saved_tensors, cotangents[: form.outputs], wanted)
    return (None, *(value if want else None for value, want in zip(found, wanted, strict=True)))


class _Reverse(torch.autograd.Function):
    """(closed form, *inputs) -> outputs, in reverse mode outside of transforms."""

    backward = staticmethod(_backward)

    @staticmethod
    def forward(ctx: Any, form: ClosedForm, *inputs: torch.Tensor) -> Tensors:
        results = form.evaluate(*inputs)
        ctx.form = form
        ctx.save_for_backward(*inputs, *results)
        return results[: form.outputs]


class _Apply(torch.autograd.Function):
    """(closed form, *inputs) -> (*outputs, *kept), in every mode and under every transform."""

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
        # Here the saved tensors are dual numbers still: linear maps in the pullback would ask for their own tangents.
        saved = tuple(forward_ad.unpack_dual(value).primal for value in ctx.saved_tensors)
        inputs, solved = saved[: len(tangents)], saved[len(tangents) :]

        def pull(*cotangents: torch.Tensor) -> Tensors:
            return _pulled(form, saved, cotangents, (True,) * len(inputs))

        transpose = torch.func.vjp(pull, *(torch.zeros_like(value) for value in solved[: form.outputs]))[1]
        given = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=True))
        return (*transpose(given), *(None for _ in solved[form.outputs :]))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], form: ClosedForm, *inputs: torch.Tensor) -> tuple[Tensors, Any]:
        fronted = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(inputs, in_dims[1:], strict=True)
        ]
        function: Any = _Apply.apply
        results = function(form, *fronted)
        return results, (0,) * len(results)


def require_alike(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors are of one precision, float32 or float64, on one device.

    Raises:
        ProblemError: one is not; the message has its name.
    """
    reference, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in PRECISIONS:
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ProblemError(f"{name}: expected a float32 or float64 tensor, got {kind}; convert it first")
        if not _alike(tensor, first):
            raise ProblemError(
                f"{name}: expected {first.dtype} on {first.device}, as {reference}, got {tensor.dtype} on "
                f"{tensor.device}; convert one of them"
            )


def _alike(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.dtype == other.dtype and tensor.device == other.device


def like(value: torch.Tensor | float, other: torch.Tensor) -> torch.Tensor:
    """A number as a tensor of another's dtype and device; a tensor as it is."""
    return value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=other.dtype, device=other.device)


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right for equal leading axes, at a quarter of the fixed cost where they are one, as they usually are."""
    return torch.bmm(left, right) if left.ndim == 3 else left @ right


def times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """The product (..., m) of matrices (..., m, n) and vectors (..., n) with equal leading axes."""
    return product(matrix, vector.unsqueeze(-1)).squeeze(-1)


def least(values: torch.Tensor) -> float:
    """The smallest of some values, infinity of none: a check of them all that takes two calls of torch."""
    return values.min().item() if values.numel() else math.inf


def elements(wrong: torch.Tensor) -> str:
    """The positions of the batch where a condition (...) holds, for a message; empty without a batch."""
    if not wrong.ndim:
        return ""
    found = torch.argwhere(wrong)
    shown = ", ".join(str(tuple(index.tolist()) if wrong.ndim > 1 else int(index)) for index in found[:5])
    return f" in element{'s' if len(found) > 1 else ''} {shown}{', ...' if len(found) > 5 else ''}"
