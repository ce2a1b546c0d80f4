"""Expressions that CVXPY canonicalises wrongly or not at all have correct values with the workarounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from cvxpy.transforms.partial_optimize import partial_optimize
from cvxpy.transforms.suppfunc import SuppFunc

from convexlayer import SolutionMap, canonicalize

Array = np.ndarray


def norms(value: Array, **keywords: Any) -> Array:
    return np.linalg.norm(value, axis=1, **keywords)


CASES: dict[str, tuple[Callable[[cp.Expression], cp.Expression], Callable[[Array], Array], tuple[int, ...]]] = {
    "norm along the middle axis": (lambda X: cp.norm(X, 2, axis=1), norms, (2, 3, 4)),
    "norm along the middle axis of a cube": (lambda X: cp.norm(X, 2, axis=1), norms, (2, 2, 2)),
    "norm along the last axis": (lambda X: cp.norm(X, 2, axis=-1), lambda X: np.linalg.norm(X, axis=2), (2, 3, 4)),
    "norm along the first axis": (lambda X: cp.norm(X, 2, axis=0), lambda X: np.linalg.norm(X, axis=0), (2, 3, 4)),
    "norm that keeps its axis": (lambda X: cp.norm(X, 2, axis=1, keepdims=True), norms, (2, 2, 2)),
    "norm of a vector that keeps its axis": (
        lambda X: cp.pnorm(X, 2, axis=0, keepdims=True),
        lambda X: np.linalg.norm(X, axis=0, keepdims=True),
        (4,),
    ),
    "standard deviation": (lambda X: cp.std(X, axis=1), lambda X: np.std(X, axis=1), (2, 2, 2)),
    "geometric mean of columns": (
        lambda X: -cp.geo_mean(X + 4, axis=0),
        lambda X: -np.exp(np.mean(np.log(X + 4), axis=0)),
        (3, 4),
    ),
    "axes in their order": (
        lambda X: cp.multiply(np.arange(12.0).reshape(3, 4), cp.transpose(X, (0, 1))),
        lambda X: np.arange(12.0).reshape(3, 4) * X,
        (3, 4),
    ),
    "hstack of arrays": (
        lambda X: cp.square(cp.hstack([X, 2 * X]) - np.arange(48.0).reshape(2, 6, 4) / 20),
        lambda X: np.square(np.hstack([X, 2 * X]) - np.arange(48.0).reshape(2, 6, 4) / 20),
        (2, 3, 4),
    ),
    "concatenation without an axis": (
        lambda X: cp.square(cp.concatenate([X, 2 * X], axis=None) - np.arange(24.0) / 10),
        lambda X: np.square(np.concatenate([X, 2 * X], axis=None) - np.arange(24.0) / 10),
        (3, 4),
    ),
    "upper triangle": (
        lambda X: cp.square(cp.upper_tri(X) - np.arange(6.0)[:, None]),
        lambda X: np.square(X[np.triu_indices(4, 1)] - np.arange(6.0)),
        (4, 4),
    ),
    "power zero": (lambda X: cp.power(X, 0) + cp.square(X), lambda X: 1.0 + np.square(X), (2, 3)),
}


@pytest.mark.filterwarnings("ignore:geo_mean is being approximated")
@pytest.mark.parametrize("name", CASES)
def test_the_solution_minimises_the_written_objective(name: str) -> None:
    written, meant, shape = CASES[name]
    X, P = cp.Variable(shape), cp.Parameter(shape)
    value = np.random.default_rng(5).standard_normal(shape)
    problem = cp.Problem(cp.Minimize(cp.sum(written(X)) + cp.sum_squares(X - P)))
    solved = SolutionMap(canonicalize(problem, [P], [X]), options={"tol": 1e-10}).solve([value])

    def cost(Z: Array) -> float:
        return float(np.sum(meant(Z)) + np.sum((Z - value) ** 2))

    Z = solved.outputs[0][0]
    np.testing.assert_allclose(solved.objective[0], cost(Z), rtol=1e-7)
    draws = np.random.default_rng(0)
    for size in (1e-4, 1e-2, 0.5):
        assert all(cost(Z + size * draws.standard_normal(shape)) >= cost(Z) - 1e-9 for _ in range(30))


def test_norms_along_an_axis_shrink_blocks() -> None:
    """The proximal operator of a sum of norms, and its derivative along the blocks."""
    X, P = cp.Variable((2, 3, 2)), cp.Parameter((2, 3, 2))
    value = np.random.default_rng(5).standard_normal((2, 3, 2)) + 2.0
    problem = cp.Problem(cp.Minimize(cp.sum(cp.norm(X, 2, axis=1)) + cp.sum_squares(X - P)))
    solved = SolutionMap(canonicalize(problem, [P], [X])).solve([value])
    size = np.linalg.norm(value, axis=1, keepdims=True)
    np.testing.assert_allclose(solved.outputs[0][0], value * np.maximum(0.0, 1 - 0.5 / size), atol=1e-8)
    direction = value / size
    (gradient,), _ = solved.vjp([direction[None]])
    np.testing.assert_allclose(gradient[0], direction, atol=1e-7)


@pytest.mark.parametrize(
    ("function", "meant"),
    [
        (cp.square, np.square),
        (cp.exp, np.exp),
        (cp.abs, np.abs),
        (lambda y: cp.square(y) + cp.exp(-y), lambda y: np.square(y) + np.exp(-y)),
        (lambda y: 2 * y + 1, lambda y: 2 * y + 1),
        (lambda y: cp.huber(y, 0.5), lambda y: np.where(np.abs(y) < 0.5, y**2, np.abs(y) - 0.25)),
    ],
)
def test_perspectives(function: Callable[[cp.Expression], cp.Expression], meant: Callable[[Array], Array]) -> None:
    y, s, d = cp.Variable(), cp.Variable(nonneg=True), cp.Parameter()
    cost = cp.perspective(function(y), s) + cp.square(s - d) + cp.square(y - 1)
    program = canonicalize(cp.Problem(cp.Minimize(cost), [s >= 0.1]), [d], [y, s])
    solution_map = SolutionMap(program, options={"tol": 1e-10})
    solved = solution_map.solve([np.array([1.3, 2.0])])
    at, scale = solved.outputs
    np.testing.assert_allclose(
        solved.objective, scale * meant(at / scale) + (scale - [1.3, 2.0]) ** 2 + (at - 1) ** 2, rtol=1e-7
    )
    ahead, behind = (solution_map.solve([np.array([1.3, 2.0]) + h]).outputs for h in (1e-5, -1e-5))
    (gradient,), _ = solved.vjp([np.ones(2), -2.0 * np.ones(2)])
    difference = (ahead[0] - behind[0]) / 2e-5 - 2.0 * (ahead[1] - behind[1]) / 2e-5
    np.testing.assert_allclose(gradient, difference, rtol=1e-4, atol=1e-5)


def test_perspectives_of_different_functions_are_distinguished() -> None:
    y, s, d = cp.Variable(), cp.Variable(nonneg=True), cp.Parameter()
    cost = cp.perspective(cp.square(y), s) + cp.perspective(cp.exp(y), s) + cp.square(s - d) + cp.square(y - 1)
    solved = SolutionMap(canonicalize(cp.Problem(cp.Minimize(cost), [s >= 0.1]), [d], [y, s])).solve([np.array(1.3)])
    at, scale = (float(output[0]) for output in solved.outputs)
    expected = at**2 / scale + scale * np.exp(at / scale) + (scale - 1.3) ** 2 + (at - 1) ** 2
    np.testing.assert_allclose(solved.objective[0], expected, rtol=1e-7)


def test_an_inner_minimisation_is_part_of_the_problem() -> None:
    """Inner min_y |x - y|^2 + |x - b|_1 over x >= 0, outer |y - 1|^2; also with an inner tracking cost."""
    b, values = cp.Parameter(3), np.array([[0.3, -1.0, 2.0], [1.0, 0.2, -0.4]])
    for inside in (cp.norm1, lambda e: cp.quad_form(e, np.eye(3) + 0.2)):
        x, y = cp.Variable(3), cp.Variable(3)
        inner = cp.Problem(cp.Minimize(inside(x - b) + cp.sum_squares(x - y)), [x >= 0])
        nested = cp.Problem(cp.Minimize(partial_optimize(inner, [x]) + cp.sum_squares(y - 1)))
        joint = cp.Problem(cp.Minimize(inner.objective.expr + cp.sum_squares(y - 1)), inner.constraints)
        ours, theirs = (SolutionMap(canonicalize(part, [b], [y])).solve([values]) for part in (nested, joint))
        np.testing.assert_allclose(ours.outputs[0], theirs.outputs[0], atol=1e-7)
        np.testing.assert_allclose(ours.objective, theirs.objective, atol=1e-7)


def test_an_inner_maximisation_is_part_of_the_problem() -> None:
    x, y, b = cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    inner = cp.Problem(cp.Maximize(-cp.sum_squares(x - b) - cp.sum_squares(x - y)), [x <= 0.5])
    problem = cp.Problem(cp.Maximize(partial_optimize(inner, [x]) - cp.sum_squares(y)))
    solved = SolutionMap(canonicalize(problem, [b], [y])).solve([np.array([0.3, 2.0])])
    # y = x / 2, and x = min(2 b / 3, 1/2)
    np.testing.assert_allclose(solved.outputs[0][0], [0.1, 0.25], atol=1e-7)


def test_support_functions_may_have_parametrised_arguments() -> None:
    """sup u'(x - b) over the unit ball is a norm; CVXPY does not list the parameters of this atom."""
    u, x, b = cp.Variable(3), cp.Variable(3), cp.Parameter(3)
    ball = SuppFunc(u, [cp.norm(u) <= 1])
    value = np.array([2.0, -1.0, 0.5])
    hidden, plain = (
        SolutionMap(canonicalize(cp.Problem(cp.Minimize(norm(x - b) + cp.sum_squares(x))), [b], [x])).solve([value])
        for norm in (ball, cp.norm)
    )
    np.testing.assert_allclose(hidden.outputs[0], plain.outputs[0], atol=1e-6)
