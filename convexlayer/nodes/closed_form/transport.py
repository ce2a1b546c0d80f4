"""Entropic optimal transport: Sinkhorn and Newton forward, one Cholesky factor backward.

    P = argmin <M, P> + 1/gamma <P, log P>   subject to P 1 = r, P'1 = c,       P_ij = exp(f_i + g_j - gamma M_ij)

With S = [diag(P1) P; P' diag(P'1)], singular along (1, -1) alone, V the cotangent of P and T = P * V:

    S (p, q) = (T 1, T'1),   M' = gamma P * (p_i + q_j - V),   r' = p,   c' = q,   gamma' = <M, P * (p_i + q_j - V)>

Only r and c of one sum have a plan, so r' and c' are determined along such changes: they are those of minimum norm,
sum(p) = sum(q). Reference: Gould 2026, optimal transport gradient; its Lambda is the inverse of S without a first row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, final

import torch

from convexlayer.errors import DerivativeError, ProblemError, ShapeError, SolverError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import ClosedForm, elements, entry, least, like, product, times

__all__ = ["optimal_transport"]

Inverse = Callable[[torch.Tensor], torch.Tensor]
"""The product (..., m) of the inverse of a matrix with a vector."""

TOTALS = 1e-6
"""Relative difference of sum(r) and sum(c) that counts as float32's rounding."""

SCALINGS = 10
"""Sinkhorn iterations as matrix-vector products, first of all and between two in the log domain."""

ROUNDING = 1e-14
"""Relative error of a row sum from which a step can gain nothing."""

PARTED = 1e-11
"""Eigenvalue of the scaled Schur complement, the share of its mass that a part exchanges, that may be rounding."""

EXACT = 1e-2
"""The same from where on the Schur complement has lost nothing worth a step of refinement."""

FIRST = 4 * (1 + SCALINGS)
"""Sinkhorn iterations before anything else is tried: they solve the easy problems."""

CLOSE = 1e-2
"""Relative error of a sum from where on a plan is a good start."""

SLOW = 1e-2
"""Sinkhorn iterations that leave more of the error than this are followed by Newton steps."""

RANGE = 20.0
"""gamma (max M - min M) from where the path of gammas begins: few Sinkhorn iterations solve it."""


@entry
def optimal_transport(
    M: torch.Tensor,
    r: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    gamma: torch.Tensor | float = 1.0,
    *,
    tol: float = 1e-10,
    max_iter: int = 10_000,
) -> torch.Tensor:
    """The entropic transport plan.

    Forward are Sinkhorn iterations in the log domain and damped Newton steps on the dual, at gammas that grow to the
    one asked for. Backward does not depend on how many there were, in time or in memory. The work is done in
    float64.

    Args:
        M: costs, (..., m, n); leading axes broadcast.
        r: row sums, (..., m), positive; 1/m each by default.
        c: column sums, (..., n), positive, with the sum of r; sum(r)/n each by default.
        gamma: inverse temperature, positive, a number or (...).
        tol: largest relative error of a row or column sum.
        max_iter: Sinkhorn iterations at most.

    Returns:
        P, (..., m, n).

    Raises:
        ShapeError: shapes that do not fit.
        ProblemError: r, c or gamma are not positive, or sum(r) and sum(c) differ.
        SolverError: the tolerance was not reached.
        DerivativeError: (in backward) the plan is so nearly a matching that its derivatives in r and c are lost; that
            in M is not.
    """
    if M.ndim < 2:
        raise ShapeError(f"M: expected shape (..., m, n), got {tuple(M.shape)}")
    m, n = M.shape[-2:]
    rows = M.new_full((m,), 1.0 / max(m, 1)) if r is None else r
    columns = rows.sum(-1, keepdim=True).expand(*rows.shape[:-1], n) / n if c is None else c
    return _Transport(tol, max_iter)(M, rows, columns, like(gamma, M))[0]


@final
class _Transport(ClosedForm):
    arguments: ClassVar = {"M": ("m", "n"), "r": ("m",), "c": ("n",), "gamma": ()}
    double: ClassVar = True

    def __init__(self, tol: float, max_iter: int) -> None:
        self._tol, self._max_iter = tol, max_iter

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        M, r, c, gamma = inputs
        for name, value in (("r", r), ("c", c), ("gamma", gamma.unsqueeze(-1))):
            if least(value) <= 0:
                wrong = (value <= 0).any(-1)
                raise ProblemError(f"{name}: expected positive values, got {least(value):.3g}{elements(wrong)}")
        ratio = r.sum(-1, keepdim=True) / c.sum(-1, keepdim=True)
        apart = (ratio - 1.0).abs() - TOTALS
        if least(-apart) < 0:
            wrong = apart[..., 0] > 0
            raise ProblemError(f"r and c: expected equal sums{elements(wrong)}; divide each by its own")
        dual = _Dual(M, r, c * ratio)
        first = min(self._max_iter, FIRST)
        left = self._max_iter - first + dual.solve(gamma, self._tol, first, newton=False)
        if not dual.within(CLOSE):
            spread = M.amax((-2, -1)) - M.amin((-2, -1))
            steps = torch.log2(gamma * spread / RANGE).amax().ceil().clamp(min=0)
            for step in range(int(steps)):
                early = torch.minimum(gamma, RANGE / spread * 2.0**step)
                left = dual.solve(early, max(self._tol, CLOSE), left)
        if not dual.within(self._tol):
            dual.solve(gamma, self._tol, left)
        if not dual.within(self._tol):
            wrong = ~(dual.error <= self._tol)
            raise SolverError(
                f"optimal transport: row sums are wrong by {float(dual.error.max()):.1e} of themselves after "
                f"{self._max_iter} iterations{elements(wrong)}, expected {self._tol:.1e}; lower gamma (now up to "
                f"{float(gamma.max()):.3g}), raise max_iter or tol"
            )
        return (dual.plan,)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        M, _, _, gamma = inputs
        (P,) = solved
        (V,) = cotangents
        T = P * V
        p, q = _MARGINAL_SOLVE[wanted[1] or wanted[2]].apply(P, T.sum(-1), T.sum(-2))
        inner = P * (p.unsqueeze(-1) + q.unsqueeze(-2)) - T
        dgamma = (M * inner).sum((-2, -1)) if wanted[3] else gamma
        return gamma[..., None, None] * inner, p, q, dgamma


class _Dual:
    """Potentials f and g of one batch, and the plan that they give.

    Attributes:
        plan: (..., m, n).
        error: largest relative error of a row or column sum, (...).
    """

    def __init__(self, M: torch.Tensor, r: torch.Tensor, c: torch.Tensor) -> None:
        self._M, self._r, self._c = M, r, c
        self._log_r, self._log_c = r.log(), c.log()
        self._gamma: torch.Tensor | None = None
        self._f = self._g = self._K = self._damping = self.error = self.plan = M  # before ``solve``

    def within(self, tol: float) -> bool:
        """Whether all plans have their sums."""
        return least(-self.error) >= -tol

    def solve(self, gamma: torch.Tensor, tol: float, budget: int, *, newton: bool = True) -> int:
        """Move on to gamma, from the potentials of the last one; gives what is left of the budget of iterations.

        Newton steps follow where Sinkhorn's last iterations gained little.
        """
        self._K = -gamma[..., None, None] * self._M
        self._damping = torch.full_like(gamma, 1e-3)
        if self._gamma is None:
            self._scale(-self._K.amax(-1), torch.zeros_like(self._c), tol)
            budget -= SCALINGS
        else:
            ratio = (gamma / self._gamma).unsqueeze(-1)  # f / gamma changes little
            self._f, self._g = ratio * self._f, ratio * self._g
            self.error = torch.full_like(gamma, torch.inf)
        self._gamma = gamma
        while budget > 0 and not self.within(tol):
            before = self.error
            f = self._log_r - torch.logsumexp(self._K + self._g.unsqueeze(-2), -1)
            g = self._log_c - torch.logsumexp(self._K + f.unsqueeze(-1), -2)
            self._scale(f, g, tol)
            budget -= 1 + SCALINGS
            slow = newton and least(torch.clamp(SLOW * before, min=tol) - self.error) < 0
            while slow and budget > 0 and not self.within(tol) and self._newton():
                budget -= 1
        return budget

    def _evaluated(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The plan and its error."""
        plan = torch.exp(self._K + f.unsqueeze(-1) + g.unsqueeze(-2))
        rows = ((plan.sum(-1) - self._r).abs() / self._r).amax(-1)
        columns = ((plan.sum(-2) - self._c).abs() / self._c).amax(-1)
        return plan, torch.maximum(rows, columns).nan_to_num(torch.inf)

    def _scale(self, f: torch.Tensor, g: torch.Tensor, tol: float) -> None:
        """SCALINGS iterations on the plan of these potentials, taken where they do not overflow."""
        plan = torch.exp(self._K + f.unsqueeze(-1) + g.unsqueeze(-2))
        r, c, transposed = self._r.unsqueeze(-1), self._c.unsqueeze(-1), plan.mT
        v = torch.ones_like(c)
        for _ in range(SCALINGS):
            u = r / product(plan, v)
            v = c / product(transposed, u)
        # The last to be scaled were the columns, so these are right.
        error = (u * product(plan, v) / r - 1.0).abs().amax((-2, -1))
        scaled = u * plan * v.mT
        new_f, new_g = f + u.squeeze(-1).log(), g + v.squeeze(-1).log()
        if least(-error) >= -tol:
            self._f, self._g, self.plan, self.error = new_f, new_g, scaled, error
            return
        _, before = self._evaluated(f, g)
        error = error.nan_to_num(torch.inf)
        better = error <= before
        self._f, self._g = torch.where(better[..., None], new_f, f), torch.where(better[..., None], new_g, g)
        self.plan = torch.where(better[..., None, None], scaled, plan)
        self.error = torch.where(better, error, before)

    def _newton(self) -> bool:
        """One damped Newton step on the dual, kept where its objective falls; whether it did for all that need it."""
        a, b = self._r - self.plan.sum(-1), self._c - self.plan.sum(-2)
        stretch = 1.0 + self._damping[..., None]
        factor, info = torch.linalg.cholesky_ex(_schur(self.plan, stretch))
        df, dg = _solve(self.plan, _by_factor(factor), a, b, stretch)
        f, g = self._f + df, self._g + dg
        plan, error = self._evaluated(f, g)
        # sum P - f'r - g'c, as a difference that does not cancel: sum of P (exp(d) - 1 - d) minus (a'df + b'dg).
        moved = df[..., :, None] + dg[..., None, :]
        rise = (self.plan * (torch.expm1(moved) - moved)).sum((-2, -1)) - (a * df).sum(-1) - (b * dg).sum(-1)
        better = (info == 0) & (error < torch.inf) & ((rise < 0) | (error <= 0.5 * self.error)) & (self.error > 0)
        useful = bool((better | (self.error <= ROUNDING)).all())
        self._damping = torch.where(better, 0.1 * self._damping, (10.0 * self._damping).clamp(1e-6, 1e3))
        self._f, self._g = torch.where(better[..., None], f, self._f), torch.where(better[..., None], g, self._g)
        self.plan = torch.where(better[..., None, None], plan, self.plan)
        self.error = torch.where(better, error, self.error)
        return useful


@final
class _MarginalSolve(ClosedForm):
    """(p, q), the solution of minimum norm of S(P) (p, q) = (a, b); S is symmetric, so its pullback solves it again.

    With (y, z) from the cotangents of (p, q):   a' = y,   b' = z,   P' = -(y_i + z_j) * (p_i + q_j).

    A plan close to a matching falls into parts that exchange less than rounding shows, and S has null vectors: 1 on
    the rows and -1 on the columns of a part. They cancel in p_i + q_j wherever P is not negligible, so M' does not
    depend on them, and a pseudo-inverse serves. What moving mass between parts would do, r' and c', has been lost.

    Args:
        strict: refuse such plans, because r' or c' is wanted.
    """

    arguments: ClassVar = {"P": ("m", "n"), "a": ("m",), "b": ("n",)}
    outputs: ClassVar = 2
    checked: ClassVar = False

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        P, a, b = inputs
        schur = _schur(P)
        factor, info = torch.linalg.cholesky_ex(schur)
        pivots = factor.diagonal(dim1=-2, dim2=-1).square() / schur.diagonal(dim1=-2, dim2=-1)
        smallest = least(pivots) if least(-info) >= 0 else 0.0
        if smallest > PARTED:
            inverse = _by_factor(factor)
        elif self._strict:
            wrong = (info != 0) | ~(pivots.amin(-1) > PARTED)
            raise DerivativeError(
                f"the transport plan falls into parts that exchange nothing to working accuracy{elements(wrong)}: its "
                "derivative in the row and column sums cannot be computed; lower gamma"
            )
        else:
            inverse = _by_pseudo_inverse(schur)
        p, q = _solve(P, inverse, a, b)
        if smallest > EXACT:
            return p, q
        rows, columns = P.sum(-1), P.sum(-2)
        # One step of refinement: the Schur complement has lost digits where the plan is nearly a matching.
        more = _solve(P, inverse, a - rows * p - times(P, q), b - columns * q - times(P.mT, p))
        return p + more[0], q + more[1]

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        P = inputs[0]
        p, q = solved
        y, z = self.apply(P, *cotangents)
        return -(y.unsqueeze(-1) + z.unsqueeze(-2)) * (p.unsqueeze(-1) + q.unsqueeze(-2)), y, z


def _by_factor(factor: torch.Tensor) -> Inverse:
    return lambda v: torch.cholesky_solve(v.unsqueeze(-1), factor).squeeze(-1)


def _by_pseudo_inverse(schur: torch.Tensor) -> Inverse:
    """Of the matrix scaled to a unit diagonal, without eigenvalues below PARTED."""
    root = schur.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(schur.dtype).tiny).sqrt()
    values, vectors = torch.linalg.eigh(schur / root[..., :, None] / root[..., None, :])
    reciprocal = torch.where(values > PARTED, 1.0 / values, 0.0)
    return lambda v: times(vectors, reciprocal * times(vectors.mT, v / root)) / root


def _schur(P: torch.Tensor, stretch: torch.Tensor | float = 1.0) -> torch.Tensor:
    """The Schur complement of S, diagonal stretched, on the smaller side; r r'/sum(r) fills its null space."""
    P = P if P.shape[-2] <= P.shape[-1] else P.mT
    r, c = P.sum(-1), P.sum(-2) * stretch
    complement = torch.diag_embed(r * stretch) - product(P / c.unsqueeze(-2), P.mT)
    return complement + r.unsqueeze(-1) * (r / r.sum(-1, keepdim=True)).unsqueeze(-2)


def _solve(
    P: torch.Tensor, inverse: Inverse, a: torch.Tensor, b: torch.Tensor, stretch: torch.Tensor | float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The minimum-norm solution of S (p, q) = (a, b), right-hand sides being projected on the range."""
    if P.shape[-2] > P.shape[-1]:
        q, p = _solve(P.mT, inverse, b, a, stretch)
        return p, q
    a, b = _balanced(a, b)
    c = P.sum(-2) * stretch
    p = inverse(a - times(P, b / c))
    return _balanced(p, (b - times(P.mT, p)) / c)


def _balanced(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of (a, b) that is orthogonal to (1, -1)."""
    shift = (a.sum(-1, keepdim=True) - b.sum(-1, keepdim=True)) / (a.shape[-1] + b.shape[-1])
    return a - shift, b + shift


_MARGINAL_SOLVE = {strict: _MarginalSolve(strict=strict) for strict in (False, True)}
