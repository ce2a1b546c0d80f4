"""Least squares and weighted least squares, with one QR factorisation for both passes.

    x = argmin sum_i w_i (a_i'x - b_i)^2,    A'W A x = A'W b

Pullback, with W^(1/2) A = Q R cached, r = b - A x and u = (A'WA)^-1 x' = R^-1 R^-T x':

    A' = W (r u' - A u x'),    b' = W A u,    w' = r * A u          (Gould 2026, least squares; there W = I)
"""

from __future__ import annotations

from typing import ClassVar, final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.batch import Tensors
from convexlayer.nodes.closed_form import ClosedForm, elements, entry, times

__all__ = ["least_squares", "weighted_least_squares"]


@entry
def least_squares(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """argmin |A x - b|^2.

    Args:
        A: (..., m, n), of full column rank; leading axes broadcast with those of b.
        b: (..., m).

    Returns:
        x, (..., n).

    Raises:
        ShapeError: shapes that do not fit.
        ProblemError: columns that are dependent to working accuracy, so that x is not unique.
    """
    ones = torch.ones(A.shape[-2:-1], dtype=A.dtype, device=A.device)
    return _LEAST_SQUARES(A, b, ones)[0]


@entry
def weighted_least_squares(A: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """argmin sum_i w_i (a_i'x - b_i)^2.

    Args:
        A: (..., m, n); its rows of positive weight have full column rank. Leading axes broadcast.
        b: (..., m).
        w: (..., m), nonnegative. The derivative exists at weights of zero too.

    Returns:
        x, (..., n).

    Raises:
        ShapeError: shapes that do not fit.
        ProblemError: a negative weight; or dependent columns.
    """
    return _LEAST_SQUARES(A, b, w)[0]


@final
class _LeastSquares(ClosedForm):
    arguments: ClassVar = {"A": ("m", "n"), "b": ("m",), "w": ("m",)}

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        A, b, w = inputs
        m, n = A.shape[-2:]
        if bool((w < 0).any()):
            raise ProblemError(f"w: expected nonnegative weights, got {float(w.min()):.3g}{elements((w < 0).any(-1))}")
        root = w.sqrt()
        # Householder form: Q'b costs O(mn), and Q itself, which only the textbook needs, O(mn^2).
        reflectors, scales = torch.geqrf(root[..., None] * A)
        R = reflectors[..., :n, :].triu()
        diagonal = R.diagonal(dim1=-2, dim2=-1).abs()
        dependent = diagonal.amin(-1) <= max(m, n) * torch.finfo(A.dtype).eps * diagonal.amax(-1)
        if m < n or bool(dependent.any()):
            where = "" if m < n else elements(dependent)
            raise ProblemError(
                f"A: expected full column rank, got dependent columns among its {m} rows of {n}{where}; "
                "drop columns, or add rows sqrt(lambda) I to A and zeros to b"
            )
        rotated = torch.ormqr(reflectors, scales, (root * b)[..., None], transpose=True)
        x = torch.linalg.solve_triangular(R, rotated[..., :n, :], upper=True)
        return x[..., 0], R

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        A, b, w = inputs
        x, R = solved
        (u,) = _GRAM_SOLVE.apply(A, w, R, cotangents[0])
        Au = times(A, u)
        r = b - times(A, x)
        # One product for the difference of two outer ones: it writes the largest array once.
        dA = torch.stack([w * r, -w * Au], -1) @ torch.stack([u, x], -2) if wanted[0] else A
        return dA, w * Au, r * Au


@final
class _GramSolve(ClosedForm):
    """u = (A'WA)^-1 v with the factor of A'WA = R'R given, and its derivatives with that same factor.

    With z = (A'WA)^-1 u':   A' = -W A (u z' + z u'),   w' = -A u * A z,   v' = z.
    """

    arguments: ClassVar = {"A": ("m", "n"), "w": ("m",), "R": ("n", "n"), "v": ("n",)}
    checked: ClassVar = False

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        _, _, R, v = inputs
        half = torch.linalg.solve_triangular(R.mT, v[..., None], upper=False)
        return (torch.linalg.solve_triangular(R, half, upper=True)[..., 0],)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        A, w, R, _ = inputs
        (u,) = solved
        (z,) = _GRAM_SOLVE.apply(A, w, R, cotangents[0])
        Au, Az = (A @ torch.stack([u, z], -1)).unbind(-1)
        dA = -torch.stack([w * Au, w * Az], -1) @ torch.stack([z, u], -2) if wanted[0] else A
        return dA, -Au * Az, torch.zeros_like(R), z


_LEAST_SQUARES = _LeastSquares()
_GRAM_SOLVE = _GramSolve()
