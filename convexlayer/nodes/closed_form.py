"""A node whose solution and whose pullback are written by hand, and all that torch needs to know of it.

    y = solve(x),    x' = pullback(x, y, y')

A closed form gives these two, for inputs that share their leading axes; this module makes of them a function with
reverse and forward mode, derivatives of any order (of which one in forward mode), vmap, broadcasting and checks. The
forward tangent is the transpose of the pullback, which is linear in y'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch.autograd import forward_ad

from convexlayer.errors import ProblemError, ShapeError
from convexlayer.nodes.batch import Tensors
from convexlayer.nodes.calculus import refuse_nested_forward_mode

__all__ = ["ClosedForm", "elements", "like", "require_alike", "times"]


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
            ProblemError: tensors that are not real floating ones of one dtype and device, or not finite.
        """
        leading = self._leading(inputs)
        alike = [t.expand(leading + t.shape[t.ndim - len(axes) :]) for _, t, axes in self._named(inputs)]
        results = _apply(self, *([t.double() for t in alike] if self.double else alike))
        return tuple(result.to(inputs[0].dtype) for result in results[: self.outputs])

    def _named(self, inputs: Tensors) -> list[tuple[str, torch.Tensor, tuple[str, ...]]]:
        return [(name, t, axes) for (name, axes), t in zip(self.arguments.items(), inputs, strict=True)]

    def _leading(self, inputs: Tensors) -> tuple[int, ...]:
        """The common leading axes, after all checks that need no values."""
        require_alike(dict(zip(self.arguments, inputs, strict=True)))
        lengths: dict[str, int] = {}
        for name, tensor, axes in self._named(inputs):
            shape = tuple(tensor.shape[tensor.ndim - len(axes) :]) if tensor.ndim >= len(axes) else ()
            expected = tuple(lengths.get(axis, axis) for axis in axes)
            if len(shape) != len(axes) or any(lengths.setdefault(a, k) != k for a, k in zip(axes, shape, strict=True)):
                shown = ", ".join(str(length) for length in ("...", *expected))
                raise ShapeError(f"{name}: expected shape ({shown}), got {tuple(tensor.shape)}")
            if 0 in shape:
                raise ShapeError(f"{name}: expected at least one {axes[shape.index(0)]}, got {tuple(tensor.shape)}")
        shapes = {name: tuple(tensor.shape[: tensor.ndim - len(axes)]) for name, tensor, axes in self._named(inputs)}
        try:
            return tuple(torch.broadcast_shapes(*shapes.values()))
        except RuntimeError as error:
            shown = ", ".join(f"{name} has {shape}" for name, shape in shapes.items())
            raise ShapeError(f"leading axes must broadcast, but {shown}") from error


def _apply(form: ClosedForm, *inputs: torch.Tensor) -> Tensors:
    function: Any = _Apply.apply  # torch leaves it untyped
    results: Tensors = function(form, *inputs)
    return results


class _Apply(torch.autograd.Function):
    """(closed form, *inputs) -> (*outputs, *kept)."""

    @staticmethod
    def forward(form: ClosedForm, *inputs: torch.Tensor) -> Tensors:
        if form.checked:
            for name, tensor in zip(form.arguments, inputs, strict=True):
                if not bool(torch.isfinite(tensor).all()):
                    raise ProblemError(f"{name}: expected finite values, got NaN or infinite ones")
        return form.solve(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        form, *tensors = inputs
        ctx.form, ctx.count = form, len(tensors)
        ctx.mark_non_differentiable(*output[form.outputs :])
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        form, saved = ctx.form, ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[1:])
        found = form.pullback(saved[: ctx.count], saved[ctx.count :], cotangents[: form.outputs], wanted)
        return (None, *(value if want else None for value, want in zip(found, wanted, strict=True)))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        form = ctx.form
        refuse_nested_forward_mode()
        # Here the saved tensors are dual numbers still: linear maps in the pullback would ask for their own tangents.
        saved = tuple(forward_ad.unpack_dual(value).primal for value in ctx.saved_tensors)
        inputs, solved = saved[: ctx.count], saved[ctx.count :]

        def pull(*cotangents: torch.Tensor) -> Tensors:
            return tuple(form.pullback(inputs, solved, cotangents, (True,) * len(inputs)))

        transpose = torch.func.vjp(pull, *(torch.zeros_like(value) for value in solved[: form.outputs]))[1]
        given = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=True))
        return (*transpose(given), *(None for _ in solved[form.outputs :]))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], form: ClosedForm, *inputs: torch.Tensor) -> tuple[Tensors, Any]:
        fronted = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(inputs, in_dims[1:], strict=True)
        ]
        results = _apply(form, *fronted)
        return results, (0,) * len(results)


def require_alike(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors are real floating ones of one dtype on one device.

    Raises:
        ProblemError: one is not; the message has its name.
    """
    reference, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ProblemError(f"{name}: expected a real floating tensor, got {tensor.dtype}; convert it first")
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ProblemError(
                f"{name}: expected {first.dtype} on {first.device}, as {reference}, got {tensor.dtype} on "
                f"{tensor.device}; convert one of them"
            )


def like(value: torch.Tensor | float, other: torch.Tensor) -> torch.Tensor:
    """A number as a tensor of another's dtype and device; a tensor as it is."""
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, dtype=other.dtype, device=other.device)


def times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """The product (..., m) of matrices (..., m, n) and vectors (..., n)."""
    return (matrix @ vector[..., None])[..., 0]


def elements(wrong: torch.Tensor) -> str:
    """The positions of the batch where a condition (...) holds, for a message; empty without a batch."""
    if not wrong.ndim:
        return ""
    found = torch.argwhere(wrong)
    shown = ", ".join(str(tuple(index.tolist()) if wrong.ndim > 1 else int(index)) for index in found[:5])
    return f" in element{'s' if len(found) > 1 else ''} {shown}{', ...' if len(found) > 5 else ''}"
