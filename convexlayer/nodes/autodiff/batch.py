"""The shapes of a node's parameters, and their batch axis."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import final

import torch

from convexlayer.errors import ProblemError, ShapeError

__all__ = [
    "Batch",
    "Dims",
    "Shape",
    "Tensors",
    "element",
    "first_iterates",
    "fold",
    "repeated",
    "take",
    "without_autocast",
]

Shape = tuple[int, ...]
"""A shape; -1 stands for any size."""

Tensors = tuple[torch.Tensor, ...]

Dims = tuple[int | None, ...]
"""The batch axis of each tensor, as torch.func.vmap's in_dims: 0, or None where all elements share the tensor."""


@final
@dataclass(frozen=True)
class Batch:
    """The parameters of one call of a node.

    Attributes:
        tensors: the parameters, as they came: shared ones are not expanded, so that their gradients are never held once
            an element.
        dims: their batch axes.
        size: the number of elements; 1 where no parameter is batched.
        single: whether no parameter is batched, so that the outputs have no batch axis either.
    """

    tensors: Tensors
    dims: Dims
    size: int
    single: bool

    @staticmethod
    def of(shapes: Sequence[Shape], tensors: Sequence[torch.Tensor]) -> Batch:
        """Compare tensors with the shapes of one element.

        Raises:
            ShapeError: a tensor has neither its parameter's shape nor that shape behind one batch axis, or two batch
                axes differ, or one is empty.
            ProblemError: a tensor is not floating-point, or dtypes or devices differ.
        """
        if len(tensors) != len(shapes):
            raise ShapeError(f"expected {len(shapes)} parameters, got {len(tensors)}")
        tensors = [_out_of_autocast(tensor) for tensor in tensors]
        dims: list[int | None] = []
        size: int | None = None
        for number, (shape, tensor) in enumerate(zip(shapes, tensors, strict=True)):
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise ProblemError(f"parameter {number}: expected a floating-point torch tensor, got {kind}")
            if tensor.dtype in (torch.float16, torch.bfloat16):
                raise ProblemError(
                    f"parameter {number} is {tensor.dtype}, in which no linear system can be solved: convert it, as by "
                    ".float()"
                )
            if tensor.dtype != tensors[0].dtype or tensor.device != tensors[0].device:
                raise ProblemError(
                    f"parameter {number} is {tensor.dtype} on {tensor.device}, parameter 0 {tensors[0].dtype} on "
                    f"{tensors[0].device}: convert them to one dtype and device"
                )
            batched = tensor.ndim == len(shape) + 1
            own = tuple(tensor.shape[batched:])
            if len(own) != len(shape) or any(want not in (-1, got) for want, got in zip(shape, own, strict=True)):
                raise ShapeError(
                    f"parameter {number}: expected {_shown(shape)}, or that behind one batch axis, got "
                    f"{tuple(tensor.shape)}"
                )
            if batched and not tensor.shape[0]:
                raise ShapeError(f"parameter {number}: expected at least one element, got a batch of 0")
            if batched and size not in (None, tensor.shape[0]):
                raise ShapeError(
                    f"parameter {number}: expected a batch of {size} as for the parameters before it, got "
                    f"{tensor.shape[0]}"
                )
            size = tensor.shape[0] if batched else size
            dims.append(0 if batched else None)
        return Batch(tuple(tensors), tuple(dims), 1 if size is None else size, size is None)

    def unbatched(self, output: torch.Tensor) -> torch.Tensor:
        """An output (size, ...) as the caller expects it: without the batch axis where no parameter had one."""
        return output.squeeze(0) if self.single else output


def first_iterates(given: torch.Tensor | None, variable: Shape, batch: Batch) -> torch.Tensor | None:
    """A warm start as (batch, n), of one iterate for all elements or one each; None where it is for another batch.

    Raises:
        ShapeError: it is not of the variable's shape.
    """
    if given is None:
        return None
    own = given.ndim - len(variable)
    if own not in (0, 1) or tuple(given.shape[own:]) != variable:
        raise ShapeError(f"warm_start: expected {variable} or {(batch.size, *variable)}, got {tuple(given.shape)}")
    if own and given.shape[0] != batch.size:
        warnings.warn(
            f"the warm start is one of {given.shape[0]} elements, the batch has {batch.size}: starting without it",
            UserWarning,
            stacklevel=4,
        )
        return None
    like = batch.tensors[0] if batch.tensors else given
    wide = given.detach().to(like.device, like.dtype).expand(batch.size, *variable)
    return wide.reshape(batch.size, prod(variable))


def without_autocast(like: torch.Tensor) -> torch.autocast:
    """Linear algebra is done in the dtype that the parameters have."""
    return torch.autocast(like.device.type, enabled=False)


def _out_of_autocast(tensor: torch.Tensor) -> torch.Tensor:
    """Under autocast linear algebra is done in float32."""
    half = isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half and torch.is_autocast_enabled(tensor.device.type) else tensor


def _shown(shape: Shape) -> str:
    sizes = ["any" if size == -1 else str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def element(dims: Dims, theta: Tensors, index: int) -> Tensors:
    """The parameters of one element."""
    return tuple(t[index] if dim == 0 else t for t, dim in zip(theta, dims, strict=True))


def take(dims: Dims, theta: Tensors, rows: torch.Tensor) -> Tensors:
    """The parameters of these elements."""
    return tuple(t[rows] if dim == 0 else t for t, dim in zip(theta, dims, strict=True))


def repeated(dims: Dims, theta: Tensors, times: int) -> Tensors:
    """The parameters with every element so many times in a row."""
    if times == 1:
        return theta
    return tuple(t.repeat_interleave(times, 0) if dim == 0 else t for t, dim in zip(theta, dims, strict=True))


def fold(
    lanes: int, in_dims: Sequence[int | None], dims: Dims, tensors: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], Dims, int]:
    """Merge vmap's axis into the batch axis: what stands in the vmap rule of a node's autograd function.

    Args:
        lanes: size of the axis that vmap adds.
        in_dims: where each tensor has it; None where it has not.
        dims: the batch axes, counted without vmap's.
        tensors: the tensors.

    Returns:
        The tensors, their batch axes, and the batch size of one lane. A tensor with neither axis stays shared; any
        other has (lanes * size, ...).
    """
    fronted = [t if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, in_dims, strict=True)]
    sizes = [t.shape[int(dim is not None)] for t, dim, own in zip(fronted, in_dims, dims, strict=True) if own == 0]
    size = sizes[0] if sizes else 1
    folded: list[torch.Tensor] = []
    for tensor, dim, own in zip(fronted, in_dims, dims, strict=True):
        if dim is None and own is None:
            folded.append(tensor)
            continue
        wide = tensor.unsqueeze(0) if dim is None else tensor
        wide = wide.unsqueeze(1) if own is None else wide
        shape = wide.shape[2:]
        folded.append(wide.expand(lanes, size, *shape).reshape(lanes * size, *shape))
    new = tuple(None if dim is None and own is None else 0 for dim, own in zip(in_dims, dims, strict=True))
    return folded, new, size
