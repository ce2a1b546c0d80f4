"""Nondegenerate programs over all cones: results and statuses do not depend on units of 10^-k to 10^k."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scales.plan import Plan
from benchmarks.scales.programs import Programs, derivative, newton
from benchmarks.scales.queries import Reverse
from benchmarks.scales.table import Count
from benchmarks.scales.units import FAMILIES, RANGES, draw, measure, queries
from convexlayer.cones import product_cone

DRAWS = 6
"""Number of draws per family and range."""


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_derivative_matches_newtons_method(name: str) -> None:
    """Compare along random changes of all data with Newton's method from the known solution."""
    programs, rng, step = draw(FAMILIES[name], 2, seed=1), np.random.default_rng(0), 1e-7
    moves = [rng.normal(size=value.shape) for value in programs.theta()]
    there, back = (_solved(programs, [sign * step * move for move in moves]) for sign in (1.0, -1.0))
    flat = np.concatenate(moves, axis=1)
    gradients = [query.gradient for query in queries(programs) if isinstance(query, Reverse)]
    for position, gradient in enumerate(gradients):
        found = (there[:, position] - back[:, position]) / (2.0 * step)
        expected, tolerance = np.sum(gradient * flat, axis=1), 1e-5 * np.max(np.abs(gradient))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)


@pytest.fixture(scope="module")
def measured() -> list[Count]:
    return list(measure(Plan(draws=DRAWS * len(FAMILIES) * len(RANGES))))


def test_wrong_results_are_never_ok(measured: list[Count]) -> None:
    assert not {(count.family, count.k, count.solver): count.silent_draws for count in measured if count.silent}


def test_results_and_statuses_do_not_depend_on_units(measured: list[Count]) -> None:
    near = (count for count in measured if count.k <= 4.0 and count.family in FAMILIES)
    other = {(c.family, c.k, c.solver): c.draws - c.right_reported_ok for c in near if c.right_reported_ok < c.draws}
    assert not other


def _solved(programs: Programs, moves: list[np.ndarray]) -> np.ndarray:
    """Solutions (x, y) of perturbed programs."""
    P, A, (i, j) = programs.P.copy(), programs.A.copy(), programs.upper
    P[:, i, j] += moves[0]
    P[:, j, i] = P[:, i, j]
    A[:, programs.pattern.rows, programs.pattern.cols] += moves[2]
    q, b, cone, n = programs.q + moves[1], programs.b + moves[3], product_cone(programs.cones), programs.x.shape[1]
    moved = Programs(programs.cones, P, q, A, b, programs.x, programs.w)
    x, w = programs.x, programs.w
    for _ in range(8):
        y = cone.project_dual(w)
        dual = np.einsum("bij,bj->bi", P, x) + q + np.einsum("bji,bj->bi", A, y)
        residual = np.concatenate([dual, np.einsum("bij,bj->bi", A, x) + y - w - b], axis=1)
        change = np.linalg.solve(newton(moved, derivative(programs.cones, w)), residual[..., None])[..., 0]
        x, w = x - change[:, :n], w - change[:, n:]
    return np.concatenate([x, cone.project_dual(w)], axis=1)
