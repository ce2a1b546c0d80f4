"""Problems over large semidefinite matrices: closed forms, choice of the linear solver, time limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from convexlayer import ConvexLayer, SolutionMap, Status
from convexlayer.diff import polished
from convexlayer.layers import solution_map
from convexlayer.program import Array
from convexlayer.solution import Solution

CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


def symmetric(order: int, seed: int = 0) -> Array:
    M = np.random.default_rng(seed).normal(size=(order, order))
    return 0.5 * (M + M.T)


def slope(function: Callable[[Array], Array], point: Array, direction: Array, step: float = 1e-5) -> Array:
    """The directional derivative, by fourth-order finite differences."""
    near = function(point + step * direction) - function(point - step * direction)
    far = function(point + 2 * step * direction) - function(point - 2 * step * direction)
    return (8.0 * near - far) / (12.0 * step)


def check(
    layer: ConvexLayer, function: Callable[[Array], Array], point: Array, direction: Array, **tolerance: Any
) -> None:
    """Check the value and the directional derivative of a random linear functional of the first output."""
    tolerance = CLOSE | tolerance
    theta = torch.tensor(point, requires_grad=True)
    (value,), report = layer.solve(theta)
    np.testing.assert_allclose(value.detach().numpy(), function(point), **tolerance)
    weight = np.random.default_rng(1).normal(size=value.shape)
    (value * torch.from_numpy(weight)).sum().backward()
    expected = np.sum(weight * slope(function, point, direction))
    np.testing.assert_allclose(np.sum(theta.grad.numpy() * direction), expected, **tolerance)
    assert report.status == (Status.OPTIMAL,)
    assert report.derivative.trusted
    assert report.solver == "scs"
    assert "semidefinite blocks of order" in report.reason


def positive_part(C: Array) -> Array:
    values, vectors = np.linalg.eigh(C)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


@pytest.mark.parametrize("order", [24, 60, 100])
def test_projection(order: int) -> None:
    """argmin |X - C|^2 over the cone is the positive part of C."""
    C, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), PSD=True)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - C))), [C], [X])
    check(layer, positive_part, symmetric(order), symmetric(order, 1))


@pytest.mark.parametrize("order", [40, 60])
def test_nearest_correlation_matrix(order: int) -> None:
    """X = (C + diag(t))_+ with t such that its diagonal is 1 (Qi and Sun 2006)."""
    C, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0, cp.diag(X) == 1])

    def nearest(C: Array) -> Array:
        t = np.zeros(order)
        for _ in range(30):
            values, V = np.linalg.eigh(C + np.diag(t))
            positive = np.maximum(values, 0.0)
            missing = 1.0 - np.sum(V * V * positive, axis=1)
            if np.max(np.abs(missing)) < 1e-14:
                break
            total = np.abs(values)[:, None] + np.abs(values)
            D = (positive[:, None] + positive) / total
            products = V[:, None, :] * V[None, :, :]
            t += np.linalg.solve(np.sum((products @ D) * products, axis=-1), missing)
        return positive_part(C + np.diag(t))

    check(ConvexLayer(problem, [C], [X]), nearest, symmetric(order), symmetric(order, 1))


def test_largest_eigenvalue() -> None:
    """The gradient is the outer product of the eigenvector with itself."""
    order = 100
    S, t = cp.Parameter((order, order), symmetric=True), cp.Variable()
    layer = ConvexLayer(cp.Problem(cp.Minimize(t), [t >= cp.lambda_max(S)]), [S], [t])
    point = symmetric(order)
    theta = torch.tensor(point, requires_grad=True)
    (value,), report = layer.solve(theta)
    value.backward()
    values, vectors = np.linalg.eigh(point)
    np.testing.assert_allclose(value.item(), values[-1], **CLOSE)
    np.testing.assert_allclose(theta.grad.numpy(), np.outer(vectors[:, -1], vectors[:, -1]), **CLOSE)
    assert report.derivative.trusted


def test_nuclear_norm() -> None:
    """The proximal map shrinks singular values. P is not constant on the entries, so MINRES is used."""
    rows, cols, weight = 30, 30, 4.0
    C, X = cp.Parameter((rows, cols)), cp.Variable((rows, cols))
    layer = ConvexLayer(cp.Problem(cp.Minimize(weight * cp.normNuc(X) + 0.5 * cp.sum_squares(X - C))), [C], [X])

    def shrunk(C: Array) -> Array:
        U, s, Vt = np.linalg.svd(C, full_matrices=False)
        return np.asarray((U * np.maximum(s - weight, 0.0)) @ Vt)

    rng = np.random.default_rng(0)
    check(layer, shrunk, rng.normal(size=(rows, cols)), rng.normal(size=(rows, cols)))


def test_log_det() -> None:
    """The maximiser of log det X - tr(S X) is the inverse of S."""
    order = 30
    S, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), symmetric=True)
    layer = ConvexLayer(cp.Problem(cp.Maximize(cp.log_det(X) - cp.trace(S @ X))), [S], [X])
    point = 2.0 * np.eye(order) + 0.1 * symmetric(order)
    check(layer, lambda S: np.asarray(np.linalg.inv(S), dtype=float), point, symmetric(order, 1))


def test_maximum_cut() -> None:
    """The gradient of the optimal value is the solution; elements of a batch equal single solves."""
    order = 40
    S, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), PSD=True)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.trace(S @ X)), [cp.diag(X) == 1]), [S], [X])
    theta = torch.tensor(np.stack([symmetric(order, seed) for seed in range(2)]), requires_grad=True)
    (value,), report = layer.solve(theta)
    (gradient,) = torch.autograd.grad(report.objective.sum(), theta, retain_graph=True)
    np.testing.assert_allclose(gradient.numpy(), value.detach().numpy(), **CLOSE)
    (pulled,) = torch.autograd.grad(value.square().sum(), theta)
    assert report.derivative.trusted
    alone = theta[1].detach().requires_grad_()
    (single,) = torch.autograd.grad(layer(alone)[0].square().sum(), alone)
    np.testing.assert_allclose(pulled[1].numpy(), single.numpy(), rtol=1e-6, atol=1e-6 * np.abs(single.numpy()).max())


@pytest.mark.parametrize("unit", [1e-4, 1e-2, 1e2, 1e4])
def test_solutions_and_gradients_in_other_units(unit: float) -> None:
    """Units of a matrix, of the objective and of a bound: a projection, a maximum cut, a proximal map."""
    order, weight = 24, 4.0
    C, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), PSD=True)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - C))), [C], [X])
    size: dict[str, Any] = {"atol": 1e-6 * unit}
    check(layer, positive_part, unit * symmetric(order), unit * symmetric(order, 1), **size)
    bounds = cp.Parameter(order)
    cut = ConvexLayer(cp.Problem(cp.Minimize(cp.trace(C @ X)), [cp.diag(X) == bounds]), [C, bounds], [X])
    found = []
    for objective, bound in ((1.0, 1.0), (unit, 1.0), (1.0, unit)):
        theta = torch.tensor(objective * symmetric(order), requires_grad=True)
        (value,), report = cut.solve(theta, torch.full((order,), bound, dtype=torch.float64))
        (value * torch.tensor(symmetric(order, 1))).sum().backward()
        assert report.derivative.trusted
        assert theta.grad is not None
        found.append((value.detach().numpy() / bound, theta.grad.numpy() * objective / bound))
    for solution, gradient in found[1:]:
        np.testing.assert_allclose(solution, found[0][0], atol=1e-9)
        np.testing.assert_allclose(gradient, found[0][1], atol=1e-9 * np.max(np.abs(found[0][1])))
    D, Y = cp.Parameter((15, 15)), cp.Variable((15, 15))
    problem = cp.Problem(cp.Minimize(weight * unit * cp.normNuc(Y) + 0.5 * cp.sum_squares(Y - D)))

    def shrunk(D: Array) -> Array:
        U, s, Vt = np.linalg.svd(D, full_matrices=False)
        return np.asarray((U * np.maximum(s - weight * unit, 0.0)) @ Vt)

    rng = np.random.default_rng(0)
    check(ConvexLayer(problem, [D], [Y]), shrunk, *(unit * rng.normal(size=(2, 15, 15))), **size)


def with_eigenvalues(values: Array) -> Array:
    V = np.linalg.qr(np.random.default_rng(2).normal(size=(len(values), len(values))))[0]
    return np.asarray((V * values) @ V.T)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("zeros", [1, 12])
def test_a_projection_with_zero_eigenvalues_has_no_derivative(zeros: int, unit: float) -> None:
    """Nor has one with eigenvalues within rounding errors of zero; farther away the derivative exists."""
    order = 24
    C, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), PSD=True)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - C))), [C], [X], on_degenerate="report")
    values = np.linspace(-2.0, 2.0, order)
    points = []
    for near in (0.0, 1e-12, -1e-9, 1e-3):
        values[:zeros] = near * np.arange(1, zeros + 1)
        points.append(unit * with_eigenvalues(values))
    theta = torch.tensor(0.5 * (np.stack(points) + np.stack(points).swapaxes(1, 2)), requires_grad=True)
    (value,), report = layer.solve(theta)
    np.testing.assert_allclose(value.detach().numpy(), [positive_part(point) for point in points], atol=1e-9 * unit)
    (value * torch.tensor(symmetric(order, 1))).sum().backward()
    assert report.status == (Status.OPTIMAL,) * 4
    assert report.derivative.status == ("degenerate",) * 3 + ("ok",)


def test_a_tie_of_the_largest_eigenvalues_has_no_gradient() -> None:
    order = 40
    S, t = cp.Parameter((order, order), symmetric=True), cp.Variable()
    layer = ConvexLayer(cp.Problem(cp.Minimize(t), [t >= cp.lambda_max(S)]), [S], [t], on_degenerate="report")
    values = np.linspace(-2.0, 2.0, order)
    points = []
    for gap in (0.0, 1e-10, 0.1):
        values[-2] = 2.0 - gap
        points.append(with_eigenvalues(values))
    theta = torch.tensor(np.stack(points), requires_grad=True)
    (value,), report = layer.solve(theta)
    value.sum().backward()
    np.testing.assert_allclose(value.detach().numpy(), 2.0, atol=1e-9)
    assert report.derivative.status == ("degenerate", "degenerate", "ok")


def test_large_null_spaces_matter_only_if_visible() -> None:
    """X + Y is unique, X and Y are not."""
    order = 24
    C = cp.Parameter((order, order), symmetric=True)
    X, Y, Z = (cp.Variable((order, order), symmetric=True) for _ in range(3))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(Z - C)), [Z >> 0, Z == X + Y])
    check(ConvexLayer(problem, [C], [Z], presolve=False), positive_part, symmetric(order), symmetric(order, 1))
    theta = torch.tensor(symmetric(order), requires_grad=True)
    (value,), report = ConvexLayer(problem, [C], [X], presolve=False, on_degenerate="report").solve(theta)
    value.sum().backward()
    assert report.derivative.status == ("degenerate",)


def layer_with_limits(**options: Any) -> ConvexLayer:
    order = 60
    S, X = cp.Parameter((order, order), symmetric=True), cp.Variable((order, order), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.trace(S @ X)), [cp.diag(X) == 1])
    return ConvexLayer(problem, [S], [X], on_failure="nan", options=options)


@pytest.mark.parametrize(
    ("options", "status"),
    [({"time_limit_s": 1e-6}, Status.TIME_LIMIT), ({"max_iter": 10}, Status.ITERATION_LIMIT)],
)
def test_points_at_a_limit_are_not_changed(
    options: dict[str, Any], status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are neither polished nor passed to the fallback solver."""

    def no_factor(*arguments: Any) -> None:
        raise AssertionError("polished")

    monkeypatch.setattr("convexlayer.diff.kkt_system.KKTSystem.factor", no_factor)
    points = torch.tensor(np.stack([symmetric(60, seed) for seed in range(3)]))
    (value,), report = layer_with_limits(**options).solve(points)
    assert report.status == (status,) * 3
    assert report.solved_again == ()
    assert torch.all(torch.isnan(value))


def test_the_time_limit_covers_the_whole_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solver, polish and fallback get the remaining time."""
    deadlines, limits = [], []

    def spy(*arguments: Any, deadline: float, **more: Any) -> Any:
        deadlines.append(deadline)
        return polished(*arguments, deadline=deadline, **more)

    monkeypatch.setattr(solution_map, "polished", spy)
    layer = layer_with_limits(time_limit_s=1000.0)
    assert isinstance(layer.solution_map, SolutionMap)
    chosen = layer.solution_map._chosen
    fallback = chosen.fallback
    assert fallback is not None
    assert fallback.solver.name == "clarabel"

    def unsolved(solver: Any, say: Status) -> Callable[..., Any]:
        def solve(state: Any, program: Any, options: Any, warm_start: Any = None) -> Any:
            limits.append(options.time_limit_s)
            n, m = program.structure.n, program.structure.m
            nothing = np.full((program.batch, n), np.nan), *(np.full((program.batch, m), np.nan),) * 2
            count = np.zeros(program.batch)
            return Solution(*nothing, (say,) * program.batch, count.astype(int), count, {})

        return solve

    for solver in (chosen.solver, fallback.solver):
        monkeypatch.setattr(solver, "solve", unsolved(solver, Status.NUMERICAL_ERROR))
    _, report = layer.solve(torch.tensor(symmetric(60)))
    assert report.status == (Status.NUMERICAL_ERROR,)
    assert report.solved_again == (0,)
    assert 1000.0 >= limits[0] > limits[1] > 0.0
    assert len(deadlines) == 2
    assert deadlines[0] == deadlines[1]
