"""Violations of CVXPY's constraints at given points."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest

from convexlayer.canon.evaluation import residuals

Pose = Callable[[cp.Variable], cp.Constraint]

POSES: dict[str, Pose] = {
    "equality": lambda v: v[0] == v[1],
    "inequality": lambda v: v[0] <= v[1],
    "second order": lambda v: cp.SOC(v[0], v[1:]),
    "semidefinite": lambda v: cp.bmat([[v[0], v[1]], [v[1], v[2]]]) >> 0,
    "exponential": lambda v: cp.ExpCone(v[0], v[1], v[2]),
    "power": lambda v: cp.PowCone3D(v[0], v[1], v[2], 0.5),
    "power, n-dimensional": lambda v: cp.PowConeND(v[:2], v[2], np.array([0.5, 0.5])),
}


@pytest.mark.parametrize(
    ("name", "point", "violation"),
    [
        ("equality", (1.0, 3.0, 0.0), 2.0),
        ("equality", (1.0, 1.0, 0.0), 0.0),
        ("inequality", (4.0, 1.0, 0.0), 3.0),
        ("inequality", (1.0, 4.0, 0.0), 0.0),
        ("second order", (1.0, 3.0, 4.0), 4.0),
        ("second order", (6.0, 3.0, 4.0), 0.0),
        ("semidefinite", (1.0, 3.0, 1.0), 2.0),
        ("semidefinite", (4.0, 3.0, 4.0), 0.0),
        ("exponential", (0.0, 1.0, 0.25), 0.75),
        ("exponential", (0.0, 1.0, 2.0), 0.0),
        ("exponential", (0.0, -1.0, 2.0), 1.0),
        ("power", (4.0, 1.0, 3.0), 1.0),
        ("power", (4.0, 1.0, -2.0), 0.0),
        ("power", (-1.0, 1.0, 0.0), 1.0),
        ("power", (1.0, -2.0, 0.0), 2.0),
        ("power, n-dimensional", (4.0, 1.0, 3.0), 1.0),
        ("power, n-dimensional", (4.0, 1.0, 2.0), 0.0),
        ("power, n-dimensional", (1.0, -2.0, 0.0), 2.0),
    ],
)
def test_the_violation_of_a_constraint(name: str, point: tuple[float, float, float], violation: float) -> None:
    v = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(0 * cp.sum(v)), [POSES[name](v)])
    _, found = residuals(problem, {v.id: np.array(point)}, 0.0, multipliers=False)
    assert found.absolute == pytest.approx(violation, abs=1e-12)
