"""Degenerate programs in various units: only correct derivatives are reported as ok."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scales.degenerate import FAMILIES, derivatives, draw, measure, queries, unique
from benchmarks.scales.degenerate_families import Degenerate
from benchmarks.scales.plan import Plan
from benchmarks.scales.queries import Reverse
from benchmarks.scales.table import Count

DRAWS = 3
"""Number of draws per family and range."""

RANGES = {"auto": (0.0, 4.0), "daqp": (2.0,)}
"""By solver: an interior-point method, and an active-set method that returns vertices with zero multipliers."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_reference_derivative_exists_or_not_as_stated(family: Degenerate) -> None:
    """Check by all derivatives of the projection near w."""
    programs = draw(family, 5, seed=1)
    for query in queries(family, programs, seed=1):
        if isinstance(query, Reverse):
            _, exists = derivatives(family, programs, query.weight, query.wrt[0], samples=12)
            assert np.all(exists == query.exists), query.wrt


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_optimal_value_is_differentiable_at_unique_solutions(family: Degenerate) -> None:
    for wrt, found in zip(("q", "b"), unique(draw(family, 5, seed=1)), strict=True):
        assert np.all(found == (wrt in family.value)), wrt


@pytest.fixture(scope="module")
def measured() -> list[Count]:
    plans = [
        Plan(draws=DRAWS * len(FAMILIES) * len(ranges), solvers=(solver,), ranges=ranges, seed=2)
        for solver, ranges in RANGES.items()
    ]
    return [count for plan in plans for count in measure(plan)]


def test_wrong_or_nonexistent_derivatives_are_never_ok(measured: list[Count]) -> None:
    assert not {(count.family, count.k, count.solver): count.silent_draws for count in measured if count.silent}


def test_false_alarms_are_few(measured: list[Count]) -> None:
    alarms = {
        (c.family, c.k, c.solver): c.right_not_ok + c.wrong_not_ok for c in measured if c.right_reported_ok < c.draws
    }
    assert sum(alarms.values()) <= 0.02 * sum(count.draws for count in measured), alarms
