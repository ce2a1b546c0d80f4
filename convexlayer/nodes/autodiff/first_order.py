"""Autograd functions with a first derivative only: a value with a known Jacobian, or with none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch

from convexlayer.errors import DerivativeError
from convexlayer.nodes.autodiff.derivatives import matvec

__all__ = ["attach_jacobian", "forbid_second_derivative"]


def attach_jacobian(value: torch.Tensor, jacobian: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Return the value as a function of theta with this Jacobian.

    Args:
        value: (batch, n).
        jacobian: (batch, n, p).
        theta: (batch, p), or (p,) if the batch shares it.

    Raises:
        DerivativeError: (when differentiated twice) only the first derivative is known.
    """
    attached: torch.Tensor = _AttachJacobian.apply(value, jacobian, theta)  # type: ignore[no-untyped-call]
    return attached


@final
class _AttachJacobian(torch.autograd.Function):
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
            forbid_second_derivative(
                total, (theta,), "ForwardMode gives first derivatives only: use Unrolled for higher ones"
            ),
        )

    @staticmethod
    def jvp(ctx: Any, value: torch.Tensor | None, _: Any, theta: torch.Tensor | None) -> torch.Tensor:
        (jacobian, *_) = ctx.saved_tensors
        moved = torch.zeros_like(jacobian[..., 0]) if theta is None else matvec(jacobian, theta)
        return moved if value is None else value + moved


def forbid_second_derivative(value: torch.Tensor, sources: Sequence[torch.Tensor], message: str) -> torch.Tensor:
    """Return the value of a first derivative such that differentiating it again raises a DerivativeError.

    Args:
        value: the derivative.
        sources: the tensors it depends on.
        message: text of the error.
    """
    marked: torch.Tensor = _ForbidSecondDerivative.apply(message, value, *sources)  # type: ignore[no-untyped-call]
    return marked


@final
class _ForbidSecondDerivative(torch.autograd.Function):
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
