"""Values whose first derivative is known, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch

from convexlayer.errors import DerivativeError
from convexlayer.nodes.autodiff.derivatives import times

__all__ = ["attach", "once"]


def attach(value: torch.Tensor, jacobian: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """The value as a function of theta with this Jacobian; differentiating twice raises a DerivativeError.

    Args:
        value: (batch, n).
        jacobian: (batch, n, p).
        theta: (batch, p), or (p,) where the batch shares it.
    """
    attached: torch.Tensor = _Attach.apply(value, jacobian, theta)  # type: ignore[no-untyped-call]
    return attached


@final
class _Attach(torch.autograd.Function):
    """(value, jacobian, theta) -> value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: torch.Tensor, jacobian: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        _, jacobian, theta = inputs
        ctx.shared = theta.ndim == 1
        ctx.save_for_backward(jacobian, theta)
        ctx.save_for_forward(jacobian)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        jacobian, theta = ctx.saved_tensors
        gradient = (cotangent.unsqueeze(-2) @ jacobian).squeeze(-2)
        total = gradient.sum(0) if ctx.shared else gradient
        return (
            cotangent,
            None,
            once(total, (theta,), "ForwardMode gives first derivatives only: use Unrolled for higher ones"),
        )

    @staticmethod
    def jvp(ctx: Any, value: torch.Tensor | None, _: Any, theta: torch.Tensor | None) -> torch.Tensor:
        (jacobian, *_) = ctx.saved_tensors
        moved = torch.zeros_like(jacobian[..., 0]) if theta is None else times(jacobian, theta)
        return moved if value is None else value + moved


def once(value: torch.Tensor, sources: Sequence[torch.Tensor], message: str) -> torch.Tensor:
    """The value, which depends on its sources in an unknown way: differentiating it raises a DerivativeError."""
    marked: torch.Tensor = _Once.apply(message, value, *sources)  # type: ignore[no-untyped-call]
    return marked


@final
class _Once(torch.autograd.Function):
    """(message, value, *sources) -> value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, value: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        raise DerivativeError(ctx.message)
