"""First derivatives of torch functions, for one element (torch.func) and for a batch (autograd).

The gradient of the sum over a batch of independent elements holds the gradient of every element, and likewise for each
row of a Jacobian, so a batch needs one vmap of the function and no further transform. The functions of one element stay
differentiable under vmap, jvp and vjp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._functorch import TransformType  # torch has no public query for the active transforms
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.autodiff.batch import Dims, Tensors

__all__ = [
    "MAX_LOOPED_ROWS",
    "apply_batched",
    "gradient",
    "inside_transform",
    "jacobian",
    "jacobian_vector_product",
    "matvec",
    "refuse_nested_forward_mode",
    "vector_jacobian_product",
    "vjp",
    "vmap_error",
]

Function = Callable[..., Any]

MAX_LOOPED_ROWS = 4
"""Rows of a Jacobian up to which one backward pass per row was measured faster than one batched pass."""

MAX_BATCHED_ENTRIES = 50_000
"""Entries of a batched Jacobian above which it is computed row by row: vmap would copy the parameters for each row."""

ROWS_PER_CHUNK = 64
"""Rows of a Jacobian computed in one vmapped backward pass; bounds its memory."""


def apply_batched(function: Function, dims: Dims, *tensors: torch.Tensor) -> Any:
    """Apply a function of one element to a batch; a batch of one avoids the overhead of vmap.

    Args:
        function: returns a tensor, or a tuple of tensors.
        dims: batch axes of the tensors, 0 or None; at least one is 0.
        tensors: the arguments.
    """
    sizes = {t.shape[0] for t, dim in zip(tensors, dims, strict=True) if dim == 0}
    if sizes != {1}:
        return torch.func.vmap(function, in_dims=dims)(*tensors)
    found = function(*(t.squeeze(0) if dim == 0 else t for t, dim in zip(tensors, dims, strict=True)))
    return tuple(value.unsqueeze(0) for value in found) if isinstance(found, tuple) else found.unsqueeze(0)


def gradient(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Differentiable gradient of a scalar; zero if it does not depend on ``at``."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(value, at, create_graph=True, allow_unused=True, materialize_grads=True)
    return found


def jacobian(rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Jacobian (batch, r, n) of ``rows`` (batch, r) in ``at`` (batch, n), element by element; detached."""
    size, count = rows.shape
    if not rows.requires_grad:
        return at.new_zeros(size, count, at.shape[-1])
    keywords: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    if count <= MAX_LOOPED_ROWS or (size > 1 and size * count * at.shape[-1] > MAX_BATCHED_ENTRIES):
        with torch.enable_grad():
            sums = (rows.sum(0) if size > 1 else rows.squeeze(0)).unbind()
        return torch.stack([torch.autograd.grad(each, at, **keywords)[0] for each in sums], 1)
    eye = torch.eye(count, dtype=rows.dtype, device=rows.device).unsqueeze(1).expand(count, size, count)
    row = torch.func.vmap(lambda cotangent: torch.autograd.grad(rows, at, cotangent, **keywords)[0])
    return torch.cat([row(part) for part in eye.split(ROWS_PER_CHUNK)]).movedim(0, 1)


def matvec(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Multiply matrices (..., m, n) by vectors (..., n)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def vjp(function: Function, *primals: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], Tensors]]:
    """torch.func.vjp with the types of a function of one output: its value and its pullback."""
    value, pull = torch.func.vjp(function, *primals)  # type: ignore[misc] # three values only with has_aux
    return value, pull


def vector_jacobian_product(function: Function, z: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """J'u, with J the Jacobian of a function at z."""
    _, pull = vjp(function, z)
    (result,) = pull(cotangent)
    return result


def jacobian_vector_product(function: Function, z: torch.Tensor, tangent: torch.Tensor) -> torch.Tensor:
    """J u for a function whose values have the shape of z: the transpose of the linear map u -> J'u.

    Uses reverse mode twice, since some operations have no forward mode.
    """
    return vector_jacobian_product(
        lambda u: vector_jacobian_product(function, z, u), torch.zeros_like(tangent), tangent
    )


def inside_transform() -> bool:
    """Whether a transform of torch.func is active."""
    return bool(retrieve_all_functorch_interpreters())


def refuse_nested_forward_mode() -> None:
    """Refuse to run the forward-mode rule of a custom function inside another forward mode.

    Raises:
        DerivativeError: a second forward-mode transform is active.
    """
    # The transform whose rule is running is still on the stack.
    if sum(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters()) > 1:
        raise DerivativeError(
            "forward mode over forward mode is not supported (torch would lose the outer tangents of a custom "
            "function in silence); use torch.func.hessian, or jacrev inside or outside"
        )


def vmap_error(error: RuntimeError) -> ProblemError | None:
    """Translate an error raised by torch.func.vmap inside a function of a node; None for any other error."""
    said = str(error)
    first = said.splitlines()[0] if said else ""
    if "randomness" in said or "random operation" in said:
        return ProblemError(
            "a function of the node draws random numbers, so that it differs at every call: draw them "
            "outside and pass them as a parameter, and put modules with dropout in eval mode"
        )
    if "vmap" in said:
        return ProblemError(
            f"a function of the node cannot be batched by torch.func.vmap: {first} Write it "
            "without data-dependent branches, .item() and in-place writes (torch.where selects)"
        )
    return None
