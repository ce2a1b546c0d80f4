"""Orthogonal Procrustes and the nearest simplex equiangular tight frame, by the polar decomposition.

    U = argmin |A - U B|_F^2 + delta/2 |U - U_0|_F^2   subject to U'U = I

|U B|_F and |U|_F are constant, so U is the polar factor of N = A B' + delta/2 U_0 = U H, with H = U'N symmetric.
Pullback of the polar factor, with G = U_bar:

    N_bar = U X + (I - U U') G H^-1,    H X + X H = U'G - G'U          (the second term vanishes for square U)
"""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch

from convexlayer.arguments import INTEGER, check_kind
from convexlayer.errors import ProblemError, ShapeError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import (
    ClosedForm,
    as_tensor_like,
    batch_matmul,
    closed_form_function,
    describe_elements,
    minimum,
    require_tensor,
)

__all__ = ["nearest_simplex_etf", "orthogonal_procrustes", "simplex_etf"]


@closed_form_function
def orthogonal_procrustes(
    A: torch.Tensor,
    B: torch.Tensor,
    *,
    rotation: bool = False,
    previous: torch.Tensor | None = None,
    proximal: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """argmin |A - U B|_F^2, optionally + proximal/2 |U - previous|_F^2, over U with orthonormal columns.

    With ``B = scale * simplex_etf(K)`` and the class means as A, U B is the frame of guided neural collapse, and U is
    the ``previous`` of the next call.

    Args:
        A: (..., d, n); leading axes broadcast with those of B.
        B: (..., e, n), e <= d.
        rotation: require det(U) = 1, for e = d (Kabsch 1976).
        previous: centre of the proximal term, (..., d, e), a constant or a tensor with a gradient.
        proximal: weight of the proximal term, nonnegative, a number or (...).

    Returns:
        U, (..., d, e).

    Raises:
        ShapeError: shapes do not fit.
        ProblemError: U is not unique, because A B' + proximal/2 previous is rank-deficient; or a weight is negative.

    Reference: Gould, slides on differentiable optimisation, 2026, guiding neural collapse.
    """
    require_tensor("A", A)
    require_tensor("B", B)
    if A.ndim < 2 or B.ndim < 2 or A.shape[-2] < B.shape[-2]:
        raise ShapeError(
            f"expected A (..., d, n) and B (..., e, n) with e <= d, got {tuple(A.shape)} and {tuple(B.shape)}"
        )
    if rotation and A.shape[-2] != B.shape[-2]:
        raise ShapeError(f"a rotation needs A and B with equal numbers of rows, got {A.shape[-2]} and {B.shape[-2]}")
    if previous is None:
        return _PROCRUSTES[rotation](A, B)[0]
    return _PROXIMAL[rotation](A, B, previous, as_tensor_like(proximal, A))[0]


def simplex_etf(K: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> torch.Tensor:
    """Canonical simplex equiangular tight frame (K, K): sqrt(K/(K-1)) (I - 11'/K), with columns of norm 1.

    Raises:
        ProblemError: K < 2.
    """
    check_kind("K", K, INTEGER, "an integer")
    if K < 2:
        raise ProblemError(f"K: expected at least 2 vectors, got {K}")
    return math.sqrt(K / (K - 1)) * (torch.eye(K, dtype=dtype, device=device) - 1.0 / K)


@closed_form_function
def nearest_simplex_etf(means: torch.Tensor, *, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Simplex equiangular tight frame nearest to class means: columns of norm ``scale`` at equal angles.

        U M for a U in argmin |means - U M|_F^2   subject to U'U = I,          M = scale * simplex_etf(K)

    U is not unique, but U M is: it depends only on U on the space orthogonal to 1, so d >= K - 1 suffices. With an
    orthonormal basis E of that space, U M = scale sqrt(K/(K-1)) V E', where V = U E is the polar factor of means E. For
    a proximal term use ``orthogonal_procrustes`` with M.

    Args:
        means: (..., d, K), the means as columns, K >= 2 and d >= K - 1.
        scale: norm of the columns, positive, a number or (...).

    Returns:
        The frame, (..., d, K).

    Raises:
        ShapeError: shapes do not fit.
        ProblemError: the frame is not unique, because the centred means span fewer than K - 1 dimensions; or the scale
            is not positive.

    Reference: Gould, slides on differentiable optimisation, 2026, guiding neural collapse.
    """
    require_tensor("means", means)
    if means.ndim < 2 or not 2 <= means.shape[-1] <= means.shape[-2] + 1:
        raise ShapeError(f"means: expected shape (..., d, K) with 2 <= K <= d + 1, got {tuple(means.shape)}")
    return _FRAME(means, as_tensor_like(scale, means))[0]


def _simplex_basis(K: int, reference: torch.Tensor) -> torch.Tensor:
    """Helmert basis (K, K - 1): orthonormal, of the vectors that sum to zero."""
    rows = torch.arange(1, K, dtype=reference.dtype, device=reference.device)
    ones = torch.ones(K, K - 1, dtype=reference.dtype, device=reference.device).triu()
    lower = torch.zeros_like(ones)
    lower[1:].diagonal().copy_(-rows)
    return (ones + lower) / torch.sqrt(rows * (rows + 1))


@final
class _Procrustes(ClosedForm):
    arguments: ClassVar = {"A": ("d", "n"), "B": ("e", "n")}

    def __init__(self, *, rotation: bool) -> None:
        self._rotation = rotation

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        A, B = inputs
        return _polar(batch_matmul(A, B.mT), rotation=self._rotation)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        A, B = inputs
        dN = _polar_pullback(batch_matmul(A, B.mT), solved, cotangents[0])
        return batch_matmul(dN, B), batch_matmul(dN.mT, A)


@final
class _Proximal(ClosedForm):
    arguments: ClassVar = {**_Procrustes.arguments, "previous": ("d", "e"), "proximal": ()}

    def __init__(self, *, rotation: bool) -> None:
        self._rotation = rotation

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        proximal = inputs[3]
        if minimum(proximal) < 0:
            raise ProblemError(
                f"proximal: expected a nonnegative weight, got {minimum(proximal):.3g}{describe_elements(proximal < 0)}"
            )
        return _polar(self._matrix(*inputs), rotation=self._rotation)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        A, B, previous, proximal = inputs
        dN = _polar_pullback(self._matrix(*inputs), solved, cotangents[0])
        half = 0.5 * proximal[..., None, None]
        return batch_matmul(dN, B), batch_matmul(dN.mT, A), half * dN, 0.5 * (dN * previous).sum((-2, -1))

    def _matrix(self, A: torch.Tensor, B: torch.Tensor, previous: torch.Tensor, proximal: torch.Tensor) -> torch.Tensor:
        return batch_matmul(A, B.mT) + 0.5 * proximal[..., None, None] * previous


@final
class _NearestFrame(ClosedForm):
    arguments: ClassVar = {"means": ("d", "K"), "scale": ()}

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        means, scale = inputs
        if minimum(scale) <= 0:
            raise ProblemError(
                f"scale: expected a positive one, got {minimum(scale):.3g}{describe_elements(scale <= 0)}"
            )
        E = _simplex_basis(means.shape[-1], means)
        V, *factors = _polar(means @ E)
        return self._norm(means, scale) * (V @ E.T), *factors

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        means, scale = inputs
        frame, *factors = solved
        (G,) = cotangents
        E, norm = _simplex_basis(means.shape[-1], means), self._norm(means, scale)
        dN = _polar_pullback(means @ E, (frame @ E / norm, *factors), norm * (G @ E))
        return dN @ E.T, (G * frame).sum((-2, -1)) / scale

    def _norm(self, means: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Norm of the columns of V in the frame."""
        K = means.shape[-1]
        return scale[..., None, None] * math.sqrt(K / (K - 1))


def _polar(N: torch.Tensor, *, rotation: bool = False) -> Tensors:
    """Polar factor U (..., d, e) of N, or the nearest rotation, and V (..., e, e), s (..., e) of H = V diag(s) V'.

    Raises:
        ProblemError: U is not unique.
    """
    left, sizes, right = torch.linalg.svd(N, full_matrices=False)
    if rotation:
        flip = torch.ones_like(sizes)
        flip[..., -1] = torch.where(torch.linalg.det(batch_matmul(left, right)) < 0, -1.0, 1.0)
        left, sizes = left * flip[..., None, :], sizes * flip
    # U is unique if the smallest singular value is positive; for rotations, its sum with the second smallest.
    alone = rotation and N.shape[-1] > 1
    smallest = sizes[..., -1] + sizes[..., -2] if alone else sizes[..., -1]
    beyond = smallest - max(N.shape[-2:]) * torch.finfo(N.dtype).eps * sizes[..., 0]
    if minimum(beyond) <= 0 and (alone or not rotation):
        raise ProblemError(
            f"the nearest orthogonal factor is not unique{describe_elements(beyond <= 0)}: expected full rank, got "
            f"singular values down to {minimum(smallest):.1e}; add points, or a proximal term"
        )
    return batch_matmul(left, right), right.mT, sizes


def _polar_pullback(N: torch.Tensor, solved: Tensors, G: torch.Tensor) -> torch.Tensor:
    """Cotangent (..., d, e) of N for the cotangent G of its polar factor; ``solved`` are the results of ``_polar``."""
    U, V, sizes = solved
    H = batch_matmul(U.mT, N)
    inner = batch_matmul(U.mT, G)
    dN = batch_matmul(U, _LYAPUNOV.apply(H, V, sizes, inner - inner.mT)[0])
    if N.shape[-2] > N.shape[-1]:
        dN = dN + torch.linalg.solve(H, G - batch_matmul(U, inner), left=False)
    return dN


@final
class _Lyapunov(ClosedForm):
    """Skew-symmetric solution X of H X + X H = C for skew-symmetric C; H = V diag(s) V' is given with its factors.

    Pullback, with Y the solution for C = X_bar:   C_bar = Y,   H_bar = -(Y X' + X'Y).
    """

    arguments: ClassVar = {"H": ("e", "e"), "V": ("e", "e"), "s": ("e",), "C": ("e", "e")}
    check_finite: ClassVar = False

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        _, V, s, C = inputs
        sums = s.unsqueeze(-1) + s.unsqueeze(-2)
        # The diagonal of a skew-symmetric matrix is zero; for a rotation that of the sums may be zero too.
        sums.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        inner = batch_matmul(batch_matmul(V.mT, C), V) / sums
        return (batch_matmul(batch_matmul(V, inner), V.mT),)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        H, V, s, _ = inputs
        (X,) = solved
        (Y,) = _LYAPUNOV.apply(H, V, s, cotangents[0])
        return -(batch_matmul(Y, X.mT) + batch_matmul(X.mT, Y)), torch.zeros_like(V), torch.zeros_like(s), Y


_PROCRUSTES = {rotation: _Procrustes(rotation=rotation) for rotation in (False, True)}
_PROXIMAL = {rotation: _Proximal(rotation=rotation) for rotation in (False, True)}
_FRAME = _NearestFrame()
_LYAPUNOV = _Lyapunov()
