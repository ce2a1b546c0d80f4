"""Parameter shapes of a node and their batch axis."""

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
    "element_parameters",
    "flatten_warm_start",
    "fold_vmap_axis",
    "repeat_elements",
    "without_autocast",
]

Shape = tuple[int, ...]
"""Shape of a tensor; -1 stands for any size."""

Tensors = tuple[torch.Tensor, ...]

Dims = tuple[int | None, ...]
"""Batch axis of each tensor, as ``in_dims`` of torch.func.vmap: 0, or None for a tensor that all elements share."""


@final
@dataclass(frozen=True)
class Batch:
    """Parameters of one call of a node.

    Attributes:
        tensors: the parameters as given. Shared ones are not expanded, so that their gradients take no memory per
            element.
        dims: batch axis of each.
        size: number of elements; 1 if no parameter is batched.
        single: True if no parameter is batched; the outputs then have no batch axis.
    """

    tensors: Tensors
    dims: Dims
    size: int
    single: bool

    @staticmethod
    def of(shapes: Sequence[Shape], tensors: Sequence[torch.Tensor]) -> Batch:
        """Check tensors against the shapes of one element.

        Raises:
            ShapeError: a tensor has neither the shape of its parameter nor that shape behind one batch axis, or the
                batch axes differ in length, or one is empty.
            ProblemError: a tensor is not floating-point, or dtypes or devices differ.
        """
        if len(tensors) != len(shapes):
            raise ShapeError(f"expected {len(shapes)} parameters, got {len(tensors)}")
        tensors = [_promote_half_under_autocast(tensor) for tensor in tensors]
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
            is_batched = tensor.ndim == len(shape) + 1
            own = tuple(tensor.shape[is_batched:])
            if len(own) != len(shape) or any(want not in (-1, got) for want, got in zip(shape, own, strict=True)):
                raise ShapeError(
                    f"parameter {number}: expected {_format_shape(shape)}, or that behind one batch axis, got "
                    f"{tuple(tensor.shape)}"
                )
            if is_batched and not tensor.shape[0]:
                raise ShapeError(f"parameter {number}: expected at least one element, got a batch of 0")
            if is_batched and size not in (None, tensor.shape[0]):
                raise ShapeError(
                    f"parameter {number}: expected a batch of {size} as for the parameters before it, got "
                    f"{tensor.shape[0]}"
                )
            size = tensor.shape[0] if is_batched else size
            dims.append(0 if is_batched else None)
        return Batch(tuple(tensors), tuple(dims), 1 if size is None else size, size is None)

    def unbatched(self, output: torch.Tensor) -> torch.Tensor:
        """Drop the batch axis of an output (size, ...) if no parameter had one."""
        return output.squeeze(0) if self.single else output


def flatten_warm_start(given: torch.Tensor | None, variable: Shape, batch: Batch) -> torch.Tensor | None:
    """Flatten a warm start to (batch, n).

    Args:
        given: (*variable), or (batch, *variable); None for no warm start.
        variable: shape of one iterate.
        batch: parameters of the call.

    Returns:
        The iterates, or None (with a warning) if the batch size differs from that of the parameters.

    Raises:
        ShapeError: the shape does not fit the variable.
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
    """Return a context without autocast: linear algebra runs in the dtype of the parameters."""
    return torch.autocast(like.device.type, enabled=False)


def _promote_half_under_autocast(tensor: torch.Tensor) -> torch.Tensor:
    """Cast float16 and bfloat16 to float32 under autocast, as torch.linalg does."""
    half = isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half and torch.is_autocast_enabled(tensor.device.type) else tensor


def _format_shape(shape: Shape) -> str:
    sizes = ["any" if size == -1 else str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def element_parameters(dims: Dims, theta: Tensors, index: int | torch.Tensor) -> Tensors:
    """Select the parameters of one element, without their batch axis, or of several."""
    return tuple(t[index] if dim == 0 else t for t, dim in zip(theta, dims, strict=True))


def repeat_elements(dims: Dims, theta: Tensors, count: int) -> Tensors:
    """Repeat the parameters of every element ``count`` times in a row."""
    if count == 1:
        return theta
    return tuple(t.repeat_interleave(count, 0) if dim == 0 else t for t, dim in zip(theta, dims, strict=True))


def fold_vmap_axis(
    vmap_size: int, in_dims: Sequence[int | None], dims: Dims, tensors: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], Dims, int]:
    """Merge the axis added by vmap into the batch axis, for the vmap rule of an autograd function.

    Args:
        vmap_size: size of the vmap axis.
        in_dims: position of the vmap axis in each tensor; None where absent.
        dims: batch axes, not counting the vmap axis.
        tensors: the tensors.

    Returns:
        The tensors, their batch axes, and the batch size without the vmap axis. A tensor with neither axis stays
        shared; any other has (vmap_size * size, ...).
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
        folded.append(wide.expand(vmap_size, size, *shape).reshape(vmap_size * size, *shape))
    new = tuple(None if dim is None and own is None else 0 for dim, own in zip(in_dims, dims, strict=True))
    return folded, new, size
