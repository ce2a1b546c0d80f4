"""Eigendecomposition of symmetric matrices, in full or for the largest eigenpairs.

    X = Y diag(lambda) Y',    Y'Y = I          (the stationary points of u'X u on u'u = 1)

Pullback, with S = Y'Y_bar and F_ij = 1 / (lambda_j - lambda_i), 0 on the diagonal:

    X_bar = Y (diag(lambda_bar) + F * (S - S') / 2) Y'

Reference: Gould, slides on differentiable optimisation, 2026, eigendecomposition; the sign of F is that of its code.
"""

from __future__ import annotations

import warnings
from typing import ClassVar, final

import torch

from convexlayer.arguments import INTEGER, check_kind
from convexlayer.errors import DerivativeError, ProblemError, ShapeError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import (
    ClosedForm,
    batch_matmul,
    closed_form_function,
    describe_elements,
    minimum,
    require_tensor,
)

__all__ = ["eigen_decomposition"]

COINCIDENT_FACTOR = 10.0
"""Multiples of m eps times the largest eigenvalue of an m x m matrix within which eigenvalues coincide; rounding of
eigh stays below one of them."""

AMBIGUITY_EXPONENT = 0.5
"""A loss distinguishes coincident eigenvalues if its cotangents differ by eps to this power. Rounding leaves about eps
times the gap to the next eigenvalue."""


@closed_form_function
def eigen_decomposition(
    X: torch.Tensor, k: int | None = None, *, on_degenerate: str = "warn"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, ascending as in torch.linalg.eigh, and eigenvectors of (X + X') / 2.

    The gradient is symmetric. The sign of an eigenvector is chosen so that its entry of largest magnitude is positive.

    Where eigenvalues coincide, only functions that are invariant to the choice of basis of their eigenspace have a
    derivative, for example its projector or the sum of its eigenvalues; their pullback is exact. For any other function
    the pullback is the minimum-norm choice, F = 0 within the eigenspace, and ``on_degenerate`` applies.

    Args:
        X: (..., m, m).
        k: number of largest eigenvalues to return; None for all.
        on_degenerate: ``warn``, or ``raise`` a DerivativeError.

    Returns:
        (..., k) and (..., m, k); the columns are the eigenvectors.

    Raises:
        ShapeError: X is not square.
        ProblemError: k is not in 1, ..., m, or ``on_degenerate`` is unknown.
        DerivativeError: (in backward) the loss distinguishes coincident eigenvalues, under ``raise``.
    """
    if on_degenerate not in _FORMS:
        raise ProblemError(f"on_degenerate: expected one of {', '.join(_FORMS)}, got {on_degenerate!r}")
    require_tensor("X", X)
    if X.ndim < 2 or X.shape[-2] != X.shape[-1]:
        raise ShapeError(f"X: expected shape (..., m, m), got {tuple(X.shape)}")
    m = X.shape[-1]
    if k is not None:
        check_kind("k", k, INTEGER, "an integer, or None")
        if not 1 <= k <= m:
            raise ProblemError(f"k: expected 1 to {m}, the size of X, got {k}")
    values, vectors = _FORMS[on_degenerate](X)
    return (values, vectors) if k is None else (values[..., m - k :], vectors[..., m - k :])


@final
class _Eigen(ClosedForm):
    arguments: ClassVar = {"X": ("m", "m")}
    outputs: ClassVar = 2

    def __init__(self, inner: _Inner) -> None:
        self._inner = inner

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        (X,) = inputs
        values, vectors = torch.linalg.eigh(0.5 * (X + X.mT))
        largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
        return values, vectors * largest.sign()

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        values, Y = solved
        (inner,) = self._inner.apply(values, cotangents[0], batch_matmul(Y.mT, cotangents[1]))
        return (batch_matmul(batch_matmul(Y, inner), Y.mT),)


@final
class _Inner(ClosedForm):
    """diag(lambda_bar) + F * (S - S') / 2, with a warning or error where the derivative does not exist.

    It does not exist within the eigenspace of a repeated eigenvalue if S is not symmetric there, or if the cotangents
    of the eigenvalues differ.
    """

    arguments: ClassVar = {"values": ("m",), "cotangent": ("m",), "S": ("m", "m")}
    check_finite: ClassVar = False

    def __init__(self, on_degenerate: str) -> None:
        self._on_degenerate = on_degenerate

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        values, cotangent, S = inputs
        skew = S - S.mT
        eps = torch.finfo(values.dtype).eps
        gaps = _gaps(values)
        gaps.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        # Eigenvalues ascend, so neighbours are closest; one bound for the batch suffices to show that none coincide.
        if (
            minimum(gaps.diagonal(1, -2, -1))
            > COINCIDENT_FACTOR * values.shape[-1] * eps * torch.linalg.vector_norm(values).item()
        ):
            inner = 0.5 * skew / gaps
        else:
            self._report_ambiguity(values, cotangent, S, skew)
            inner = 0.5 * skew * _reciprocal_gaps(values)
        inner.diagonal(dim1=-2, dim2=-1).copy_(cotangent)
        return (inner,)

    def _report_ambiguity(
        self, values: torch.Tensor, cotangent: torch.Tensor, S: torch.Tensor, skew: torch.Tensor
    ) -> None:
        """Warn or raise where the cotangents distinguish coincident eigenvalues."""
        weight = torch.maximum(skew.abs(), (cotangent[..., None] - cotangent[..., None, :]).abs())
        scale = torch.maximum(S.abs().amax((-2, -1)), cotangent.abs().amax(-1))[..., None, None]

        repeated = _gaps(values).abs() <= _coincidence_tolerance(values)[..., None]
        repeated = repeated & ~torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
        ambiguous = (repeated & (weight > torch.finfo(S.dtype).eps ** AMBIGUITY_EXPONENT * scale)).any(-1).any(-1)
        if not bool(ambiguous.any()):
            return
        message = (
            f"eigenvalues coincide{describe_elements(ambiguous)}, and the loss distinguishes their eigenvectors or "
            "eigenvalues: it has no derivative there; use the projector Y Y' on their eigenspace, or change X"
        )
        if self._on_degenerate == "raise":
            raise DerivativeError(message)
        warnings.warn(f"{message} (the minimum-norm choice is returned)", UserWarning, stacklevel=2)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        values, _, S = inputs
        (G,) = cotangents
        F = _reciprocal_gaps(values)
        moved = -0.5 * G * F.square() * (S - S.mT)
        half = 0.5 * F * G
        return moved.sum(-2) - moved.sum(-1), G.diagonal(dim1=-2, dim2=-1), half - half.mT


def _gaps(values: torch.Tensor) -> torch.Tensor:
    """lambda_j - lambda_i, (..., m, m)."""
    return values.unsqueeze(-2) - values.unsqueeze(-1)


def _coincidence_tolerance(values: torch.Tensor) -> torch.Tensor:
    """Distance within which eigenvalues coincide, (..., 1)."""
    return COINCIDENT_FACTOR * values.shape[-1] * torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True)


def _reciprocal_gaps(values: torch.Tensor) -> torch.Tensor:
    """F, (..., m, m), with 0 on the diagonal and where eigenvalues coincide."""
    gaps = _gaps(values)
    close = gaps.abs() <= _coincidence_tolerance(values)[..., None]  # also the diagonal
    return gaps.masked_fill(close, torch.inf).reciprocal()


_FORMS = {choice: _Eigen(_Inner(choice)) for choice in ("warn", "raise")}
