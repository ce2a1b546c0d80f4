"""Weighted perspective-n-point: the camera pose of least squared reprojection error.

    R, t = argmin sum_i w_i |pi(R X_i + t) - x_i|^2   subject to R a rotation,       pi(Y) = (Y_1, Y_2) / Y_3

Perturb the pose to exp([omega]) R, t + tau with delta = (omega, tau) in six coordinates. Let q = R X, Y = q + t,
r = pi(Y) - x. The first and second derivatives of Y, of pi(Y) and of the objective f in the direction delta are

    DY = omega x q + tau,   D^2 Y = omega x (omega x q)
    e = D pi DY = ((DY_1, DY_2) - pi DY_3) / Y_3,   D^2 pi [DY, DY] = -2 e DY_3 / Y_3
    Df = 2 sum_i w_i r'e,   D^2 f = 2 sum_i w_i (|e|^2 + r'(D^2 pi [DY, DY] + D pi D^2 Y))

Pullback: with the Hessian H of f in delta and z = H^-1 delta_bar, the cotangents of X, x and w are the gradients of
-Df in the direction z; the matrix of mixed second derivatives is not formed.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch

from convexlayer.arguments import check_integer, check_number
from convexlayer.errors import ProblemError, ShapeError, SolverError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import (
    ClosedForm,
    batch_matvec,
    closed_form_function,
    describe_elements,
    require_tensor,
)
from convexlayer.nodes.closed_form.hessian_solve import HessianSolve

__all__ = ["perspective_n_point", "rotation_of"]

MIN_LINEAR_POINTS = 6
"""Points of the linear start: each gives two of the eleven equations for a projection matrix up to scale."""

ROTATION_EXPONENT = 0.5
"""A start is a rotation if the entries of R'R - I are below eps of its dtype to this power: half the digits."""

INITIAL_DAMPING, MIN_DAMPING, MAX_DAMPING = 1e-3, 1e-16, 1e8
"""Levenberg-Marquardt damping relative to the Hessian: first value, and limits; usual choices."""

DAMPING_DECREASE, DAMPING_INCREASE = 0.1, 10.0
"""Factors of the damping after an accepted and a rejected step (Marquardt 1963)."""

COST_ROUNDOFF, COST_FLOOR = 1e-14, 1e-30
"""Relative and absolute increase of the cost that is rounding in float64, so that the last steps are accepted."""


@closed_form_function
def perspective_n_point(
    X: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor | None = None,
    *,
    start: tuple[torch.Tensor, torch.Tensor] | None = None,
    tol: float = 1e-12,
    max_iter: int = 200,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pose of a calibrated camera from points in space and their images.

    The forward pass is damped Newton on the rotations, from a linear solution or from ``start``, to a local minimum. It
    runs in float64.

    Args:
        X: points in space, (..., n, 3); leading axes broadcast.
        x: normalised image points, (..., n, 2): pixels with the inverse of the camera matrix applied.
        w: weights, (..., n), nonnegative; 1 each by default.
        start: initial rotation (..., 3, 3) and translation (..., 3), not differentiated. Without a start at least six
            points not in one plane are required.
        tol: largest entry of the gradient in the six coordinates, relative to its bound for residuals of norm one.
        max_iter: largest number of iterations.

    Returns:
        R (..., 3, 3) and t (..., 3).

    Raises:
        ShapeError: shapes do not fit.
        ProblemError: a weight is negative, there are too few points for a linear start, or the start is no rotation.
        SolverError: the tolerance was not reached.
        DerivativeError: (in backward) the points do not determine the pose: fewer than three have positive weight, or
            all are collinear.
    """
    require_tensor("X", X)
    require_tensor("x", x)
    check_number("tol", tol, least=0)
    check_integer("max_iter", max_iter, least=0)
    if X.ndim < 2 or X.shape[-1] != 3 or x.ndim < 2 or x.shape[-1] != 2:
        raise ShapeError(f"expected X (..., n, 3) and x (..., n, 2), got {tuple(X.shape)} and {tuple(x.shape)}")
    weights = X.new_ones(X.shape[-2:-1]) if w is None else w
    form = _Pose(tol, max_iter)
    if start is None:
        R, t = form(X, x, weights)
        return R, t
    rotation, translation = start
    require_tensor("start", rotation)
    require_tensor("start", translation)
    from_start = _PoseFromStart(form, torch.finfo(rotation.dtype).eps ** ROTATION_EXPONENT)
    R, t = from_start(X, x, weights, rotation.detach(), translation.detach())
    return R, t


def rotation_of(omega: torch.Tensor) -> torch.Tensor:
    """Rotation exp([omega]) (..., 3, 3) about the vector omega (..., 3) by the angle |omega| in radians."""
    return torch.linalg.matrix_exp(_cross(omega))


def _cross(a: torch.Tensor) -> torch.Tensor:
    """Cross-product matrix [a] (..., 3, 3), with [a] b = a x b."""
    a1, a2, a3 = a.unbind(-1)
    zero = torch.zeros_like(a1)
    rows = [torch.stack(row, -1) for row in ((zero, -a3, a2), (a3, zero, -a1), (-a2, a1, zero))]
    return torch.stack(rows, -2)


@final
class _Pose(ClosedForm):
    arguments: ClassVar = {"X": ("n", "3"), "x": ("n", "2"), "w": ("n",)}
    outputs: ClassVar = 2
    in_float64: ClassVar = True

    def __init__(self, tol: float, max_iter: int) -> None:
        self._tol, self._max_iter = tol, max_iter

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        X, x, w = inputs
        return self.refine(X, x, w, *_linear_start(X, x, w))

    def refine(self, X: torch.Tensor, x: torch.Tensor, w: torch.Tensor, R: torch.Tensor, t: torch.Tensor) -> Tensors:
        """Minimise from the pose (R, t)."""
        if bool((w < 0).any()):
            raise ProblemError(
                f"w: expected nonnegative weights, got {float(w.min()):.3g}{describe_elements((w < 0).any(-1))}"
            )
        R, t = R.clone(), t.clone()  # outputs may not be inputs
        identity = torch.eye(6, dtype=X.dtype, device=X.device)
        damping = torch.full(w.shape[:-1], INITIAL_DAMPING, dtype=X.dtype, device=X.device)
        done = torch.zeros_like(damping, dtype=torch.bool)
        value, num_behind = _cost(X, x, w, R, t)
        for _ in range(self._max_iter):
            gradient, H, scale = _second_order_model(X, x, w, R, t)
            done = done | (gradient.abs().amax(-1) <= self._tol * scale)
            if bool(done.all()):
                return R, t
            sizes = H.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
            factor, info = torch.linalg.cholesky_ex(H + (damping * sizes)[..., None, None] * identity)
            step = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
            step = torch.where((info == 0)[..., None], step, 0.0)
            new_R, new_t = rotation_of(step[..., :3]) @ R, t + step[..., 3:]
            new_value, new_num_behind = _cost(X, x, w, new_R, new_t)
            limit = value + COST_ROUNDOFF * value.abs() + COST_FLOOR
            lower = (info == 0) & (new_num_behind <= num_behind) & (new_value <= limit)
            accepted = lower & ~done
            R = torch.where(accepted[..., None, None], new_R, R)
            t = torch.where(accepted[..., None], new_t, t)
            value, num_behind = (
                torch.where(accepted, new_value, value),
                torch.where(accepted, new_num_behind, num_behind),
            )
            decreased = (damping * DAMPING_DECREASE).clamp(min=MIN_DAMPING)
            damping = torch.where(lower, decreased, (damping * DAMPING_INCREASE).clamp(max=MAX_DAMPING))
        raise SolverError(
            f"perspective-n-point: not converged after {self._max_iter} iterations{describe_elements(~done)}; give a "
            "start nearer to the pose, or raise max_iter or tol"
        )

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        X, x, w = inputs
        R, t = solved
        _, H, _ = _second_order_model(X, x, w, R, t)
        # <G, [omega] R> = omega'(axial vector of G R')
        spun = cotangents[0] @ R.mT
        axial = torch.stack([spun[..., 2, 1], spun[..., 0, 2], spun[..., 1, 0]], -1) - torch.stack(
            [spun[..., 1, 2], spun[..., 2, 0], spun[..., 0, 1]], -1
        )
        (z,) = _HESSIAN_SOLVE.apply(H, torch.cat([axial, cotangents[1]], -1))
        omega, tau = z[..., None, :3], z[..., None, 3:]
        q = X @ R.mT
        Y = q + t[..., None, :]
        depth = Y[..., 2:]
        projected = Y[..., :2] / depth
        r = projected - x
        d = torch.linalg.cross(omega.expand_as(q), q) + tau
        e = (d[..., :2] - projected * d[..., 2:]) / depth
        re = (r * e).sum(-1, keepdim=True)
        # Df in the direction z, 2 sum w r'e, depends on Y through r and e, and on q through DY (here d).
        back_r, back_e = _pi_transposed(r, projected, depth), _pi_transposed(e, projected, depth)
        in_depth = torch.nn.functional.pad(-re / depth, (2, 0))
        in_Y = back_e - d[..., 2:] / depth * back_r + in_depth
        in_q = in_Y + torch.linalg.cross(back_r, omega.expand_as(back_r))
        twice = 2.0 * w[..., None]
        return -(twice * in_q) @ R, twice * e, -2.0 * re[..., 0]


@final
class _PoseFromStart(ClosedForm):
    """The pose from a given start."""

    arguments: ClassVar = {**_Pose.arguments, "R": ("3", "3"), "t": ("3",)}
    outputs: ClassVar = 2
    in_float64: ClassVar = True

    def __init__(self, form: _Pose, tol: float) -> None:
        self._form, self._tol = form, tol

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        R = inputs[3]
        error = (R.mT @ R - torch.eye(3, dtype=R.dtype, device=R.device)).abs().amax((-2, -1))
        wrong = (error > self._tol) | (torch.linalg.det(R) < 0)
        if bool(wrong.any()):
            raise ProblemError(
                f"start: expected a rotation{describe_elements(wrong)}, R'R = I and det(R) = 1, got R'R - I up to "
                f"{float(error.max()):.1e} and det(R) from {float(torch.linalg.det(R).min()):.3g}"
            )
        return self._form.refine(*inputs)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        found = self._form.pullback(inputs[:3], solved, cotangents, wanted[:3])
        return (*found, *(torch.zeros_like(part) for part in inputs[3:]))


def _cost(
    X: torch.Tensor, x: torch.Tensor, w: torch.Tensor, R: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Objective (...), and the number of points of positive weight behind the camera (...)."""
    Y = X @ R.mT + t[..., None, :]
    r = Y[..., :2] / Y[..., 2:] - x
    value = (w * r.square().sum(-1)).sum(-1)
    return value.nan_to_num(torch.inf), ((Y[..., 2] <= 0) & (w > 0)).sum(-1)


def _pi_transposed(v: torch.Tensor, projected: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Pull v (..., n, 2) back through pi: (D pi)' v, (..., n, 3)."""
    return torch.cat([v, -(projected * v).sum(-1, keepdim=True)], -1) / depth


def _second_order_model(
    X: torch.Tensor, x: torch.Tensor, w: torch.Tensor, R: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient (..., 6), Hessian (..., 6, 6), and bound of the gradient for residuals of norm one (...)."""
    q = X @ R.mT
    Y = q + t[..., None, :]
    depth, projected = Y[..., 2:], Y[..., :2] / Y[..., 2:]
    r = projected - x
    identity = torch.eye(3, dtype=X.dtype, device=X.device).expand(*q.shape[:-1], 3, 3)
    D = torch.cat([-_cross(q), identity], -1)  # (..., n, 3, 6): DY for each of the six directions
    J = (D[..., :2, :] - projected[..., :, None] * D[..., 2:, :]) / depth[..., None]
    wJ = w[..., None, None] * J
    gradient = 2.0 * batch_matvec(wJ.mT, r).sum(-2)
    # r'D^2 pi [D_a, D_b] = -(D_a3 r'e_b + D_b3 r'e_a) / Y_3, and b'D^2 Y with b = (D pi)'r, over the rotations
    rJ = batch_matvec(wJ.mT, r)
    mixed = (D[..., 2, :] / depth)[..., :, None] * rJ[..., None, :]
    b = w[..., None] * _pi_transposed(r, projected, depth)
    bq = b[..., :, None] * q[..., None, :]
    trace = (b * q).sum(-1)[..., None, None] * identity
    turned = 0.5 * (bq + bq.mT) - trace  # b'(omega x (omega x q)) = (omega'b)(omega'q) - (omega'omega)(b'q)
    H = (J.mT @ wJ - mixed - mixed.mT + torch.nn.functional.pad(turned, (0, 3, 0, 3))).sum(-3)
    scale = 2.0 * torch.linalg.matrix_norm(wJ).sum(-1)
    return gradient, 2.0 * H, scale


def _linear_start(X: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pose nearest to the projection matrix of least algebraic error, by the direct linear transform.

    Points are centred and scaled first (Hartley and Zisserman 2004, section 7.1).
    """
    if X.shape[-2] < MIN_LINEAR_POINTS:
        raise ProblemError(
            f"expected at least {MIN_LINEAR_POINTS} points for a linear start, got {X.shape[-2]}; pass start=(R, t)"
        )
    normalised_weights = (w / w.sum(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny))[..., None]
    centre = (normalised_weights * X).sum(-2, keepdim=True)
    size = (
        (normalised_weights * (X - centre).square())
        .sum((-2, -1), keepdim=True)
        .sqrt()
        .clamp(min=torch.finfo(X.dtype).tiny)
    )
    homogeneous = torch.nn.functional.pad((X - centre) / size, (0, 1), value=1.0)
    zeros = torch.zeros_like(homogeneous)
    rows = [
        torch.cat([first, second, -x[..., k : k + 1] * homogeneous], -1)
        for k, (first, second) in enumerate(((homogeneous, zeros), (zeros, homogeneous)))
    ]
    gram = sum((row.mT @ (normalised_weights * row) for row in rows), torch.zeros((), dtype=X.dtype, device=X.device))
    projection = torch.linalg.eigh(gram).eigenvectors[..., 0].unflatten(-1, (3, 4))
    depths = batch_matvec(homogeneous, projection[..., 2, :])
    projection = (
        projection * torch.where((normalised_weights[..., 0] * depths.sign()).sum(-1) < 0, -1.0, 1.0)[..., None, None]
    )
    left, sizes, right = torch.linalg.svd(projection[..., :3])
    flip = torch.ones_like(sizes)
    flip[..., 2] = torch.linalg.det(left @ right).sign()
    R = (left * flip[..., None, :]) @ right
    t = projection[..., 3] / sizes.mean(-1, keepdim=True) * size[..., 0]
    return R, t - batch_matvec(R, centre[..., 0, :])


_HESSIAN_SOLVE = HessianSolve("perspective-n-point", "add points, or weight to those there are")
