"""Initial points of the forward solvers."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from convexlayer.errors import ShapeError
from convexlayer.nodes.autodiff.batch import Dims, Shape, Tensors

__all__ = ["Start", "initial_points"]

Start = torch.Tensor | Callable[..., torch.Tensor] | None
"""Initial point(s): a tensor (*variable), or several (k, *variable); a function of the parameters of one element that
returns either; or None for zeros."""


def initial_points(own: Start, warm: torch.Tensor | None, variable: Shape, dims: Dims, theta: Tensors) -> torch.Tensor:
    """Initial points of every element, (batch, k, n).

    Args:
        own: the start in the options of the node.
        warm: an earlier solution, (batch, n), which replaces it; or None.
        variable: shape of y.
        dims: batch axes of theta.
        theta: the parameters.

    Raises:
        ShapeError: a start does not have the shape of the variable.
    """
    size = next((t.shape[0] for t, dim in zip(theta, dims, strict=True) if dim == 0), 1)
    n = prod(variable)
    if warm is not None:
        return warm.unsqueeze(1)
    if own is None:
        return theta[0].new_zeros(size, 1, n)
    if isinstance(own, torch.Tensor):
        given = own.to(theta[0]).unsqueeze(0)
    elif any(dim == 0 for dim in dims):
        given = torch.func.vmap(own, in_dims=dims)(*theta)
    else:
        given = own(*theta).unsqueeze(0)
    shape = tuple(given.shape[1:])
    if shape[len(shape) - len(variable) :] != variable or len(shape) > len(variable) + 1:
        raise ShapeError(f"expected a start of shape {variable}, or several behind one axis, got {shape}")
    several = len(shape) > len(variable)
    return given.reshape(given.shape[0], shape[0] if several else 1, n).expand(size, -1, -1).detach()
