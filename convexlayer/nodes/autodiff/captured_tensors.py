"""Inspection of a node's functions: their value for the first element, and the tensors that they capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.batch import Dims, Tensors
from convexlayer.nodes.autodiff.derivatives import apply_batched, inside_transform, vmap_error

__all__ = ["inspect_function"]


def inspect_function(
    function: Callable[..., Any], dims: Dims, *tensors: torch.Tensor, seen: set[Any] | None = None
) -> tuple[Any, Tensors]:
    """Evaluate a function for the first element, and find the leaves with requires_grad that it captures.

    The function runs under vmap even for one element, which detects random numbers and data-dependent branches.

    Args:
        function: returns a tensor, or a tuple of tensors.
        dims: batch axes of the tensors; at least one is 0.
        tensors: the arguments.
        seen: shapes, dtypes and devices for which the function has run under vmap already; it then runs without.

    Returns:
        The value, and the captured leaves.

    Raises:
        ProblemError: the function cannot be batched, draws random numbers, or captures a tensor of a transform of
            torch.func or of forward mode.
    """
    first = [t.detach()[:1] if dim == 0 else t.detach() for t, dim in zip(tensors, dims, strict=True)]
    try:
        kind = tuple((t.shape, t.dtype, t.device) for t in first)
        with torch.enable_grad():
            if seen is not None and kind in seen:
                found = apply_batched(function, dims, *first)
            else:
                found = torch.func.vmap(function, in_dims=dims)(*first)
                if seen is not None:
                    seen.add(kind)
    except RuntimeError as error:
        raise vmap_error(error) or error from error
    values = found if isinstance(found, tuple) else (found,)
    leaves = {id(leaf): leaf for value in values for leaf in _leaves(value)}
    if any(torch._C._functorch.is_functorch_wrapped_tensor(leaf) for leaf in leaves.values()):
        raise ProblemError(
            "a function of the node captures a tensor that torch.func transforms: pass it as a parameter"
        )
    if not inside_transform() and any(forward_ad.unpack_dual(value).tangent is not None for value in values):
        raise ProblemError(
            "a function of the node captures a tensor with a forward-mode tangent: pass it as a parameter"
        )
    return found, tuple(leaves.values())


def _leaves(value: torch.Tensor) -> list[torch.Tensor]:
    """Find the leaves of a tensor's autograd graph; under transforms also those of the wrapped tensors."""
    found, seen, waiting = [], set(), [value.grad_fn]
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
        waiting.append(value.grad_fn)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        waiting.extend(following for following, _ in node.next_functions)
    return found
