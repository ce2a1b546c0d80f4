"""Orthogonal Procrustes and the nearest simplex equiangular tight frame, through the polar factor.

    U = argmin |A - U B|_F^2   subject to U'U = I          N = A B' = U H,   H = U'N symmetric

Pullback of the polar factor, with cotangent G of U:

    N' = U X + (I - U U') G H^-1,    H X + X H = U'G - G'U          (the second term where U is not square)
"""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch

from convexlayer.errors import ProblemError, ShapeError
from convexlayer.nodes.batch import Tensors
from convexlayer.nodes.closed_form import ClosedForm, elements, entry, like, require_alike

__all__ = ["nearest_simplex_etf", "orthogonal_procrustes"]


@entry
def orthogonal_procrustes(A: torch.Tensor, B: torch.Tensor, *, rotation: bool = False) -> torch.Tensor:
    """argmin |A - U B|_F over U with orthonormal columns.

    Args:
        A: (..., d, n); leading axes broadcast with those of B.
        B: (..., e, n), e <= d.
        rotation: require det(U) = 1 as well (Kabsch), for e = d.

    Returns:
        U, (..., d, e).

    Raises:
        ShapeError: shapes that do not fit.
        ProblemError: U is not unique, because A B' has too small a rank.
    """
    require_alike({"A": A, "B": B})
    if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-1] or A.shape[-2] < B.shape[-2]:
        raise ShapeError(
            f"expected A (..., d, n) and B (..., e, n) with e <= d, got {tuple(A.shape)} and {tuple(B.shape)}"
        )
    if rotation and A.shape[-2] != B.shape[-2]:
        raise ShapeError(f"a rotation needs A and B of equally many rows, got {A.shape[-2]} and {B.shape[-2]}")
    return (_ROTATION if rotation else _ORTHOGONAL)(A @ B.mT)[0]


@entry
def nearest_simplex_etf(
    means: torch.Tensor,
    *,
    scale: torch.Tensor | float = 1.0,
    previous: torch.Tensor | None = None,
    proximal: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """The simplex equiangular tight frame nearest to class means: columns of norm ``scale`` with equal angles.

        argmin |means - U M|_F^2 + proximal/2 |U - U_previous|_F^2,    U'U = I,   M = scale sqrt(K/(K-1)) (I - 11'/K)

    Only U on the space orthogonal to 1 enters U M, so d >= K - 1 will do, and the frame is unique where U is not: with
    an orthonormal basis E of that space, U M = scale sqrt(K/(K-1)) V E' for V = U E.

    Args:
        means: (..., d, K), the means as columns, K >= 2 and d >= K - 1.
        scale: norm of the columns, positive, a number or (...).
        previous: the frame to stay close to, (..., d, K), as an earlier call with this scale returned it; a constant or
            a tensor with a gradient.
        proximal: the weight delta of that, nonnegative.

    Returns:
        The frame, (..., d, K).

    Raises:
        ShapeError: shapes that do not fit.
        ProblemError: the frame is not unique: the centred means span fewer than K - 1 dimensions.

    Reference: Gould 2026, guiding neural collapse.
    """
    require_alike({"means": means} if previous is None else {"means": means, "previous": previous})
    if means.ndim < 2 or not 2 <= means.shape[-1] <= means.shape[-2] + 1:
        raise ShapeError(f"means: expected shape (..., d, K) with 2 <= K <= d + 1, got {tuple(means.shape)}")
    E = _simplex_basis(means.shape[-1], means)
    norm = like(scale, means)[..., None, None] * math.sqrt(means.shape[-1] / (means.shape[-1] - 1))
    N = 2.0 * norm * (means @ E)
    if previous is not None:
        N = N + like(proximal, means)[..., None, None] * (previous @ E) / norm
    return norm * (_ORTHOGONAL(N)[0] @ E.T)


def _simplex_basis(K: int, like_: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis (K, K - 1) of the vectors that sum to zero (Helmert's)."""
    rows = torch.arange(1, K, dtype=like_.dtype, device=like_.device)
    ones = torch.ones(K, K - 1, dtype=like_.dtype, device=like_.device).triu()
    lower = torch.zeros_like(ones)
    lower[1:].diagonal().copy_(-rows)
    return (ones + lower) / torch.sqrt(rows * (rows + 1))


@final
class _Polar(ClosedForm):
    arguments: ClassVar = {"N": ("d", "e")}

    def __init__(self, *, rotation: bool) -> None:
        self._rotation = rotation

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        (N,) = inputs
        left, sizes, right = torch.linalg.svd(N, full_matrices=False)
        if self._rotation:
            flip = torch.ones_like(sizes)
            flip[..., -1] = torch.where(torch.linalg.det(left @ right) < 0, -1.0, 1.0)
            left, sizes = left * flip[..., None, :], sizes * flip
        cutoff = max(N.shape[-2:]) * torch.finfo(N.dtype).eps * sizes[..., 0].abs()
        # The sum that decides: of a value with itself, or, where a reflection is not allowed, with the one before it.
        alone = self._rotation and N.shape[-1] > 1
        smallest = sizes[..., -1] + sizes[..., -2] if alone else sizes[..., -1]
        unclear = (smallest <= cutoff) & (N.shape[-1] > 1 or not self._rotation)
        if bool(unclear.any()):
            raise ProblemError(
                f"the nearest orthogonal factor is not unique{elements(unclear)}: expected full rank, got singular "
                f"values down to {float(smallest.min()):.1e}; add points, or a small multiple of a reference"
            )
        return left @ right, right.mT, sizes

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        (N,) = inputs
        U, V, sizes = solved
        (G,) = cotangents
        H = U.mT @ N
        inner = U.mT @ G
        dN = U @ _LYAPUNOV.apply(H, V, sizes, inner - inner.mT)[0]
        if N.shape[-2] > N.shape[-1]:
            dN = dN + torch.linalg.solve(H, G - U @ inner, left=False)
        return (dN,)


@final
class _Lyapunov(ClosedForm):
    """X with H X + X H = C, for H = V diag(s) V' given both ways.

    With Y from the same equation for the cotangent of X:   C' = Y,   H' = -(Y X' + X'Y).
    """

    arguments: ClassVar = {"H": ("e", "e"), "V": ("e", "e"), "s": ("e",), "C": ("e", "e")}
    checked: ClassVar = False

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        _, V, s, C = inputs
        sums = s[..., :, None] + s[..., None, :]
        # A zero of a rotation stands on the diagonal, where the right-hand sides are zero.
        regular = sums.abs() > 0
        inner = torch.where(regular, (V.mT @ C @ V) / torch.where(regular, sums, 1.0), 0.0)
        return (V @ inner @ V.mT,)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        H, V, s, _ = inputs
        (X,) = solved
        (Y,) = _LYAPUNOV.apply(H, V, s, cotangents[0])
        return -(Y @ X.mT + X.mT @ Y), torch.zeros_like(V), torch.zeros_like(s), Y


_ORTHOGONAL = _Polar(rotation=False)
_ROTATION = _Polar(rotation=True)
_LYAPUNOV = _Lyapunov()
