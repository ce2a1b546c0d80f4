"""Crossover after the interior-point method: exact if the active set is certain, otherwise without effect."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer.interior_point.lanes.solve import LanesInteriorPoint
from convexlayer.program import Array, ConeProgram, Cones, Pattern, Structure
from convexlayer.solution import Solution


def projection(points: Array, *, copies: int = 1, unit: float = 1.0) -> ConeProgram:
    """Minimise |x - p|^2 / 2 over unit x >= 0, for p (B, n), with every row repeated."""
    batch, n = points.shape
    index = np.arange(n)
    rows = np.arange(n * copies).reshape(copies, n).T.ravel()
    A = Pattern((n * copies, n), rows, np.repeat(index, copies))
    structure = Structure(Pattern((n, n), index, index), A, Cones(nonnegative=n * copies))
    ones, zeros = np.ones((batch, n)), np.zeros((batch, n * copies))
    return ConeProgram(structure, ones, -points, np.zeros(batch), np.full((batch, n * copies), -unit), zeros)


def solved(program: ConeProgram) -> Solution:
    return LanesInteriorPoint(program.structure).solve(program, tol=1e-8)


@pytest.mark.parametrize("unit", [1.0, 8.0, 0.125])
@pytest.mark.parametrize("batch", [1, 40])
def test_projections_are_exact(batch: int, unit: float) -> None:
    rng = np.random.default_rng(0)
    points = rng.choice((-1.0, 1.0), (batch, 6)) * rng.uniform(0.1, 3.0, (batch, 6))
    solution = solved(projection(points, unit=unit))
    np.testing.assert_allclose(solution.x, np.maximum(points, 0.0), rtol=1e-14)
    np.testing.assert_allclose(solution.y, np.maximum(-points, 0.0) / unit, rtol=1e-13)
    assert not np.any(solution.y * solution.s)
    assert np.all(solution.complementary(projection(points, unit=unit)).backward <= 1e-12)


def test_a_weakly_active_row_keeps_the_interior_point_iterate() -> None:
    points = np.array([[1.0, 0.0, -1.0], [2.0, 1.0, 0.0], [3.0, -1.0, 1.0]])
    solution = solved(projection(points))
    assert solution.all_optimal
    np.testing.assert_allclose(solution.x, np.maximum(points, 0.0), atol=1e-5)
    assert np.all(solution.s >= 0.0)
    assert np.all(solution.y >= 0.0)
    np.testing.assert_allclose(solution.x[2], [3.0, 0.0, 1.0], rtol=1e-14, atol=0.0)


def test_dependent_active_rows_share_their_multiplier() -> None:
    points = np.random.default_rng(0).normal(size=(20, 4))
    program = projection(points, copies=2)
    solution = solved(program)
    np.testing.assert_allclose(solution.x, np.maximum(points, 0.0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(solution.y[:, :4] + solution.y[:, 4:], np.maximum(-points, 0.0), rtol=1e-9, atol=1e-9)
