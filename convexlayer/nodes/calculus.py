"""Products with the Jacobian of a torch function, by reverse mode alone: not every operation has a forward mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._C._functorch import TransformType  # torch has no public way to ask which transforms are active
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from convexlayer.errors import DerivativeError
from convexlayer.nodes.batch import Tensors

__all__ = ["product", "refuse_nested_forward_mode", "transposed_product", "vjp"]

Function = Callable[..., torch.Tensor]


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
    """J u for a function whose values have the shape of z: the transpose of the linear map u -> J'u."""
    return transposed_product(lambda u: transposed_product(function, z, u), torch.zeros_like(tangent), tangent)


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
