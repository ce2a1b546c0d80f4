"""The work of canonicalisation: how often CVXPY is asked, and how the number of calls grows with the parameters."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import cvxpy as cp
import pytest

from convexlayer import canonicalize
from convexlayer.canon import frontend


def tracking(size: int) -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """A problem with 11 * size parameter entries, and rows that presolve eliminates."""
    x, F, b = cp.Variable(5), cp.Parameter((size, 5)), cp.Parameter(size)
    G = cp.Parameter((size, 5))
    return cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [cp.abs(F @ x) <= b, G @ x <= 1]), [F, b, G], [x]


def calls(size: int, **keywords: bool) -> int:
    """Number of Python functions that a canonicalisation calls; it does not depend on the machine's load."""
    problem, parameters, variables = tracking(size)
    count = 0

    def counted(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        canonicalize(problem, parameters, variables, **keywords)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("keywords", [{}, {"self_check": False}, {"presolve": False}])
def test_the_number_of_calls_grows_at_most_linearly_with_the_parameters(keywords: dict[str, bool]) -> None:
    calls(4, **keywords)  # imports and caches
    small, middle, large = (calls(size, **keywords) for size in (20, 40, 80))
    assert large - middle <= 2.2 * (middle - small) + 0.05 * small


@pytest.mark.parametrize(("self_check", "expected"), [(True, 2), (False, 1)])
def test_cvxpy_canonicalises_once_and_once_more_to_check(
    self_check: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    canonicalised = frontend._canonicalised

    def counted(*arguments: Any, **keywords: Any) -> tuple[Any, Any, Any]:
        asked.append(keywords["ignore_dpp"])
        return canonicalised(*arguments, **keywords)

    monkeypatch.setattr(frontend, "_canonicalised", counted)
    canonicalize(*tracking(4), self_check=self_check)
    assert asked == [False, True][:expected]
