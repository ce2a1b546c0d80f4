"""Closed-form families with parameters between 10^-k and 10^k in one problem: wrong results are never ok."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from benchmarks.scales.family import Family
from benchmarks.scales.plan import Plan
from benchmarks.scales.separable import families, measure
from benchmarks.scales.table import Count, merged

FAMILIES = families()
RANGES = (4.0, 6.0)
"""Values of k at which results begin to be wrong; milder ones are left to ``python -m benchmarks.scales``."""

DRAWS = 4
"""Number of draws per family and range; ``python -m benchmarks.scales`` uses more."""


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # by CVXPY
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_closed_form_solves_the_problem(family: Family) -> None:
    """For parameters near 1, CVXPY with Clarabel gives a reliable reference."""
    theta = family.theta(1, 0.3, seed=1)
    for parameter, value in zip(family.parameters, theta, strict=True):
        parameter.value = value[0]
    tight = {f"tol_{name}": 1e-11 for name in ("gap_abs", "gap_rel", "feas")}
    family.problem.solve(solver=cp.CLARABEL, **tight)
    found = np.concatenate([np.ravel(variable.value) for variable in family.variables])
    truth = family.truth(theta)
    assert np.max(np.abs(found - truth.x[0]) / np.max(truth.x_size[0])) < 1e-4


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_closed_form_derivative_matches_finite_differences(family: Family) -> None:
    """Central differences along relative changes of all parameters."""
    theta = family.theta(2, 1.0, seed=2)
    truth, rng, step = family.truth(theta), np.random.default_rng(0), 1e-5
    rows = [value.reshape(2, -1) for value in theta]
    direction = [row * rng.normal(size=row.shape) for row in rows]
    if "log_det" in family.name:  # the direction of a symmetric parameter must be symmetric
        direction = [
            (0.5 * (d.reshape(v.shape) + d.reshape(v.shape).mT)).reshape(d.shape) if v.ndim == 3 else d
            for d, v in zip(direction, theta, strict=True)
        ]
    there, back = (
        family.truth([v + sign * step * d.reshape(v.shape) for v, d in zip(theta, direction, strict=True)]).x
        for sign in (1.0, -1.0)
    )
    expected = np.einsum("bij,bj->bi", truth.J, np.concatenate(direction, axis=1))
    scale = np.einsum("bij,bj->bi", truth.J_size, np.abs(np.concatenate(direction, axis=1)))
    assert np.max(np.abs((there - back) / (2.0 * step) - expected) / scale) < 1e-6


@pytest.fixture(scope="module")
def measured() -> list[Count]:
    return list(measure(Plan(draws=DRAWS * len(FAMILIES) * len(RANGES), ranges=RANGES)))


def test_wrong_results_are_never_ok(measured: list[Count]) -> None:
    silent = {(count.family, count.k, count.solver): count.silent_draws for count in measured if count.silent}
    assert not silent


def test_most_results_are_correct_and_ok_for_scales_of_ten_thousand(measured: list[Count]) -> None:
    totals = merged((count for count in measured if count.k == 4.0), ("solver",))
    not_ok = {total.solver: round(total.not_ok_fraction, 3) for total in totals if total.not_ok_fraction > 0.2}
    assert not not_ok
