"""Least squares by one QR factorisation for both passes, or of minimum norm by the singular value decomposition.

    x = argmin sum_i w_i (a_i'x - b_i)^2,    A'W A x = A'W b

Pullback, with W^(1/2) A = Q R cached, r = b - A x and u = (A'WA)^-1 x_bar = R^-1 R^-T x_bar:

    A_bar = W (r u' - A u x'),    b_bar = W A u,    w_bar = r * A u

Where columns are dependent, the minimum-norm solution is x = A^+ b, with the pseudo-inverse A^+ = V S^-1 U' of the
singular values above a cutoff. Pullback at constant rank, with p = A^+' x_bar, r = b - A x, y = A^+' x:

    A_bar = r (A^+ p)' - p x' + y (x_bar - A^+ A x_bar)',    b_bar = p

References: Gould, slides on differentiable optimisation, 2026, least squares, for W = I. Golub and Pereyra, The
differentiation of pseudo-inverses and nonlinear least squares problems whose variables separate, 1973, (4.12).
"""

from __future__ import annotations

import warnings
from typing import ClassVar, final

import torch

from convexlayer.arguments import REAL, check_kind
from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import (
    ClosedForm,
    batch_matmul,
    batch_matvec,
    closed_form_function,
    describe_elements,
    minimum,
)

__all__ = ["least_squares", "weighted_least_squares"]

AMBIGUITY_EXPONENT = 0.5
"""The rank is ambiguous if a dropped singular value exceeds eps to this power of a kept one: half the digits of the
derivative are then wrong."""


@closed_form_function
def least_squares(
    A: torch.Tensor, b: torch.Tensor, *, rcond: float | None = None, on_degenerate: str = "warn"
) -> torch.Tensor:
    """argmin |A x - b|^2; with ``rcond`` the minimum-norm solution, for dependent columns or fewer rows than columns.

    The minimum-norm solution has a derivative where the rank is constant: that of A with the singular values below the
    cutoff set to zero. If they are not zero, the derivative is wrong by about their ratio to the ones kept; where that
    exceeds the square root of the machine epsilon, the rank is ambiguous, and ``on_degenerate`` applies.

    Args:
        A: (..., m, n), without ``rcond`` of full column rank; leading axes broadcast with those of b.
        b: (..., m).
        rcond: singular values up to this multiple of the largest one count as zero, 0 <= rcond < 1, as in
            numpy.linalg.lstsq, and those of the size of rounding in any case; None to reject dependent columns.
        on_degenerate: ``warn``, or ``raise`` a DerivativeError, in backward passes at an ambiguous rank.

    Returns:
        x, (..., n).

    Raises:
        ShapeError: shapes do not fit.
        ProblemError: columns are dependent to working accuracy, so that x is not unique; ``rcond`` is out of range, or
            ``on_degenerate`` unknown.
        DerivativeError: (in backward) the rank is ambiguous, under ``raise``.
    """
    if on_degenerate not in _PSEUDO_SOLVE:
        raise ProblemError(f"on_degenerate: expected one of {', '.join(_PSEUDO_SOLVE)}, got {on_degenerate!r}")
    return (_LEAST_SQUARES if rcond is None else _MinimumNorm(rcond, on_degenerate))(A, b)[0]


@closed_form_function
def weighted_least_squares(A: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """argmin sum_i w_i (a_i'x - b_i)^2.

    Args:
        A: (..., m, n); its rows of positive weight have full column rank. Leading axes broadcast.
        b: (..., m).
        w: (..., m), nonnegative. The derivative exists at weights of zero too.

    Returns:
        x, (..., n).

    Raises:
        ShapeError: shapes do not fit.
        ProblemError: a weight is negative; or columns are dependent.
    """
    return _WEIGHTED(A, b, w)[0]


@final
class _LeastSquares(ClosedForm):
    arguments: ClassVar = {"A": ("m", "n"), "b": ("m",)}

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        return _qr_solve(*inputs)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        A, b = inputs
        x, R = solved
        (u,) = _GRAM_SOLVE.apply(A, torch.ones_like(b), R, cotangents[0])
        Au, Ax = batch_matmul(A, torch.stack([u, x], -1)).unbind(-1)
        # One product for the difference of two outer products writes the largest array once.
        dA = batch_matmul(torch.stack([b - Ax, -Au], -1), torch.stack([u, x], -2)) if wanted[0] else A
        return dA, Au


@final
class _Weighted(ClosedForm):
    arguments: ClassVar = {"A": ("m", "n"), "b": ("m",), "w": ("m",)}

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        A, b, w = inputs
        if minimum(w) < 0:
            raise ProblemError(
                f"w: expected nonnegative weights, got {minimum(w):.3g}{describe_elements((w < 0).any(-1))}"
            )
        root = w.sqrt()
        return _qr_solve(root[..., None] * A, root * b)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        A, b, w = inputs
        x, R = solved
        (u,) = _GRAM_SOLVE.apply(A, w, R, cotangents[0])
        Au, Ax = batch_matmul(A, torch.stack([u, x], -1)).unbind(-1)
        r, db = b - Ax, w * Au
        dA = batch_matmul(torch.stack([w * r, -db], -1), torch.stack([u, x], -2)) if wanted[0] else A
        return dA, db, r * Au


def _qr_solve(A: torch.Tensor, b: torch.Tensor) -> Tensors:
    """Solve by QR; returns x (..., n) and R (..., n, n), which is undefined below the diagonal."""
    m, n = A.shape[-2:]
    # Householder form: Q'b costs O(mn), forming Q would cost O(mn^2).
    reflectors, scales = torch.geqrf(A)
    smallest, largest = torch.aminmax(reflectors.diagonal(dim1=-2, dim2=-1).abs(), dim=-1)
    cutoff = max(m, n) * torch.finfo(A.dtype).eps
    if m < n or not minimum(smallest / largest) > cutoff:  # true for NaN, from columns of zeros
        where = "" if m < n else describe_elements(smallest <= cutoff * largest)
        raise ProblemError(
            f"A: expected full column rank, got dependent columns among its {m} rows of {n}{where}; pass rcond for "
            "the minimum-norm solution, drop columns, or add rows sqrt(lambda) I to A and zeros to b"
        )
    rotated = torch.ormqr(reflectors, scales, b[..., None], transpose=True)
    R = reflectors[..., :n, :].clone()
    return torch.linalg.solve_triangular(R, rotated[..., :n, :], upper=True)[..., 0], R


@final
class _GramSolve(ClosedForm):
    """u = (A'WA)^-1 v by a given factor of A'WA = R'R, which its derivatives reuse.

    Pullback, with z = (A'WA)^-1 u_bar:   A_bar = -W A (u z' + z u'),   w_bar = -A u * A z,   v_bar = z.
    """

    arguments: ClassVar = {"A": ("m", "n"), "w": ("m",), "R": ("n", "n"), "v": ("n",)}
    check_finite: ClassVar = False

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        _, _, R, v = inputs
        return (torch.cholesky_solve(v[..., None], R, upper=True)[..., 0],)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        A, w, R, _ = inputs
        (u,) = solved
        (z,) = _GRAM_SOLVE.apply(A, w, R, cotangents[0])
        Au, Az = batch_matmul(A, torch.stack([u, z], -1)).unbind(-1)
        dA = -batch_matmul(torch.stack([w * Au, w * Az], -1), torch.stack([z, u], -2)) if wanted[0] else A
        return dA, -Au * Az, torch.zeros_like(R), z


@final
class _MinimumNorm(ClosedForm):
    """x = A^+ b, with the pseudo-inverse of the singular values above a cutoff."""

    arguments: ClassVar = {"A": ("m", "n"), "b": ("m",)}

    def __init__(self, rcond: float, on_degenerate: str) -> None:
        check_kind("rcond", rcond, REAL, "a number, or None")
        if not 0.0 <= rcond < 1.0:
            raise ProblemError(f"rcond: expected a ratio of singular values, 0 to 1, got {rcond:.3g}")
        self._rcond, self._pseudo_solve = rcond, _PSEUDO_SOLVE[on_degenerate]

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        A, b = inputs
        U, s, Vh = torch.linalg.svd(A, full_matrices=False)
        cutoff = max(self._rcond, max(A.shape[-2:]) * torch.finfo(A.dtype).eps) * s[..., :1]
        kept = s > cutoff
        reciprocal = torch.where(kept, 1.0 / s, 0.0)
        # Ratio of the largest dropped to the smallest kept singular value; infinite near A = 0, which has no rank.
        dropped = torch.where(kept[..., 0], torch.where(kept, 0.0, s).amax(-1) * reciprocal.amax(-1), torch.inf)
        return _pseudo_product(U, reciprocal, Vh.mT, b), U, reciprocal, Vh.mT, dropped

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        A, b = inputs
        x, *factors = solved
        return _constant_rank_pullback(self._pseudo_solve, A, b, x, tuple(factors), cotangents[0])


@final
class _PseudoSolve(ClosedForm):
    """x = A^+ b by given factors of A^+, which its derivatives reuse."""

    arguments: ClassVar = {
        "A": ("m", "n"), "b": ("m",), "U": ("m", "k"), "reciprocal": ("k",), "V": ("n", "k"), "dropped": ()
    }  # fmt: skip
    check_finite: ClassVar = False

    def __init__(self, on_degenerate: str) -> None:
        self._on_degenerate = on_degenerate

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        _, b, U, reciprocal, V, dropped = inputs
        ambiguous = torch.finfo(b.dtype).eps ** AMBIGUITY_EXPONENT
        if minimum(-dropped) < -ambiguous:
            message = (
                f"the rank of A is ambiguous{describe_elements(dropped > ambiguous)}: a singular value that counts as "
                f"zero is {-minimum(-dropped):.1e} of one that does not, and the derivative is wrong by about as much; "
                "move rcond into a gap of the singular values"
            )
            if self._on_degenerate == "raise":
                raise DerivativeError(message)
            warnings.warn(message, UserWarning, stacklevel=2)
        return (_pseudo_product(U, reciprocal, V, b),)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        A, b, *factors = inputs
        found = _constant_rank_pullback(self, A, b, solved[0], tuple(factors), cotangents[0])
        return (*found, *(torch.zeros_like(factor) for factor in factors))


def _pseudo_product(U: torch.Tensor, reciprocal: torch.Tensor, V: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return batch_matvec(V, reciprocal * batch_matvec(U.mT, b))


def _constant_rank_pullback(
    solve: _PseudoSolve, A: torch.Tensor, b: torch.Tensor, x: torch.Tensor, factors: Tensors, v: torch.Tensor
) -> Tensors:
    """Cotangents of A and b for the cotangent v of x = A^+ b."""
    U, reciprocal, V, dropped = factors
    transposed_factors = (V, reciprocal, U, dropped)
    (p,) = solve.apply(A.mT, v, *transposed_factors)
    (y,) = solve.apply(A.mT, x, *transposed_factors)
    (q,) = solve.apply(A, p, *factors)
    (row_space_part,) = solve.apply(A, batch_matvec(A, v), *factors)
    left = torch.stack([b - batch_matvec(A, x), -p, y], -1)
    return batch_matmul(left, torch.stack([q, x, v - row_space_part], -2)), p


_LEAST_SQUARES = _LeastSquares()
_WEIGHTED = _Weighted()
_GRAM_SOLVE = _GramSolve()
_PSEUDO_SOLVE = {choice: _PseudoSolve(choice) for choice in ("warn", "raise")}
