"""The linear system H z = v at a strict local minimum, as a closed form with its own pullback."""

from __future__ import annotations

from typing import ClassVar, final

import torch

from convexlayer.errors import DerivativeError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import ClosedForm, describe_elements

__all__ = ["HessianSolve"]

SINGULAR_FACTOR = 10.0
"""H of size n is singular where a pivot, relative to the diagonal, is at most this multiple of n eps."""


@final
class HessianSolve(ClosedForm):
    """z = H^-1 v for a positive definite H, by Cholesky.

    Pullback, with y = H^-1 z_bar:   H_bar = -(y z' + z y') / 2,   v_bar = y.

    Args:
        node: name of the node, for the message.
        advice: remedy if H is not positive definite, for the message.
    """

    arguments: ClassVar = {"H": ("n", "n"), "v": ("n",)}
    check_finite: ClassVar = False

    def __init__(self, node: str, advice: str) -> None:
        self._node, self._advice = node, advice

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        """Solve for z (..., n).

        Raises:
            DerivativeError: H is singular or indefinite: the minimum is not isolated, or at a kink of the objective.
        """
        H, v = inputs
        factor, info = torch.linalg.cholesky_ex(H)
        scale = H.diagonal(dim1=-2, dim2=-1)
        pivots = (factor.diagonal(dim1=-2, dim2=-1).square() / torch.where(scale > 0, scale, torch.inf)).amin(-1)
        wrong = (info != 0) | (pivots <= SINGULAR_FACTOR * H.shape[-1] * torch.finfo(H.dtype).eps)
        if bool(wrong.any()):
            raise DerivativeError(
                f"{self._node}: the Hessian at the solution is not positive definite{describe_elements(wrong)}, so the "
                f"solution has no derivative; {self._advice}"
            )
        return (torch.cholesky_solve(v[..., None], factor)[..., 0],)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        """Cotangents of H and v."""
        (z,) = solved
        (y,) = self.apply(inputs[0], cotangents[0])
        outer = y[..., :, None] * z[..., None, :]
        return -0.5 * (outer + outer.mT), y
