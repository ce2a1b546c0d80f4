"""Inequalities between parameters alone, which do not involve the variables."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch

from convexlayer import ConvexLayer
from convexlayer.status import Status

SOLVERS = ("auto", "batched", "clarabel")


def layer(solver: str) -> ConvexLayer:
    """Minimise |x - p|^2 over x >= 0 where c >= 0."""
    x, p, c = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0, c >= 0])
    return ConvexLayer(problem, [p, c], [x], solver=solver, on_failure="nan")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bound", [0.0, 1.0, -1e-17])
def test_a_satisfied_inequality_changes_nothing(solver: str, bound: float) -> None:
    p = torch.tensor([100.0, -1.0], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([bound, 1.0], dtype=torch.float64, requires_grad=True)
    (x,), report = layer(solver).solve(p, c)
    torch.testing.assert_close(x, torch.tensor([100.0, 0.0], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    x.sum().backward()
    assert report.status == (Status.OPTIMAL,)
    assert report.derivative.status == ("ok",)
    assert p.grad is not None
    assert c.grad is not None
    assert p.grad.tolist() == pytest.approx([1.0, 0.0], abs=1e-9)
    assert c.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bound", [-1.0, -1e-3])
def test_a_violated_inequality_makes_the_problem_infeasible(solver: str, bound: float) -> None:
    p, c = torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([bound, 1.0], dtype=torch.float64)
    (x,), report = layer(solver).solve(p, c)
    assert report.status == (Status.INFEASIBLE,)
    assert bool(torch.isnan(x).all())
