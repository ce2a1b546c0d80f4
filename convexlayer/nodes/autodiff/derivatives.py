"""Derivatives of torch functions: of a batch by autograd alone, of one element by torch.func inside any transform.

A batch of independent elements needs no transform but one vmap: the gradient of the sum over the batch holds the
gradient of every element, and so for each row of a Jacobian. The forms for one element stay differentiable under vmap,
jvp and vjp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._functorch import TransformType  # torch has no public way to ask which transforms are active
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.autodiff.batch import Dims, Tensors

__all__ = [
    "FEW_ROWS",
    "batched",
    "gradient",
    "inside_transform",
    "jacobian",
    "product",
    "refuse_nested_forward_mode",
    "times",
    "translated",
    "transposed_product",
    "vjp",
]

Function = Callable[..., Any]

FEW_ROWS = 4
"""Up to so many rows of a Jacobian, one backward pass for each costs less than one batched pass for all."""

MANY_NUMBERS = 50_000
"""A Jacobian of a whole batch with more numbers is computed row by row: vmap would copy the parameters for each row."""

ROWS_AT_ONCE = 64
"""How many rows of a Jacobian are computed together: more would only need more memory."""


def batched(function: Function, dims: Dims, *tensors: torch.Tensor) -> Any:
    """What a function of one element gives for a batch; for a batch of one without the cost of vmap.

    Args:
        function: gives a tensor, or a tuple of tensors.
        dims: batch axes of the tensors, 0 or None; at least one is 0.
        tensors: the arguments.
    """
    sizes = {t.shape[0] for t, dim in zip(tensors, dims, strict=True) if dim == 0}
    if sizes != {1}:
        return torch.func.vmap(function, in_dims=dims)(*tensors)
    found = function(*(t.squeeze(0) if dim == 0 else t for t, dim in zip(tensors, dims, strict=True)))
    return tuple(value.unsqueeze(0) for value in found) if isinstance(found, tuple) else found.unsqueeze(0)


def gradient(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The gradient of a scalar, itself differentiable; zero where it does not depend on ``at``."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(value, at, create_graph=True, allow_unused=True, materialize_grads=True)
    return found


def jacobian(rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The Jacobian (batch, r, n) of rows (batch, r) in ``at`` (batch, n), whose elements are independent; detached."""
    size, count = rows.shape
    if not rows.requires_grad:
        return at.new_zeros(size, count, at.shape[-1])
    keywords: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    if count <= FEW_ROWS or (size > 1 and size * count * at.shape[-1] > MANY_NUMBERS):
        with torch.enable_grad():
            sums = (rows.sum(0) if size > 1 else rows.squeeze(0)).unbind()
        return torch.stack([torch.autograd.grad(each, at, **keywords)[0] for each in sums], 1)
    eye = torch.eye(count, dtype=rows.dtype, device=rows.device).unsqueeze(1).expand(count, size, count)
    row = torch.func.vmap(lambda cotangent: torch.autograd.grad(rows, at, cotangent, **keywords)[0])
    return torch.cat([row(part) for part in eye.split(ROWS_AT_ONCE)]).movedim(0, 1)


def times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """The product (..., m) of matrices (..., m, n) and vectors (..., n)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def vjp(function: Function, *primals: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], Tensors]]:
    """The value of a function and its pullback; torch.func.vjp, with the types of a function of one output."""
    value, pull = torch.func.vjp(function, *primals)  # type: ignore[misc] # three come only if asked for
    return value, pull


def transposed_product(function: Function, z: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """J'u, with J the Jacobian of a function at z."""
    _, pull = vjp(function, z)
    (result,) = pull(cotangent)
    return result


def product(function: Function, z: torch.Tensor, tangent: torch.Tensor) -> torch.Tensor:
    """J u for a function whose values have the shape of z: the transpose of the linear map u -> J'u.

    Reverse mode alone: not every operation has a forward mode.
    """
    return transposed_product(lambda u: transposed_product(function, z, u), torch.zeros_like(tangent), tangent)


def inside_transform() -> bool:
    """Whether a transform of torch.func is active."""
    return bool(retrieve_all_functorch_interpreters())


def refuse_nested_forward_mode() -> None:
    """Called by the forward-mode rule of a custom function: it may not run inside another forward mode.

    Raises:
        DerivativeError: a forward-mode transform is active around the one whose rule is running.
    """
    # The transform whose rule is running is still on the stack.
    if sum(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters()) > 1:
        raise DerivativeError(
            "forward mode over forward mode is not supported (torch would lose the outer tangents of a custom "
            "function in silence); use torch.func.hessian, or jacrev inside or outside"
        )


def translated(error: RuntimeError) -> ProblemError | None:
    """What to say of an error that torch.func.vmap has raised inside a function of a node; None for any other."""
    said = str(error)
    first = said.splitlines()[0] if said else ""
    if "randomness" in said or "random operation" in said:
        return ProblemError(
            "a function of the node draws random numbers, so that it is another function at every call: draw them "
            "outside and pass them as a parameter, and put modules with dropout in eval mode"
        )
    if "vmap" in said:
        return ProblemError(
            f"a function of the node cannot be batched by torch.func.vmap: {first} Write it "
            "without data-dependent branches, .item() and in-place writes (torch.where selects)"
        )
    return None
