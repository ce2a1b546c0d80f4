"""The linear system H z = v at a strict local minimum, as a map that knows its own derivative."""

from __future__ import annotations

from typing import ClassVar, final

import torch

from convexlayer.errors import DerivativeError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import ClosedForm, elements

__all__ = ["HessianSolve"]


@final
class HessianSolve(ClosedForm):
    """z = H^-1 v for a positive definite H, by Cholesky.

    With y = H^-1 (cotangent of z):   H' = -(y z' + z y') / 2,   v' = y.

    Args:
        node: the node's name, for the message.
        advice: what to try where H is not positive definite.
    """

    arguments: ClassVar = {"H": ("n", "n"), "v": ("n",)}
    checked: ClassVar = False

    def __init__(self, node: str, advice: str) -> None:
        self._node, self._advice = node, advice

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        """z (..., n).

        Raises:
            DerivativeError: H is singular or indefinite: the minimum is not isolated, or a kink of the objective.
        """
        H, v = inputs
        factor, info = torch.linalg.cholesky_ex(H)
        scale = H.diagonal(dim1=-2, dim2=-1)
        pivots = (factor.diagonal(dim1=-2, dim2=-1).square() / torch.where(scale > 0, scale, torch.inf)).amin(-1)
        wrong = (info != 0) | (pivots <= 10.0 * H.shape[-1] * torch.finfo(H.dtype).eps)
        if bool(wrong.any()):
            raise DerivativeError(
                f"{self._node}: the Hessian at the solution is not positive definite{elements(wrong)}, so the solution "
                f"has no derivative; {self._advice}"
            )
        return (torch.cholesky_solve(v[..., None], factor)[..., 0],)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        """Cotangents of H and v."""
        (z,) = solved
        (y,) = self.apply(inputs[0], cotangents[0])
        outer = y[..., :, None] * z[..., None, :]
        return -0.5 * (outer + outer.mT), y
