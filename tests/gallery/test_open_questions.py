"""Gallery entries on the papers' open questions: their numbers at small sizes."""

from __future__ import annotations

import pytest
import torch

from convexlayer.gallery import Result
from convexlayer.gallery.entries import (
    open_degenerate_problems,
    open_inexact_solutions,
    open_inverse_hessian,
    open_warm_starts,
)
from convexlayer.gallery.ridge import Ridge, diabetes, iterations
from convexlayer.nodes import Implicit
from tests.gallery.figures import faults


def agreed(result: Result) -> None:
    assert not [claim for claim in result.claims if not claim.holds]
    assert not faults(result)


@pytest.fixture(scope="module")
def problem() -> Ridge:
    return diabetes()


def test_warm_starts_save_iterations() -> None:
    result = open_warm_starts.run(steps=3, tols=(1e-3, 1e-6))
    agreed(result)
    for counts in result.numbers["forward_iterations"].values():
        assert counts["predicted"] < counts["warm"] < counts["cold"]


def test_iterations_match_those_of_the_node(problem: Ridge) -> None:
    theta = torch.zeros(problem.n, dtype=torch.float64)
    _, report = problem.node(Implicit(tol=1e-4)).solve(theta)
    zero = torch.zeros_like(theta)
    counted = iterations(lambda x: problem.lower_gradient(x, theta), zero, problem.step_size, 1e-4)
    assert int(report.iterations[0]) == counted


def test_approximate_inverse_hessians_descend() -> None:
    result = open_inverse_hessian.run(terms=(1, 3, 40), products=(1, 3), steps=4)
    agreed(result)
    for cosines in result.numbers["cosine_with_the_gradient"].values():
        assert all(value > 0.2 for value in cosines.values())


def test_inexact_solutions_descend_for_proportionate_errors() -> None:
    result = open_inexact_solutions.run(places=(0, 40), draws=8, levels=12)
    agreed(result)
    assert all(values[0] > 0.999 for values in result.numbers["worst_cosine"].values())


def test_nonunique_and_infeasible_lower_problems() -> None:
    result = open_degenerate_problems.run(iterations=(1, 3, 40), steps=25)
    agreed(result)
    assert result.numbers["infeasible_evaluations"]["stepping back"] > 0
