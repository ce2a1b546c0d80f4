"""Programs that are unbounded without a ray, and similar ones that are not."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

from convexlayer import canonicalize
from convexlayer.cones import product_cone
from convexlayer.program import ConeProgram, Cones
from convexlayer.rays import unboundedness_ray
from convexlayer.solvers import facial_reduction
from convexlayer.solvers.certificate_search import unboundedness_candidates
from convexlayer.solvers.facial_reduction import is_unbounded_without_ray
from convexlayer.testing.programs import dense_program
from tests.rays import KINDS, solvable

x, z, X = cp.Variable(name="x"), cp.Variable(3, name="z"), cp.Variable((2, 2), PSD=True, name="X")

UNBOUNDED: dict[str, Callable[[], cp.Problem]] = {
    "log": lambda: cp.Problem(cp.Minimize(-cp.log(x)), [x >= 0.1]),
    "log in other units": lambda: cp.Problem(cp.Minimize(-1e-5 * cp.log(1e4 * x)), [1e-3 * x >= 1.0]),
    "sum of logs": lambda: cp.Problem(cp.Minimize(-cp.sum(cp.log(z))), [z >= 0.1]),
    "one of several logs": lambda: cp.Problem(cp.Minimize(-cp.sum(cp.log(z))), [z >= 0.1, z[:2] <= 1]),
    "log and a square": lambda: cp.Problem(cp.Minimize(cp.square(z[0]) - cp.log(z[1])), [z >= 0.1]),
    "square root": lambda: cp.Problem(cp.Minimize(-cp.sqrt(x)), [x >= 0.1]),
    "power": lambda: cp.Problem(cp.Minimize(-cp.power(x, 0.3, approx=False)), [x >= 0.1]),
    "geometric mean": lambda: cp.Problem(cp.Minimize(-cp.geo_mean(z)), [z[0] <= 1, z >= 0.1]),
    "determinant": lambda: cp.Problem(cp.Minimize(-cp.log_det(X)), [X >> 0.1 * np.eye(2)]),
}

BOUNDED: dict[str, Callable[[], cp.Problem]] = {
    "log below": lambda: cp.Problem(cp.Minimize(-cp.log(x)), [x <= 7.0]),
    "log and a little": lambda: cp.Problem(cp.Minimize(-cp.log(x) + 1e-4 * x)),
    "log and a small square": lambda: cp.Problem(cp.Minimize(-cp.log(x) + 1e-6 * cp.square(x)), [x >= 0.1]),
    "exp, whose infimum is not attained": lambda: cp.Problem(cp.Minimize(cp.exp(-x)), [x >= 0.1]),
    "an inverse, likewise": lambda: cp.Problem(cp.Minimize(cp.inv_pos(x)), [x >= 0.1]),
    "a square over a line, likewise": lambda: cp.Problem(cp.Minimize(cp.quad_over_lin(z[:2], z[2])), [z[0] == 1]),
    "a logistic loss of separable data": lambda: cp.Problem(cp.Minimize(cp.sum(cp.logistic(-z))), [z[0] == z[1]]),
    "norms": lambda: cp.Problem(cp.Minimize(cp.norm(z) - z[0]), [z[1] == 1]),
    "determinant and trace": lambda: cp.Problem(cp.Minimize(cp.trace(X) - cp.log_det(X))),
    "square root and a line": lambda: cp.Problem(cp.Minimize(0.01 * x - cp.sqrt(x))),
    "a gap": lambda: cp.Problem(cp.Minimize(X[0, 0]), [X[0, 1] == 1]),
}


NONE = Cones()
FACES: list[tuple[Cones, list[float], Cones]] = [
    (Cones(nonnegative=2), [1, 0], Cones(nonnegative=1)),
    (Cones(second_order=(3,)), [2, 1, 0], NONE),
    (Cones(second_order=(3,)), [1, 0.6, 0.8], Cones(nonnegative=1)),
    (Cones(second_order=(3,)), [0, 0, 0], Cones(second_order=(3,))),
    (Cones(psd=(2,)), [1, 0, 1], NONE),
    (Cones(psd=(3,)), [1, 0, 0, 0, 0, 0], Cones(psd=(2,))),
    (Cones(exponential=1), [0, 1, 2], NONE),
    (Cones(exponential=1), [0.5, 1, np.exp(0.5)], Cones(nonnegative=1)),
    (Cones(exponential=1), [-1, 0, 0], Cones(nonnegative=2)),
    (Cones(exponential=1), [-1, 0, 1], Cones(nonnegative=1)),
    (Cones(exponential=1), [0, 0, 1], Cones(nonnegative=1)),
    (Cones(exponential=1), [-400, 1, 0], Cones(exponential=1)),  # F* is beyond double precision, and K is kept
    (Cones(power=(0.3,)), [1, 1, 0], NONE),
    (Cones(power=(0.3,)), [1, 1, -1], Cones(nonnegative=1)),
    (Cones(power=(0.3,)), [2, 0, 0], Cones(nonnegative=1)),
    (Cones(power=(0.3,)), [0, 2, 0], Cones(nonnegative=1)),
]
"""Cones K, points s of K, and F* for the face F of K* orthogonal to s."""


def program(problem: cp.Problem) -> ConeProgram:
    parametric = canonicalize(problem, [], problem.variables()[:1], self_check=False)
    return parametric.normalised(parametric.features.apply([], 1))[0]


@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded_without_a_ray(name: str) -> None:
    posed = program(UNBOUNDED[name]())
    assert unboundedness_ray(posed, unboundedness_candidates(posed)[0]) is None
    assert is_unbounded_without_ray(posed)


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_problems_are_not_called_unbounded(name: str) -> None:
    assert not is_unbounded_without_ray(program(BOUNDED[name]()))


def test_infeasible_problems_are_not_called_unbounded() -> None:
    assert not is_unbounded_without_ray(program(cp.Problem(cp.Minimize(-cp.log(x)), [x >= 1, z[0] >= 1, z[0] <= 0])))


def test_no_conclusion_without_a_strictly_feasible_point() -> None:
    """Without one strong duality may fail: here z0 = 0 is implied, so that no interior point exists."""
    posed = program(cp.Problem(cp.Minimize(-cp.log(x)), [x >= 1, cp.norm(z[1:]) <= z[0], z[0] <= 0]))
    assert not is_unbounded_without_ray(posed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tight", [False, True])
def test_random_programs_with_solutions(kind: str, tight: bool) -> None:
    drawn = solvable(np.random.default_rng(2), KINDS[kind], tight=tight, spread=2.0)
    assert not any(is_unbounded_without_ray(drawn.select([i])) for i in range(drawn.batch))


@pytest.mark.parametrize(("cones", "s", "dual_of_face"), FACES)
def test_faces_orthogonal_to_a_point(cones: Cones, s: list[float], dual_of_face: Cones) -> None:
    """F* = {s: Rs in K'} has the expected cones K'; then F = R' K'*, which is in K* and orthogonal to s."""
    m, point = cones.m, np.array(s, dtype=float)
    identity = dense_program(cones, None, np.zeros((1, m)), np.eye(m)[None], np.zeros((1, m)))
    pieces = facial_reduction._pieces(point, np.ones(m), cones)
    reduced = facial_reduction._with_cones(identity, sp.eye(m, format="csr"), pieces)
    assert reduced.structure.cones == dual_of_face
    if dual_of_face != cones:
        drawn = np.random.default_rng(0).normal(size=(20, dual_of_face.m))
        R = reduced.structure.A.dense(reduced.A)[0]
        y = product_cone(dual_of_face).project_dual(drawn) @ R
        np.testing.assert_allclose(y @ point, 0.0, atol=1e-12)
        np.testing.assert_allclose(product_cone(cones).project_dual(y), y, atol=1e-9)


def test_equalities_alone_have_no_faces() -> None:
    assert not is_unbounded_without_ray(program(cp.Problem(cp.Minimize(z[0]), [z[0] == 1])))


@pytest.mark.parametrize(("limit", "value"), [("LARGEST", 1), ("MAX_REDUCTIONS", 0)])
def test_nothing_is_proved_beyond_the_limits(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facial_reduction, limit, value)
    assert not is_unbounded_without_ray(program(UNBOUNDED["log"]()))
