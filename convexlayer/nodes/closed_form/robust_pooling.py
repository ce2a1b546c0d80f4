"""Robust pooling: the point of least total penalised distance to given points.

    u = argmin sum_i phi(|u - x_i|; alpha)

Pullback, with d_i = u - x_i, s_i = |d_i|^2, the weights w_i of the penalty and their slopes m_i = dw_i/ds:

    H = sum_i w_i I + 2 m_i d_i d_i',   z = H^-1 u_bar
    x_bar_i = w_i z + 2 m_i d_i (d_i'z),   alpha_bar = -z'sum_i dw_i/dalpha d_i

References: Gould, slides on differentiable optimisation, 2026, average pooling. Gould, Hartley and Campbell, Deep
declarative networks, 2022.
"""

from __future__ import annotations

import warnings
from typing import ClassVar, final

import torch

from convexlayer.arguments import check_integer, check_kind, check_number
from convexlayer.errors import ProblemError, SolverError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import (
    ClosedForm,
    as_tensor_like,
    batch_matvec,
    closed_form_function,
    describe_elements,
    minimum,
    require_tensor,
)
from convexlayer.nodes.closed_form.hessian_solve import HessianSolve
from convexlayer.nodes.closed_form.penalties import AbstractPenalty

__all__ = ["robust_pool"]

MIN_CURVATURE_SHARE = 1e-2
"""Smallest curvature that a Newton step assumes where the Hessian is indefinite, as a share of the total weight;
smaller shares allow longer steps."""

VALUE_ROUNDOFF = 1e-14
"""Relative difference of objectives in float64 that is rounding: near the solution, where the objectives of both
steps are equal up to that, the Newton step is taken."""

STALL_FACTOR = 4.0
"""The gradient is zero up to rounding at this multiple of eps times the total weight times |u|."""


@closed_form_function
def robust_pool(
    x: torch.Tensor,
    penalty: AbstractPenalty,
    alpha: torch.Tensor | float = 1.0,
    *,
    start: torch.Tensor | None = None,
    tol: float = 1e-12,
    max_iter: int = 500,
) -> torch.Tensor:
    """Pool n points into one.

    The forward pass takes the better of a reweighted average and a Newton step. A nonconvex penalty may have several
    minima; the result is the lowest of those reached from the mean, the coordinatewise median and the best of the
    points, or the one reached from ``start``. It runs in float64.

    Args:
        x: points, (..., n, d); scalar features as d = 1.
        penalty: Quadratic(), PseudoHuber(), Huber(), Welsch() or TruncatedQuadratic().
        alpha: scale of the penalty, positive, a number or (...).
        start: initial point, (d,) or (..., d), not differentiated. One of another batch shape, such as that of the last
            batch of a DataLoader, is ignored with a warning.
        tol: norm of the gradient, relative to the sum of the norms of its terms, up to rounding.
        max_iter: largest number of iterations.

    Returns:
        u, (..., d).

    Raises:
        ShapeError: shapes do not fit, or there are no points.
        ProblemError: alpha is not positive, or an argument has a wrong type or range.
        SolverError: the tolerance was not reached.
        DerivativeError: (in backward) the Hessian is singular, for example if an interval is optimal because no point
            lies within alpha of it under the Huber penalty in one dimension.
    """
    require_tensor("x", x)
    check_kind("penalty", penalty, AbstractPenalty, "a penalty such as Huber()")
    check_number("tol", tol, least=0)
    check_integer("max_iter", max_iter, least=0)
    form = _Pooling(penalty, tol, max_iter)
    if start is not None:
        require_tensor("start", start)
    if start is not None and start.ndim > 1 and start.shape[:-1] != x.shape[:-2]:
        warnings.warn(
            f"the start has the batch shape {tuple(start.shape[:-1])}, the points have {tuple(x.shape[:-2])}: "
            "the start is ignored",
            UserWarning,
            stacklevel=2,
        )
        start = None
    if start is None:
        return form(x, as_tensor_like(alpha, x))[0]
    return _PoolingFromStart(form)(x, as_tensor_like(alpha, x), start.detach())[0]


@final
class _Pooling(ClosedForm):
    arguments: ClassVar = {"x": ("n", "d"), "alpha": ()}
    in_float64: ClassVar = True

    def __init__(self, penalty: AbstractPenalty, tol: float, max_iter: int) -> None:
        self._penalty, self._tol, self._max_iter = penalty, tol, max_iter

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        x, alpha = inputs
        if minimum(alpha) <= 0:
            raise ProblemError(
                f"alpha: expected a positive scale, got {minimum(alpha):.3g}{describe_elements(alpha <= 0)}"
            )
        starts = [x.mean(-2)]
        if not self._penalty.convex:
            distances = torch.cdist(x, x).square()
            totals = self._penalty.value(distances, alpha[..., None, None].expand_as(distances)).sum(-1)
            best = totals.argmin(-1)[..., None, None].expand(*x.shape[:-2], 1, x.shape[-1])
            starts += [x.median(-2).values, x.gather(-2, best)[..., 0, :]]
        found = self.descend(x, alpha, torch.stack(starts))
        if len(starts) == 1:
            return (found[0],)
        lowest = self._value(x, alpha, found).argmin(0)[None, ..., None].expand(1, *found.shape[1:])
        return (found.gather(0, lowest)[0],)

    def descend(self, x: torch.Tensor, alpha: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Minimise from several starts (s, ..., d).

        The penalties are concave in the squared distance, so a reweighted average never increases the objective: it
        minimises a quadratic majorant. Near a minimum the Newton step is better.
        """
        shape = starts.shape
        x = x.expand(shape[:-1] + x.shape[-2:]).reshape(-1, *x.shape[-2:])
        alpha, u = alpha.expand(shape[:-1]).reshape(-1), starts.reshape(-1, shape[-1])
        found, places = torch.empty_like(u), torch.arange(len(u), device=u.device)
        done = torch.zeros_like(alpha, dtype=torch.bool)
        for _ in range(self._max_iter):
            d, w, H = self._model(x, alpha, u)
            gradient = (w[..., None] * d).sum(-2)
            size = torch.linalg.vector_norm(gradient, dim=-1)
            scale = (w * torch.linalg.vector_norm(d, dim=-1)).sum(-1)
            rounding = STALL_FACTOR * torch.finfo(x.dtype).eps * w.sum(-1) * torch.linalg.vector_norm(u, dim=-1)
            done = done | (size <= self._tol * scale + rounding)
            left = torch.argwhere(~done)[:, 0]
            if 2 * len(left) <= len(done):  # continue without the converged half
                found[places] = u
                if not len(left):
                    return found.reshape(shape)
                places, x, alpha, u, w, H, gradient, done = (
                    part[left] for part in (places, x, alpha, u, w, H, gradient, done)
                )
            average = u - gradient / w.sum(-1, keepdim=True)
            newton = u - _newton_step(H, gradient, w.sum(-1))
            low = self._value(x, alpha, average)
            better = self._value(x, alpha, newton) <= low + VALUE_ROUNDOFF * low.abs()
            step = torch.where(better[..., None], newton, average)
            u = torch.where(done[..., None], u, step)
        wrong = torch.zeros(len(found), dtype=torch.bool, device=u.device)
        wrong[places] = ~done
        raise SolverError(
            f"robust pooling: not converged after {self._max_iter} iterations"
            f"{describe_elements(wrong.reshape(shape[:-1]).any(0))}; raise max_iter or tol"
        )

    def _value(self, x: torch.Tensor, alpha: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Objective (...)."""
        s = (u[..., None, :] - x).square().sum(-1)
        return self._penalty.value(s, alpha[..., None].expand_as(s)).sum(-1)

    def _model(self, x: torch.Tensor, alpha: torch.Tensor, u: torch.Tensor) -> Tensors:
        """Differences u - x_i (..., n, d), weights (..., n) and the Hessian (..., d, d)."""
        d = u[..., None, :] - x
        s = d.square().sum(-1)
        scale = alpha[..., None].expand_as(s)
        w = self._penalty.weight(s, scale)
        slope = self._penalty.slope(s, scale)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return d, w, w.sum(-1)[..., None, None] * identity + 2.0 * (d * slope[..., None]).mT @ d

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        x, alpha = inputs
        d, w, H = self._model(x, alpha, solved[0])
        s = d.square().sum(-1)
        scale = alpha[..., None].expand_as(s)
        (z,) = _HESSIAN_SOLVE.apply(H, cotangents[0])
        along = batch_matvec(d, z)
        radial = 2.0 * self._penalty.slope(s, scale) * along
        dalpha = -(self._penalty.scale_slope(s, scale) * along).sum(-1)
        return w[..., None] * z[..., None, :] + radial[..., None] * d, dalpha


def _newton_step(H: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Newton step H^-1 gradient; where H is indefinite, with the magnitudes of its eigenvalues, bounded from below.

    It descends at saddle points too, where averaging, which takes H for the total weight, is slow.
    """
    factor, info = torch.linalg.cholesky_ex(H)
    step = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
    indefinite = torch.argwhere(info)[:, 0]
    if len(indefinite):
        values, vectors = torch.linalg.eigh(H[indefinite])
        curvature = torch.maximum(values.abs(), MIN_CURVATURE_SHARE * weight[indefinite, None])
        step[indefinite] = batch_matvec(vectors, batch_matvec(vectors.mT, gradient[indefinite]) / curvature)
    return step


@final
class _PoolingFromStart(ClosedForm):
    """Pooling from a given start."""

    arguments: ClassVar = {**_Pooling.arguments, "start": ("d",)}
    in_float64: ClassVar = True

    def __init__(self, form: _Pooling) -> None:
        self._form = form

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        x, alpha, start = inputs
        return (self._form.descend(x, alpha, start[None])[0],)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        return (*self._form.pullback(inputs[:2], solved, cotangents, wanted[:2]), torch.zeros_like(inputs[2]))


_HESSIAN_SOLVE = HessianSolve("robust pooling", "enlarge alpha, or use PseudoHuber(), whose minimum is unique")
