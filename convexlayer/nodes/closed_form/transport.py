"""Entropic optimal transport: Sinkhorn and Newton steps forward, one Cholesky factorisation backward.

    P = argmin <M, P> + 1/gamma <P, log P>   subject to P 1 = r, P'1 = c,       P_ij = exp(f_i + g_j - gamma M_ij)

Pullback, with S = [diag(P1) P; P' diag(P'1)], singular along (1, -1) alone, V = P_bar and T = P * V:

    S (p, q) = (T 1, T'1),   G_ij = P_ij (p_i + q_j - V_ij)
    M_bar = gamma G,   r_bar = p,   c_bar = q,   gamma_bar = <M, G>

A plan exists only for r and c of equal sums, which determines r_bar and c_bar up to a multiple of (1, -1); the
minimum-norm ones are returned, with sum(p) = sum(q).

References: Cuturi, Sinkhorn distances, 2013. Gould, slides on differentiable optimisation, 2026, optimal transport
gradient; its Lambda is the inverse of S without the first row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, final

import torch

from convexlayer.arguments import check_integer, check_number
from convexlayer.errors import DerivativeError, ProblemError, ShapeError, SolverError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import (
    ClosedForm,
    as_tensor_like,
    batch_matmul,
    batch_matvec,
    closed_form_function,
    describe_elements,
    minimum,
    require_tensor,
)

__all__ = ["optimal_transport"]

Inverse = Callable[[torch.Tensor], torch.Tensor]
"""v (..., m) -> the inverse of a matrix times v."""

EQUAL_SUMS_TOL = 1e-6
"""Relative difference of sum(r) and sum(c) that is attributed to rounding in float32."""

SCALINGS_PER_SWEEP = 10
"""Sinkhorn iterations by matrix-vector products after each one in the log domain; more risk overflow."""

ROUNDOFF_ERROR = 1e-14
"""Relative error of a row sum at which rounding in float64 dominates."""

DISCONNECTED = 1e-11
"""Eigenvalue of the scaled Schur complement (the share of mass that a part of the plan exchanges with the rest) that
cannot be distinguished from rounding; about 1e5 eps."""

WELL_CONDITIONED = 1e-2
"""Eigenvalue of the scaled Schur complement above which no refinement is needed: at most two digits are lost."""

INITIAL_ITERATIONS = 4 * (1 + SCALINGS_PER_SWEEP)
"""Sinkhorn iterations before Newton steps and a path of gammas: enough for well-conditioned problems."""

GOOD_START_ERROR = 1e-2
"""Relative error of the sums below which a plan is a good start for the next gamma."""

SLOW_REDUCTION = 1e-2
"""Reduction of the error by a sweep above which Newton steps follow, each of which costs as much as many sweeps."""

FIRST_COST_RANGE = 20.0
"""gamma (max M - min M) at the start of the path of gammas; a few Sinkhorn iterations solve that problem."""

GAMMA_GROWTH = 2.0
"""Factor between consecutive gammas of the path, whose length is a log2."""

INITIAL_DAMPING, MIN_DAMPING, MAX_DAMPING = 1e-3, 1e-6, 1e3
"""Relative damping of the diagonal in Newton steps: first value, and the limits of an increase."""

DAMPING_DECREASE, DAMPING_INCREASE = 0.1, 10.0
"""Factors of the damping after an accepted and a rejected step (Marquardt 1963)."""

ERROR_DECREASE = 0.5
"""Decrease of the error for which a Newton step is accepted although the dual objective does not fall."""


@closed_form_function
def optimal_transport(
    M: torch.Tensor,
    r: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    gamma: torch.Tensor | float = 1.0,
    *,
    tol: float = 1e-10,
    max_iter: int = 10_000,
) -> torch.Tensor:
    """Entropic transport plan.

    The forward pass takes Sinkhorn iterations in the log domain and damped Newton steps on the dual, for increasing
    gammas up to the given one. Time and memory of the backward pass do not depend on their number. All work is done in
    float64.

    Args:
        M: costs, (..., m, n); leading axes broadcast.
        r: row sums, (..., m), positive; 1/m each by default.
        c: column sums, (..., n), positive, with the sum of r; sum(r)/n each by default.
        gamma: inverse temperature, positive, a number or (...).
        tol: largest relative error of a row or column sum.
        max_iter: largest number of Sinkhorn iterations.

    Returns:
        P, (..., m, n).

    Raises:
        ShapeError: shapes do not fit.
        ProblemError: r, c or gamma are not positive, sum(r) and sum(c) differ, or an argument has a wrong type or
            range.
        SolverError: the tolerance was not reached.
        DerivativeError: (in backward) the plan is so nearly a matching that its derivatives in r and c cannot be
            computed; that in M can.
    """
    require_tensor("M", M)
    if r is not None:
        require_tensor("r", r)
    check_number("tol", tol, least=0)
    check_integer("max_iter", max_iter, least=0)
    if M.ndim < 2:
        raise ShapeError(f"M: expected shape (..., m, n), got {tuple(M.shape)}")
    m, n = M.shape[-2:]
    rows = M.new_full((m,), 1.0 / max(m, 1)) if r is None else r
    columns = rows.sum(-1, keepdim=True).expand(*rows.shape[:-1], n) / n if c is None else c
    return _Transport(tol, max_iter)(M, rows, columns, as_tensor_like(gamma, M))[0]


@final
class _Transport(ClosedForm):
    arguments: ClassVar = {"M": ("m", "n"), "r": ("m",), "c": ("n",), "gamma": ()}
    in_float64: ClassVar = True

    def __init__(self, tol: float, max_iter: int) -> None:
        self._tol, self._max_iter = tol, max_iter

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        M, r, c, gamma = inputs
        for name, value in (("r", r), ("c", c), ("gamma", gamma.unsqueeze(-1))):
            if minimum(value) <= 0:
                wrong = (value <= 0).any(-1)
                raise ProblemError(
                    f"{name}: expected positive values, got {minimum(value):.3g}{describe_elements(wrong)}"
                )
        ratio = r.sum(-1, keepdim=True) / c.sum(-1, keepdim=True)
        sum_difference = (ratio - 1.0).abs() - EQUAL_SUMS_TOL
        if minimum(-sum_difference) < 0:
            wrong = sum_difference[..., 0] > 0
            raise ProblemError(f"r and c: expected equal sums{describe_elements(wrong)}; divide each by its own")
        dual = _DualPotentials(M, r, c * ratio)
        first = min(self._max_iter, INITIAL_ITERATIONS)
        left = self._max_iter - first + dual.solve(gamma, self._tol, first, newton=False)
        if not dual.within(GOOD_START_ERROR):
            spread = M.amax((-2, -1)) - M.amin((-2, -1))
            steps = torch.log2(gamma * spread / FIRST_COST_RANGE).amax().ceil().clamp(min=0)
            for step in range(int(steps)):
                smaller_gamma = torch.minimum(gamma, FIRST_COST_RANGE / spread * GAMMA_GROWTH**step)
                left = dual.solve(smaller_gamma, max(self._tol, GOOD_START_ERROR), left)
        if not dual.within(self._tol):
            dual.solve(gamma, self._tol, left)
        if not dual.within(self._tol):
            wrong = ~(dual.error <= self._tol)
            raise SolverError(
                f"optimal transport: the relative error of the row sums is {float(dual.error.max()):.1e} after "
                f"{self._max_iter} iterations{describe_elements(wrong)}, expected {self._tol:.1e}; lower gamma (now up "
                f"to {float(gamma.max()):.3g}), raise max_iter or tol"
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


class _DualPotentials:
    """Dual potentials f and g of a batch, and the plan that they define.

    Attributes:
        plan: (..., m, n).
        error: largest relative error of a row or column sum, (...).
    """

    def __init__(self, M: torch.Tensor, r: torch.Tensor, c: torch.Tensor) -> None:
        self._M, self._r, self._c = M, r, c
        self._log_r, self._log_c = r.log(), c.log()
        self._gamma: torch.Tensor | None = None  # none before the first ``solve``, which sets the others
        self._f: torch.Tensor
        self._g: torch.Tensor
        self._K: torch.Tensor
        self._damping: torch.Tensor
        self.error: torch.Tensor
        self.plan: torch.Tensor

    def within(self, tol: float) -> bool:
        """Whether the sums of all plans are within the tolerance."""
        return minimum(-self.error) >= -tol

    def solve(self, gamma: torch.Tensor, tol: float, budget: int, *, newton: bool = True) -> int:
        """Solve for gamma, from the potentials of the previous gamma; returns the remaining budget of iterations.

        Newton steps follow a sweep that reduced the error little.
        """
        self._K = -gamma[..., None, None] * self._M
        self._damping = torch.full_like(gamma, INITIAL_DAMPING)
        if self._gamma is None:
            self._sinkhorn_sweep(-self._K.amax(-1), torch.zeros_like(self._c), tol)
            budget -= SCALINGS_PER_SWEEP
        else:
            ratio = (gamma / self._gamma).unsqueeze(-1)  # f / gamma changes little
            self._f, self._g = ratio * self._f, ratio * self._g
            self.error = torch.full_like(gamma, torch.inf)
        self._gamma = gamma
        while budget > 0 and not self.within(tol):
            before = self.error
            f = self._log_r - torch.logsumexp(self._K + self._g.unsqueeze(-2), -1)
            g = self._log_c - torch.logsumexp(self._K + f.unsqueeze(-1), -2)
            self._sinkhorn_sweep(f, g, tol)
            budget -= 1 + SCALINGS_PER_SWEEP
            slow = newton and minimum(torch.clamp(SLOW_REDUCTION * before, min=tol) - self.error) < 0
            while slow and budget > 0 and not self.within(tol) and self._newton_step():
                budget -= 1
        return budget

    def _evaluate(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the plan of these potentials and its error."""
        plan = torch.exp(self._K + f.unsqueeze(-1) + g.unsqueeze(-2))
        rows = ((plan.sum(-1) - self._r).abs() / self._r).amax(-1)
        columns = ((plan.sum(-2) - self._c).abs() / self._c).amax(-1)
        return plan, torch.maximum(rows, columns).nan_to_num(torch.inf)

    def _sinkhorn_sweep(self, f: torch.Tensor, g: torch.Tensor, tol: float) -> None:
        """Run SCALINGS_PER_SWEEP iterations on the plan of these potentials; results that overflow are discarded."""
        plan = torch.exp(self._K + f.unsqueeze(-1) + g.unsqueeze(-2))
        r, c, transposed = self._r.unsqueeze(-1), self._c.unsqueeze(-1), plan.mT
        v = torch.ones_like(c)
        for _ in range(SCALINGS_PER_SWEEP):
            u = r / batch_matmul(plan, v)
            v = c / batch_matmul(transposed, u)
        # The columns were scaled last, so only the row sums can be wrong.
        error = (u * batch_matmul(plan, v) / r - 1.0).abs().amax((-2, -1))
        scaled = u * plan * v.mT
        new_f, new_g = f + u.squeeze(-1).log(), g + v.squeeze(-1).log()
        if minimum(-error) >= -tol:
            self._f, self._g, self.plan, self.error = new_f, new_g, scaled, error
            return
        _, before = self._evaluate(f, g)
        error = error.nan_to_num(torch.inf)
        better = error <= before
        self._f, self._g = torch.where(better[..., None], new_f, f), torch.where(better[..., None], new_g, g)
        self.plan = torch.where(better[..., None, None], scaled, plan)
        self.error = torch.where(better, error, before)

    def _newton_step(self) -> bool:
        """Take a damped Newton step on the dual where it improves; returns whether every unconverged element did."""
        a, b = self._r - self.plan.sum(-1), self._c - self.plan.sum(-2)
        diagonal_scaling = 1.0 + self._damping[..., None]
        factor, info = torch.linalg.cholesky_ex(_schur(self.plan, diagonal_scaling))
        df, dg = _solve(self.plan, _factor_inverse(factor), a, b, diagonal_scaling)
        f, g = self._f + df, self._g + dg
        plan, error = self._evaluate(f, g)
        # Change of sum P - f'r - g'c without cancellation: sum of P (exp(d) - 1 - d) less (a'df + b'dg).
        moved = df[..., :, None] + dg[..., None, :]
        objective_change = (
            (self.plan * (torch.expm1(moved) - moved)).sum((-2, -1)) - (a * df).sum(-1) - (b * dg).sum(-1)
        )
        better = (
            (info == 0)
            & (error < torch.inf)
            & ((objective_change < 0) | (error <= ERROR_DECREASE * self.error))
            & (self.error > 0)
        )
        all_improved = bool((better | (self.error <= ROUNDOFF_ERROR)).all())
        increased = (DAMPING_INCREASE * self._damping).clamp(MIN_DAMPING, MAX_DAMPING)
        self._damping = torch.where(better, DAMPING_DECREASE * self._damping, increased)
        self._f, self._g = torch.where(better[..., None], f, self._f), torch.where(better[..., None], g, self._g)
        self.plan = torch.where(better[..., None, None], plan, self.plan)
        self.error = torch.where(better, error, self.error)
        return all_improved


@final
class _MarginalSolve(ClosedForm):
    """Minimum-norm solution (p, q) of S(P) (p, q) = (a, b).

    S is symmetric, so the pullback solves the same system: with the solution (y, z) for (p_bar, q_bar),
    a_bar = y,   b_bar = z,   P_bar_ij = -(y_i + z_j) (p_i + q_j).

    A plan close to a matching falls into parts that exchange less mass than rounding, and S has null vectors: 1 on the
    rows and -1 on the columns of a part. They cancel in p_i + q_j wherever P is not negligible, so M_bar does not
    depend on them, and a pseudo-inverse suffices for it. The effect of moving mass between parts, r_bar and c_bar, is
    lost.

    Args:
        marginals_differentiated: raise an error for such plans, because r' or c' is needed.
    """

    arguments: ClassVar = {"P": ("m", "n"), "a": ("m",), "b": ("n",)}
    outputs: ClassVar = 2
    check_finite: ClassVar = False

    def __init__(self, *, marginals_differentiated: bool) -> None:
        self._marginals_differentiated = marginals_differentiated

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        P, a, b = inputs
        schur = _schur(P)
        factor, info = torch.linalg.cholesky_ex(schur)
        pivots = factor.diagonal(dim1=-2, dim2=-1).square() / schur.diagonal(dim1=-2, dim2=-1)
        smallest = minimum(pivots) if minimum(-info) >= 0 else 0.0
        if smallest > DISCONNECTED:
            inverse = _factor_inverse(factor)
        elif self._marginals_differentiated:
            wrong = (info != 0) | ~(pivots.amin(-1) > DISCONNECTED)
            raise DerivativeError(
                "the transport plan falls into parts that exchange nothing to working accuracy"
                f"{describe_elements(wrong)}: its derivative in the row and column sums cannot be computed; lower gamma"
            )
        else:
            inverse = _spectral_pseudo_inverse(schur)
        p, q = _solve(P, inverse, a, b)
        if smallest > WELL_CONDITIONED:
            return p, q
        rows, columns = P.sum(-1), P.sum(-2)
        # Iterative refinement: the Schur complement loses digits where the plan is nearly a matching.
        more = _solve(P, inverse, a - rows * p - batch_matvec(P, q), b - columns * q - batch_matvec(P.mT, p))
        return p + more[0], q + more[1]

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        P = inputs[0]
        p, q = solved
        y, z = self.apply(P, *cotangents)
        return -(y.unsqueeze(-1) + z.unsqueeze(-2)) * (p.unsqueeze(-1) + q.unsqueeze(-2)), y, z


def _factor_inverse(factor: torch.Tensor) -> Inverse:
    """Inverse of L L' for the Cholesky factor L."""
    return lambda v: torch.cholesky_solve(v.unsqueeze(-1), factor).squeeze(-1)


def _spectral_pseudo_inverse(schur: torch.Tensor) -> Inverse:
    """Pseudo-inverse of the matrix scaled to a unit diagonal, without eigenvalues below DISCONNECTED."""
    root = schur.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(schur.dtype).tiny).sqrt()
    values, vectors = torch.linalg.eigh(schur / root[..., :, None] / root[..., None, :])
    reciprocal = torch.where(values > DISCONNECTED, 1.0 / values, 0.0)
    return lambda v: batch_matvec(vectors, reciprocal * batch_matvec(vectors.mT, v / root)) / root


def _schur(P: torch.Tensor, diagonal_scaling: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Schur complement of S with a scaled diagonal, on the smaller side, plus r r'/sum(r) on its null space."""
    P = P if P.shape[-2] <= P.shape[-1] else P.mT
    r, c = P.sum(-1), P.sum(-2) * diagonal_scaling
    complement = torch.diag_embed(r * diagonal_scaling) - batch_matmul(P / c.unsqueeze(-2), P.mT)
    return complement + r.unsqueeze(-1) * (r / r.sum(-1, keepdim=True)).unsqueeze(-2)


def _solve(
    P: torch.Tensor, inverse: Inverse, a: torch.Tensor, b: torch.Tensor, diagonal_scaling: torch.Tensor | float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimum-norm solution of S (p, q) = (a, b); right-hand sides are projected on the range."""
    if P.shape[-2] > P.shape[-1]:
        q, p = _solve(P.mT, inverse, b, a, diagonal_scaling)
        return p, q
    a, b = _orthogonal_to_null_space(a, b)
    c = P.sum(-2) * diagonal_scaling
    p = inverse(a - batch_matvec(P, b / c))
    return _orthogonal_to_null_space(p, (b - batch_matvec(P.mT, p)) / c)


def _orthogonal_to_null_space(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Project (a, b) on the orthogonal complement of the null vector (1, -1)."""
    shift = (a.sum(-1, keepdim=True) - b.sum(-1, keepdim=True)) / (a.shape[-1] + b.shape[-1])
    return a - shift, b + shift


_MARGINAL_SOLVE = {
    marginals_differentiated: _MarginalSolve(marginals_differentiated=marginals_differentiated)
    for marginals_differentiated in (False, True)
}
