"""Closed forms against what is known of their solutions, and their edges: degenerate, infeasible, not unique."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.func import vmap

from convexlayer.errors import DerivativeError, ProblemError, ShapeError, SolverError
from convexlayer.nodes import (
    Huber,
    Quadratic,
    TruncatedQuadratic,
    Welsch,
    eigen_decomposition,
    least_squares,
    nearest_simplex_etf,
    optimal_transport,
    orthogonal_procrustes,
    perspective_n_point,
    project_l1_ball,
    project_l1_sphere,
    project_l2_ball,
    project_l2_sphere,
    project_linf_ball,
    project_linf_sphere,
    project_simplex,
    robust_pool,
    rotation_of,
    simplex_etf,
    weighted_least_squares,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def double(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


# --- least squares ---------------------------------------------------------------------------------------------------


def test_least_squares_is_lstsq() -> None:
    A, b = normal(2, 9, 4).requires_grad_(), normal(9).requires_grad_()
    theirs = torch.linalg.lstsq(A, b.expand(2, 9)[..., None]).solution[..., 0]
    ours = least_squares(A, b)
    torch.testing.assert_close(ours, theirs)
    v = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, (A, b), v), torch.autograd.grad(theirs, (A, b), v))


def test_a_weight_of_zero_has_a_gradient_and_its_row_none() -> None:
    A, b = normal(6, 2).requires_grad_(), normal(6).requires_grad_()
    w = double(1.0, 2.0, 0.0, 1.0, 0.5, 1.0).requires_grad_()
    x = weighted_least_squares(A, b, w)
    torch.testing.assert_close(x, least_squares(w.sqrt()[:, None] * A, w.sqrt() * b))
    x.sum().backward()
    assert w.grad is not None
    step = torch.zeros_like(w)
    step[2] = 1e-6
    ahead = (weighted_least_squares(A, b, w + step) - x).sum() / 1e-6
    torch.testing.assert_close(w.grad[2], ahead.detach(), rtol=1e-4, atol=1e-6)
    assert A.grad is not None
    assert not A.grad[2].any()


@pytest.mark.parametrize("A", [torch.ones(3, 5, 2), torch.zeros(3, 5, 2), torch.ones(3, 1, 2)])
def test_dependent_columns_are_refused(A: torch.Tensor) -> None:
    with pytest.raises(ProblemError, match=r"dependent columns|full column rank"):
        least_squares(A, torch.ones(A.shape[-2]))


def test_the_elements_with_dependent_columns_are_named() -> None:
    A = normal(4, 5, 2)
    A[2, :, 1] = A[2, :, 0]
    with pytest.raises(ProblemError, match="in element 2"):
        least_squares(A, normal(5))


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ProblemError, match="nonnegative"):
        weighted_least_squares(normal(3, 1), normal(3), double(1.0, -1.0, 1.0))


@pytest.mark.parametrize(("m", "n", "rank"), [(6, 4, 2), (3, 5, 2), (4, 4, 1), (3, 5, 3), (5, 3, 3)])
def test_the_solution_of_least_norm_and_its_derivative_at_constant_rank(m: int, n: int, rank: int) -> None:
    left, right, b = normal(m, rank).requires_grad_(), normal(rank, n).requires_grad_(), normal(m).requires_grad_()

    def solve(left: torch.Tensor, right: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return least_squares(left @ right, b, rcond=1e-6, on_degenerate="raise")

    x = solve(left, right, b)
    torch.testing.assert_close(x, torch.linalg.pinv(left @ right, rtol=1e-6) @ b)
    assert torch.autograd.gradcheck(solve, (left, right, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, (left, right, b))
    torch.testing.assert_close(vmap(solve)(left[None], right[None], b[None])[0], x)


def test_the_derivative_is_that_of_small_singular_values_set_to_zero() -> None:
    """So it exists in every direction, those that raise the rank included."""
    A, b, E, v = (normal(5, 2) @ normal(2, 4)).requires_grad_(), normal(5), normal(5, 4), normal(4)
    (gradient,) = torch.autograd.grad(least_squares(A, b, rcond=1e-3, on_degenerate="raise") @ v, A)
    ahead, behind = (least_squares(A.detach() + h * E, b, rcond=1e-3) @ v for h in (1e-6, -1e-6))
    torch.testing.assert_close((gradient * E).sum(), (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


def test_the_least_norm_of_independent_columns_is_the_solution() -> None:
    A, b = normal(2, 7, 3).requires_grad_(), normal(7).requires_grad_()
    alone, least = least_squares(A, b), least_squares(A, b, rcond=0.0)
    torch.testing.assert_close(alone, least)
    v = normal(2, 3)
    torch.testing.assert_close(torch.autograd.grad(alone, (A, b), v), torch.autograd.grad(least, (A, b), v))


def test_an_ambiguous_rank_is_told() -> None:
    A = torch.diag(double(1.0, 0.3, 0.1))[None].repeat(2, 1, 1)
    A[0, 2, 2] = 0.0
    A.requires_grad_()
    with pytest.raises(DerivativeError, match=r"ambiguous in element 1: .* is 3\.3e-01 of"):
        least_squares(A, normal(3), rcond=0.2, on_degenerate="raise").sum().backward()
    with pytest.warns(UserWarning, match="rank of A is ambiguous"):
        least_squares(A, normal(3), rcond=0.2).sum().backward()
    zero = torch.zeros(3, 2, dtype=torch.float64).requires_grad_()
    with pytest.raises(DerivativeError, match="ambiguous"):
        least_squares(zero, normal(3), rcond=0.2, on_degenerate="raise").sum().backward()


@pytest.mark.parametrize("rcond", [-1.0, 1.0, math.nan])
def test_an_rcond_is_a_ratio(rcond: float) -> None:
    with pytest.raises(ProblemError, match="rcond"):
        least_squares(normal(3, 2), normal(3), rcond=rcond)


# --- eigendecomposition ----------------------------------------------------------------------------------------------


def test_a_projector_on_a_repeated_eigenspace_has_its_derivative() -> None:
    """Projectors do not depend on the basis: the gradient equals the one by differences, without a warning."""
    Q = torch.linalg.qr(normal(4, 4)).Q
    X = (Q * double(0.0, 1.0, 2.0, 2.0) @ Q.T).requires_grad_()
    C, E = normal(4, 4), normal(4, 4)

    def loss(X: torch.Tensor) -> torch.Tensor:
        Y = eigen_decomposition(X, 2, on_degenerate="raise")[1]
        return (C * (Y @ Y.T)).sum()

    (gradient,) = torch.autograd.grad(loss(X), X)
    slope = (loss(X + 1e-5 * E) - loss(X - 1e-5 * E)) / 2e-5
    torch.testing.assert_close((gradient * E).sum(), slope, rtol=1e-6, atol=1e-8)


def test_what_tells_repeated_eigenvectors_apart_has_none() -> None:
    X = torch.eye(3, dtype=torch.float64).requires_grad_()
    C = normal(3, 3)
    with pytest.raises(DerivativeError, match="coincide"):
        (C * eigen_decomposition(X, on_degenerate="raise")[1]).sum().backward()
    with pytest.warns(UserWarning, match="coincide"):
        (C * eigen_decomposition(X)[1]).sum().backward()
    assert X.grad is not None
    assert torch.isfinite(X.grad).all()
    with pytest.raises(DerivativeError, match="coincide"):
        (double(1.0, 2.0, 3.0) * eigen_decomposition(X, on_degenerate="raise")[0]).sum().backward()


def test_the_sum_of_repeated_eigenvalues_has_a_derivative() -> None:
    X = torch.eye(3, dtype=torch.float64).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eigen_decomposition(X)[0].sum().backward()
    torch.testing.assert_close(X.grad, torch.eye(3, dtype=torch.float64))


def test_the_largest_entry_of_an_eigenvector_is_positive() -> None:
    Y = eigen_decomposition(normal(5, 6, 6))[1]
    assert (Y.gather(-2, Y.abs().argmax(-2, keepdim=True)) > 0).all()


@pytest.mark.parametrize("k", [0, 5])
def test_more_eigenvalues_than_there_are(k: int) -> None:
    with pytest.raises(ProblemError, match="1 to 4"):
        eigen_decomposition(normal(4, 4), k)


# --- optimal transport -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize(("m", "n"), [(1, 4), (6, 3), (20, 20)])
def test_sums_and_form_of_the_plan(m: int, n: int, gamma: float) -> None:
    M, r, c = torch.rand(m, n, dtype=torch.float64), normal(m).softmax(-1), normal(n).softmax(-1)
    P = optimal_transport(M, r, c, gamma)
    torch.testing.assert_close(P.sum(1), r, rtol=1e-9, atol=0)
    torch.testing.assert_close(P.sum(0), c, rtol=1e-9, atol=0)
    # log P + gamma M = f_i + g_j: all its second differences vanish, where P has not underflowed.
    L = torch.where(P > 1e-300, P.log() + gamma * M, math.nan)
    cross = L[1:, 1:] - L[1:, :1] - L[:1, 1:] + L[:1, :1]
    assert cross.nan_to_num(0.0).abs().max() <= 1e-9 * max(gamma, 1.0) if cross.numel() else True


def test_a_large_gamma_gives_the_matching() -> None:
    M = torch.rand(8, 8, dtype=torch.float64)
    order = torch.randperm(8)
    M[torch.arange(8), order] -= 1.0
    P = 8.0 * optimal_transport(M, gamma=200.0)
    torch.testing.assert_close(P.argmax(1), order)
    torch.testing.assert_close(P.amax(1), torch.ones(8).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [20.0, 30.0, 40.0, 200.0])
def test_a_plan_that_falls_into_parts_keeps_its_gradient_in_the_costs(gamma: float) -> None:
    """Two pairs, each a plan of its own at large gamma: the gradient is that of the pairs alone."""
    pair = torch.tensor([[0.0, 0.02], [0.01, 0.0]], dtype=torch.float64)
    M = torch.block_diag(pair, pair) + torch.block_diag(*2 * [torch.ones(2, 2)]).neg().add(1.0)
    M = M.requires_grad_()
    C = normal(4, 4)
    (gradient,) = torch.autograd.grad((C * optimal_transport(M, gamma=gamma)).sum(), M)
    alone = pair.expand(2, 2, 2).clone().requires_grad_()
    parts = 0.5 * optimal_transport(alone, gamma=gamma)
    (expected,) = torch.autograd.grad((torch.stack([C[:2, :2], C[2:, 2:]]) * parts).sum(), alone)
    found = torch.stack([gradient[:2, :2], gradient[2:, 2:]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 + 20.0 * gamma * math.exp(-0.95 * gamma))


def test_a_plan_that_falls_into_parts_has_none_in_its_sums() -> None:
    M, r = 1.0 - torch.eye(4, dtype=torch.float64), torch.full((4,), 0.25).double().requires_grad_()
    P = optimal_transport(M, r, gamma=200.0)
    with pytest.raises(DerivativeError, match="lower gamma"):
        (P * normal(4, 4)).sum().backward()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"r": double(1.0, 1.0)}, "equal sums"),
        ({"r": double(1.0, 0.0)}, "positive"),
        ({"gamma": -1.0}, "gamma"),
    ],
)
def test_impossible_marginals(change: dict[str, torch.Tensor | float], match: str) -> None:
    arguments = {"M": normal(2, 3), "r": double(0.5, 0.5), "c": double(0.2, 0.3, 0.5), "gamma": 1.0, **change}
    with pytest.raises(ProblemError, match=match):
        optimal_transport(**arguments)  # type: ignore[arg-type]


def test_an_iteration_limit_is_an_error() -> None:
    with pytest.raises(SolverError, match="after 5 iterations"):
        optimal_transport(torch.rand(30, 30, dtype=torch.float64), gamma=500.0, max_iter=5)


# --- robust pooling --------------------------------------------------------------------------------------------------


def test_the_quadratic_penalty_gives_the_mean() -> None:
    x = normal(3, 7, 2)
    torch.testing.assert_close(robust_pool(x, Quadratic()), x.mean(-2), rtol=0, atol=1e-14)


@pytest.mark.parametrize("penalty", [Huber(), Welsch(), TruncatedQuadratic()])
def test_outliers_move_the_mean_and_not_the_robust_pool(penalty: Huber | Welsch | TruncatedQuadratic) -> None:
    inliers = 0.1 * normal(20, 3)
    x = torch.cat([inliers, 50.0 + normal(5, 3)])
    assert (x.mean(0) - inliers.mean(0)).norm() > 10.0
    assert (robust_pool(x, penalty, 1.0) - inliers.mean(0)).norm() < 1.0


def test_the_start_chooses_among_minima() -> None:
    x = double(0.0, 0.1, 10.0).unsqueeze(-1)
    near, far = (robust_pool(x, Welsch(), start=double(start)) for start in (0.0, 9.0))
    torch.testing.assert_close(far, double(10.0))
    torch.testing.assert_close(robust_pool(x, Welsch()), near)
    assert near < 0.2


def test_an_interval_of_minima_has_no_derivative() -> None:
    x = double(0.0, 10.0).unsqueeze(-1).requires_grad_()
    with pytest.raises(DerivativeError, match="not positive definite"):
        robust_pool(x, Huber()).sum().backward()


def test_equal_points_are_their_own_pool() -> None:
    x = torch.full((4, 2), 3.0, dtype=torch.float64)
    for penalty in (Quadratic(), Huber(), Welsch(), TruncatedQuadratic()):
        torch.testing.assert_close(robust_pool(x, penalty), x[0])


def test_scales_that_are_not_positive_are_refused() -> None:
    with pytest.raises(ProblemError, match="alpha"):
        robust_pool(normal(3, 1), Huber(), 0.0)


# --- projections -----------------------------------------------------------------------------------------------------


def test_known_projections() -> None:
    torch.testing.assert_close(project_simplex(double(0.5, 0.5, -9.0)), double(0.5, 0.5, 0.0))
    torch.testing.assert_close(project_l1_ball(double(3.0, -1.0), 2.0), double(2.0, 0.0))
    torch.testing.assert_close(
        project_l1_sphere(double(0.2, -0.1, 0.0)), double(0.2, -0.1, 0.0) + double(1, -1, 1) * 0.7 / 3
    )
    torch.testing.assert_close(project_linf_sphere(double(0.2, -0.7)), double(0.2, -1.0))


def test_the_centre_of_the_sphere_is_refused() -> None:
    with pytest.raises(ProblemError, match="in element 1"):
        project_l2_sphere(double([1.0, 0.0], [0.0, 0.0]))


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_a_radius_is_positive_and_finite(radius: float) -> None:
    with pytest.raises(ProblemError, match="radius"):
        project_simplex(normal(3), radius)
    with pytest.raises(ProblemError, match="radius"):
        project_simplex(normal(2, 3), double(1.0, radius))


def test_a_radius_as_a_number_is_one_as_a_tensor() -> None:
    x = normal(4, 5)
    balls = (project_l1_ball, project_l2_ball, project_linf_ball)
    for project in (project_simplex, *balls, project_l1_sphere, project_l2_sphere, project_linf_sphere):
        torch.testing.assert_close(project(x, 1.3), project(x, double(1.3)[0]), rtol=0, atol=1e-15)


def test_a_radius_beside_which_the_entries_are_large_keeps_its_size() -> None:
    y = project_simplex(double(1e17, 1e17 - 64.0, 0.0))
    torch.testing.assert_close(y, double(1.0, 0.0, 0.0))


def test_inside_a_ball_the_second_derivative_is_zero() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    for project in (project_l1_ball, project_l2_ball, project_linf_ball):
        curvature = torch.func.hessian(lambda x, project=project: project(x, 2.0).square().sum())(x)
        torch.testing.assert_close(curvature, 2.0 * torch.eye(3).double())


# --- Procrustes and frames -------------------------------------------------------------------------------------------


def test_a_known_rotation_is_found() -> None:
    U = rotation_of(normal(3))
    B = normal(3, 10)
    torch.testing.assert_close(orthogonal_procrustes(U @ B, B), U)
    reflected = U * double(1.0, 1.0, -1.0)
    torch.testing.assert_close(orthogonal_procrustes(reflected @ B, B), reflected)
    nearest = orthogonal_procrustes(reflected @ B, B, rotation=True)
    torch.testing.assert_close(torch.linalg.det(nearest), double(1.0)[0])


def test_an_undetermined_rotation_is_refused() -> None:
    line = normal(3, 1) @ normal(1, 6)
    with pytest.raises(ProblemError, match="not unique"):
        orthogonal_procrustes(line, line, rotation=True)
    plane = normal(3, 2) @ normal(2, 6)
    orthogonal_procrustes(plane, plane, rotation=True)  # for a rotation a plane is enough
    with pytest.raises(ProblemError, match="not unique"):
        orthogonal_procrustes(plane, plane)


def test_more_columns_than_rows_are_refused() -> None:
    with pytest.raises(ShapeError, match="e <= d"):
        orthogonal_procrustes(normal(2, 5), normal(3, 5))


@pytest.mark.parametrize(("d", "K"), [(1, 2), (3, 4), (7, 4)])
def test_a_frame_has_equal_angles_and_is_its_own_nearest(d: int, K: int) -> None:
    frame = nearest_simplex_etf(normal(d, K), scale=2.0)
    gram = frame.T @ frame
    expected = 4.0 * ((1.0 + 1.0 / (K - 1)) * torch.eye(K).double() - 1.0 / (K - 1))
    torch.testing.assert_close(gram, expected)
    torch.testing.assert_close(nearest_simplex_etf(frame, scale=2.0), frame)


def guided(means: torch.Tensor, U: torch.Tensor, previous: torch.Tensor, delta: float) -> torch.Tensor:
    """The objective of guided neural collapse, as the slides state it."""
    K = means.shape[-1]
    M = math.sqrt(K / (K - 1)) * (torch.eye(K) - torch.ones(K, K) / K).double()
    return (means - U @ M).square().sum((-2, -1)) + delta / 2.0 * (U - previous).square().sum((-2, -1))


@pytest.mark.parametrize(("d", "K"), [(4, 4), (7, 4)])
def test_no_other_factor_of_a_frame_has_a_lower_objective(d: int, K: int) -> None:
    means, previous = normal(d, K), torch.linalg.qr(normal(d, K)).Q
    U = orthogonal_procrustes(means, simplex_etf(K).double(), previous=previous, proximal=0.8)
    torch.testing.assert_close(U.T @ U, torch.eye(K).double())
    found = guided(means, U, previous, 0.8)
    anywhere = torch.linalg.qr(normal(2000, d, K)).Q
    near = torch.linalg.qr(U + 0.01 * normal(2000, d, K))
    near_by = near.Q * near.R.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    assert (guided(means, torch.cat([anywhere, near_by, previous[None]]), previous, 0.8) >= found).all()


def test_the_proximal_term_is_on_all_of_the_factor() -> None:
    """Its part along the vector of ones, which no frame shows, counts: 15.52 without, 15.41 with it."""
    torch.manual_seed(0)
    means, previous = normal(4, 4), torch.linalg.qr(normal(4, 4)).Q
    U = orthogonal_procrustes(means, simplex_etf(4).double(), previous=previous, proximal=0.8)
    assert float(guided(means, U, previous, 0.8)) == pytest.approx(15.413, abs=5e-4)


def test_a_light_proximal_term_gives_the_nearest_frame_and_a_heavy_one_the_previous() -> None:
    means, previous = normal(5, 4), torch.linalg.qr(normal(5, 4)).Q
    M = 2.0 * simplex_etf(4).double()
    light, heavy = (orthogonal_procrustes(means, M, previous=previous, proximal=delta) for delta in (1e-9, 1e12))
    torch.testing.assert_close(light @ M, nearest_simplex_etf(means, scale=2.0), rtol=0, atol=1e-7)
    torch.testing.assert_close(heavy, previous, rtol=0, atol=1e-10)


def test_weights_and_scales_that_are_not_positive_are_refused() -> None:
    A, U = normal(3, 5), torch.linalg.qr(normal(3, 3)).Q
    with pytest.raises(ProblemError, match="proximal"):
        orthogonal_procrustes(A, A, previous=U, proximal=-1.0)
    with pytest.raises(ProblemError, match="scale"):
        nearest_simplex_etf(normal(4, 4), scale=0.0)
    with pytest.raises(ProblemError, match="at least 2"):
        simplex_etf(1)
    with pytest.raises(ShapeError, match="previous"):
        orthogonal_procrustes(A, A, previous=U[:, :2])


# --- perspective-n-point ---------------------------------------------------------------------------------------------


def views(n: int, R: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    X = normal(n, 3)
    Y = X @ R.mT + t
    return X, Y[..., :2] / Y[..., 2:]


def test_a_known_pose_is_found_from_many_views() -> None:
    R, t = rotation_of(2.0 * normal(50, 3)), double(0.3, -0.2, 7.0)
    X, x = views(10, R, t)
    found = perspective_n_point(X, x)
    torch.testing.assert_close(found, (R, t.expand(50, 3)), rtol=0, atol=1e-9)


def test_a_point_of_weight_zero_does_not_count() -> None:
    R, t = rotation_of(normal(3)), double(0.0, 0.0, 6.0)
    X, x = views(9, R, t)
    x[4] += 1.0
    w = torch.ones(9, dtype=torch.float64)
    w[4] = 0.0
    torch.testing.assert_close(perspective_n_point(X, x, w), (R, t), rtol=0, atol=1e-9)


def test_few_points_need_a_start() -> None:
    R, t = rotation_of(normal(3)), double(0.0, 0.0, 6.0)
    X, x = views(4, R, t)
    with pytest.raises(ProblemError, match="start"):
        perspective_n_point(X, x)
    near = rotation_of(double(0.05, -0.05, 0.02)) @ R, t + 0.1
    torch.testing.assert_close(perspective_n_point(X, x, start=near), (R, t), rtol=0, atol=1e-9)
    starts = vmap(lambda R, t: perspective_n_point(X, x, start=(R, t)))(near[0][None], near[1][None])
    torch.testing.assert_close(starts[0][0], R, rtol=0, atol=1e-9)


def test_too_few_points_have_no_derivative() -> None:
    R, t = rotation_of(normal(3)), double(0.0, 0.0, 6.0)
    X, x = views(2, R, t)
    x.requires_grad_()
    pose = perspective_n_point(X, x, start=(R, t))
    with pytest.raises(DerivativeError, match="not positive definite"):
        pose[1].sum().backward()
