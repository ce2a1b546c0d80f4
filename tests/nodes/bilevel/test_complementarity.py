"""Branches of complementarity constraints: pairs that must change together, and stationarity on every branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from convexlayer.nodes import KKT, InequalityNode
from convexlayer.nodes.bilevel.complementarity import STATIONARITY_TOL, Complementarity
from convexlayer.nodes.bilevel.lower_level import lower_program
from tests.nodes.bilevel.problems import D, vector


def positive_parts(upper: Any, entries: int = 2) -> Complementarity:
    """Lower solutions y_i = max(x, 0), all of them biactive at x = 0."""
    lower = lower_program(InequalityNode(lambda y, x: (y - x).square().sum(), lambda y, x: -y, (entries,), [(1,)]))
    method = KKT()
    return Complementarity(
        upper,
        lower.program,
        lambda y, x: y.new_zeros(0),
        (vector(0.0),),
        (entries, 0, entries),
        method.solver,
        method.tol,
    )


def start(x: float, entries: int = 2) -> torch.Tensor:
    """(x, y, mu) for x <= 0, where L_Y = 2 (y - x) - mu = 0."""
    return torch.tensor([x, *([0.0] * entries), *([-2.0 * x] * entries)], dtype=D)


@pytest.mark.parametrize("x", [-1.0, -0.2])
def test_pairs_that_change_together_leave_the_kink(x: float) -> None:
    """At x = 0 a change of one pair leaves no room for x; F falls on y = x >= 0, where both have changed."""
    problem = positive_parts(lambda y, x: (y - 1).square().sum() + 0.1 * (x - 1).square().sum())
    found = problem.solve_by_branch_exchange(start(x), 0.0)
    torch.testing.assert_close(found.x[:3], vector(1.0, 1.0, 1.0), rtol=0, atol=1e-7)
    assert found.stationarity <= STATIONARITY_TOL


def test_stationarity_is_that_of_the_worst_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """x = 0 is stationary for y = 0, x <= 0, and not for y = x >= 0, which the solver here fails to solve."""
    problem = positive_parts(lambda y, x: (y - 1).square().sum() + x.square().sum(), entries=1)
    monkeypatch.setattr(problem, "_solve_subproblem", lambda program, x, pairs, eps: x)
    found = problem.solve_by_branch_exchange(start(-1e-12, entries=1), 0.0)
    assert float(found.x.abs().max()) < 1e-11
    assert found.stationarity > 0.1


def test_multipliers_of_the_size_of_eps_are_not_zero() -> None:
    """mu = eps is a multiplier of the perturbed problem; counted as zero, its bound would hide the slope of F."""
    eps = 1e-6
    problem = positive_parts(lambda y, x: -x.sum() + 0 * y.sum(), entries=1)
    at = torch.tensor([-0.5 * eps, 0.0, eps], dtype=D)
    found = problem._assess(problem._branch_program, at, torch.ones(1, dtype=D), eps)
    assert found.violation < 1e-12
    assert found.stationarity > 0.1  # x may grow until mu = 0
